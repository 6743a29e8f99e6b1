"""Text to marked nodes: numbers, comments, lines, duplicates."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.config import reading
from plait.config.nodes import node_at, to_plain
from plait.errors import PlaitError


def read(tmp_path: Path, text: str, name: str):
    (tmp_path / name).write_text(text)
    return reading.read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("3e-4", 3e-4), ("1E5", 1e5), ("-2.5e+3", -2500.0), (".5", 0.5), ("1.", 1.0), ("1_000", 1000), ("12", 12), ("0", 0),
        ("on", True), ("off", False), ("no", False), ("null", None), ("~", None), ("", None),
        ("007", "007"), ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("1e", "1e"), ("'1e-5'", "1e-5"), ("1.2.3", "1.2.3"),
        ("[1e-5, a]", [1e-5, "a"]), ("{a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_scalars_read_as_people_mean_them(text: str, value: object) -> None:
    parsed = reading.scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_json_comments_go_and_strings_and_lines_stay(tmp_path: Path) -> None:
    text = '// top\n{\n  "a": "http://x/*y*/", // one\n  /* two\n lines */ "b": [1, "\\u00e9\\/", 1e-5,],\n  "_comment": 3,\n  "c": {}\n}\n'
    root = read(tmp_path, text, "x.json")
    assert to_plain(root) == {"a": "http://x/*y*/", "b": [1, "é/", 1e-5], "c": {}}
    assert [node_at(root, path).line for path in ([], ["a"], ["b"], ["b", "2"], ["c"])] == [2, 3, 5, 5, 7]


def test_comment_keys_are_ignored_anywhere(tmp_path: Path) -> None:
    assert to_plain(read(tmp_path, "_comment: a\n_comment: b\nx: [{_comment: c, y: 1}]\n", "x.yaml")) == {"x": [{"y": 1}]}
    assert to_plain(read(tmp_path, '{"_comment": 1, "_comment": 2, "x": {"_comment": 3, "y": 1}}', "x.json")) == {"x": {"y": 1}}


def test_merge_keys_lose_to_the_own_ones(tmp_path: Path) -> None:
    assert to_plain(read(tmp_path, "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", "x.yaml"))["b"] == {"x": 1, "y": 3}


def test_duplicate_keys_name_both_lines_at_any_depth(tmp_path: Path) -> None:
    with pytest.raises(PlaitError, match=r"x.yaml:4: a.1.b is set twice, first on line 3: keep one$"):
        read(tmp_path, "a:\n  - 1\n  - b: 1\n    b: 2\n", "x.yaml")


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert to_plain(reading.read(tmp_path / "x.json")) == {"a": 1}


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
_TREES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8
)


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from("abc"), _TREES, max_size=3))
def test_json_reader_agrees_with_the_standard_library(tree: dict) -> None:
    text = json.dumps(tree, indent=1).replace("_comment", "x")
    assert to_plain(reading._read_json(text, "x.json")) == json.loads(text)


@settings(max_examples=60, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from("abc"), _TREES, max_size=3))
def test_written_yaml_reads_back_the_same(tree: dict) -> None:
    assert to_plain(reading._read_yaml(reading.write_yaml(tree), "x.yaml")) == tree
