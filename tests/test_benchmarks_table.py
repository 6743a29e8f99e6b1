"""`python -m benchmarks`: every script that it names is there, its reader knows what that writes, and changes of over 5 % are marked."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import __main__ as suite

PACKED = """| family | layout | samples per CPU second | ratio | gradient, relative difference |
|---|---|---|---|---|
molmo: 128 samples of 150 to 260 tokens, median 200
| molmo | padded, all logits | 20.0 | 1.00 (1.00 to 1.00) | 0.0e+00 |
| molmo | packed | 31.0 | 1.55 (1.50 to 1.60) | 1.1e-07 |
"""


@pytest.mark.parametrize("name", suite.BENCHMARKS)
def test_a_benchmark_is_read_as_it_was_recorded(name):
    asked = suite.BENCHMARKS[name]
    path = suite.HERE / f"{asked.script}.py"
    assert path.is_file()
    options = set(re.findall(r'"(--[a-z]+)"', path.read_text())) | {"--kills", "--full", "--failing", "--flips", "--rounds"}
    assert {word.partition("=")[0] for word in (*asked.full, *asked.quick) if word.startswith("--")} <= options
    figures = json.loads((suite.HERE / "results" / f"{asked.script}.json").read_text()) if asked.writes else {}
    rows = list(asked.read(figures, PACKED))
    assert rows
    assert all(math.isfinite(row.ratio) and row.ratio > 0 and row.better in ("higher", "lower") for row in rows)
    assert len({(row.name, row.peer) for row in rows}) == len(rows), "a row could not be found in the record"


def test_packing_is_read_from_what_it_prints():
    assert list(suite.packing({}, PACKED)) == [suite.Row("packing molmo", "31.0/s", "padded, all logits", "20.0/s", 1.55, "higher")]


@pytest.mark.parametrize(
    ("ratio", "better", "said"),
    [
        (1.04, "lower", ""),
        (1.06, "lower", "**worse**: was 1.00"),
        (0.90, "lower", "better: was 1.00"),
        (1.06, "higher", "better: was 1.00"),
        (0.90, "higher", "**worse**: was 1.00"),
    ],
)
def test_changes_of_over_5_percent_are_marked(ratio, better, said):
    row = suite.Row("a", "1 s", "b", "2 s", ratio, better)
    assert list(suite.table([row], {("a", "b"): 1.0}))[-1] == f"| a | 1 s | b 2 s | {ratio:.2f} | {better} | {said} |"


def test_a_record_keeps_what_was_not_measured_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "RECORD", tmp_path / "table.json")
    rows = {
        "order": [suite.Row("seek", "1 ms", "small", "1 ms", 1.0, "lower")],
        "bus": [suite.Row("bytes", "1", "wide", "4", 4.0, "higher")],
    }
    monkeypatch.setattr(suite, "measured", lambda name, quick: rows[name])
    for names in (["order", "bus"], ["bus"]):
        with pytest.raises(SystemExit) as ended:
            suite.main([*names, "--record"])
        assert ended.value.code == 0
    kept = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["name"] for row in kept] == ["seek", "bytes"]
    assert (tmp_path / "table.svg").read_text().count("<rect") == 2
    assert "| bytes | 1 | wide 4 | 4.00 | higher |  |" in (tmp_path / "table.md").read_text()


def test_a_quick_run_leaves_the_figures_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "x.py").write_text(f"open({str(tmp_path / 'results/x.json')!r}, 'w').write('{{\"value\": 2}}')")
    monkeypatch.setattr(suite, "HERE", tmp_path)
    seen = []
    monkeypatch.setitem(suite.BENCHMARKS, "order", suite.Benchmark("x", lambda figures, printed: seen.append(figures) or []))
    for before in (None, '{"value": 1}'):
        if before:
            (tmp_path / "results/x.json").write_text(before)
        suite.measured("order", quick=True)
        assert (tmp_path / "results/x.json").exists() == bool(before)
    assert seen == [{"value": 2}] * 2
    assert Path(tmp_path / "results/x.json").read_text() == '{"value": 1}'
    (tmp_path / "x.py").write_text("raise ValueError('no data')")
    with pytest.raises(RuntimeError, match="ValueError: no data"):
        suite.measured("order", quick=True)
