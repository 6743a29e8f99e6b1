"""A NUL character, or half of a surrogate pair, in any setting is one line with file, line and key, in every verb that reads settings."""

import pytest

from plait import cli

HEAD = "family: nanodit\ntrain: {steps: 1}\n"


@pytest.mark.parametrize(
    ("rest", "key"),
    [
        ('run: "a\\0b"\ndata: {train: [{source: scenes}]}', "run"),
        ('data: {cache: "a\\0b", train: [{source: scenes}]}', "data.cache"),
        ('data: {root: "a\\0b", train: [{source: scenes}]}', "data.root"),
        ('data: {train: [{source: jsonl, path: "a\\0b.jsonl"}]}', "data.train.0.path"),
        ('data: {train: [{source: jsonl, path: b.jsonl, options: {images: "a\\0b"}}]}', "data.train.0.options.images"),
        ('from: "a\\0b"\ndata: {train: [{source: scenes}]}', "from"),
        ('data: {mixture: "a\\0b.yaml"}', "data.mixture"),
        ('stages: [{name: one, data: {cache: "a\\0b"}}]\ndata: {train: [{source: scenes}]}', "stages.0.data.cache"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "config", "doctor"])
def test_a_nul_in_a_file_is_told_with_its_line_and_key(tmp_path, capsys, verb, rest, key):
    (tmp_path / "a.yaml").write_text(HEAD + rest)
    assert cli.main([verb, str(tmp_path / "a.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"plait: {tmp_path / 'a.yaml'}:3: {key} is 'a\\x00b") and "the NUL character can be in no path or text" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_nul_of_the_command_line_and_half_a_surrogate_pair_of_json_are_told(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(HEAD + "data: {train: [{source: scenes}]}")
    assert cli.main(["config", str(tmp_path / "a.yaml"), '--data={cache: "a\\0b"}']) == 2
    assert "command line: data.cache is 'a\\x00b', and the NUL character" in capsys.readouterr().err
    (tmp_path / "a.json").write_text('{"family": "nanodit",\n"run": "a\\ud800"}')
    assert cli.main(["config", str(tmp_path / "a.json")]) == 2
    assert "a.json:2: run is 'a\\ud800', and half of a surrogate pair" in capsys.readouterr().err
    (tmp_path / "a.json").write_text('{"family": "nanodit",\n"r\\u0000": 1}')
    assert cli.main(["config", str(tmp_path / "a.json")]) == 2
    assert "a.json:2: a key is 'r\\x00'" in capsys.readouterr().err
