"""`python -m benchmarks`: every script that it names is there, its reader knows what that writes, and changes of over 5 % are marked."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as suite

PACKED = """| family | layout | samples per CPU second | ratio | gradient, relative difference |
|---|---|---|---|---|
molmo: 128 samples of 150 to 260 tokens, median 200
| molmo, 32,768 words | padded, all logits | 20.0 | 1.00 (1.00 to 1.00) | 0.0e+00 |
| molmo, 32,768 words | packed | 31.0 | 1.55 (1.50 to 1.60) | 1.1e-07 |
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
    assert list(suite.packing({}, PACKED)) == [
        suite.Row("packing molmo, 32,768 words", "31.0/s", "padded, all logits", "20.0/s", 1.55, "higher")
    ]


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


HERE = {"processor": "P9", "cores": 8, "usable": 2, "load": 0.3, "versions": {"python": "3.13", "datasets": None}, "commit": "ab"}


def test_a_record_names_its_machine_and_that_of_rows_that_it_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "RECORD", tmp_path / "table.json")
    monkeypatch.setattr(suite, "measured", lambda name, quick: [suite.Row("step", "1 us", name, "1 us", 1.0, "lower")])
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    for name, processor in (("overhead", "P8"), ("bus", "P9")):
        monkeypatch.setattr(suite.machine, "about", lambda processor=processor: HERE | {"processor": processor})
        with pytest.raises(SystemExit):
            suite.main([name, "--record"])
    first, second = capsys.readouterr().out.split("P9, ")
    assert "lightning-fabric is not installed, and its rows are left out: pip install lightning-fabric" in first
    assert second.startswith("2 of 8 cores, load 0.3 before, python 3.13, datasets absent, commit ab\n\n| what |")
    assert "fabric" not in second
    record = json.loads((tmp_path / "table.json").read_text())
    assert [row["peer"] for row in record["rows"]] == ["overhead", "bus"] and record["machine"]["processor"] == "P9"
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("P9, 2 of 8 cores, load 0.3 before, ")
    assert lines[-1] == "On P8, 2 of 8 cores, python 3.13, datasets absent, commit ab: step (overhead)."


def test_the_machine_is_told():
    told = suite.machine.line(suite.machine.about())
    assert "cores, load " in told and f"torch {torch.__version__}" in told and "accelerate " in told and "lightning-fabric " in told


def test_a_record_of_nothing_is_no_fault(tmp_path, monkeypatch, capsys):
    def measured(name, quick):
        raise suite.Failed("no data")

    monkeypatch.setattr(suite, "RECORD", tmp_path / "table.json")
    monkeypatch.setattr(suite, "measured", measured)
    with pytest.raises(SystemExit) as ended:
        suite.main(["order", "--record"])
    assert ended.value.code == 1 and "order: no data" in capsys.readouterr().out and not (tmp_path / "table.json").exists()
    assert "<rect" not in suite.plot([])


@pytest.mark.parametrize(("name", "folder"), [("packing", "nlvr"), ("loader", "cifar10")])
def test_without_shards_one_line_says_where_they_come_from(tmp_path, monkeypatch, name, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAIT_DATA", "nothing")
    with pytest.raises(suite.Failed) as failed:
        suite.measured(name, quick=True)
    assert f"no train-*.tar in {tmp_path}/nothing/{folder}: tar shards of" in str(failed.value)
    assert f"PLAIT_DATA names the folder that has {folder}/" in str(failed.value) and "\n" not in str(failed.value)


def test_a_quick_run_leaves_the_figures_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "x.py").write_text(f"open({str(tmp_path / 'results/x.json')!r}, 'w').write('{{\"value\": 2}}')")
    monkeypatch.setattr(suite, "HERE", tmp_path)
    seen, row = [], suite.Row("a", "1", "b", "2", 0.5, "lower")

    def note(figures, printed):
        seen.append(figures)
        return [row]

    monkeypatch.setitem(suite.BENCHMARKS, "order", suite.Benchmark("x", note, 1))
    for before in (None, '{"value": 1}'):
        if before:
            (tmp_path / "results/x.json").write_text(before)
        suite.measured("order", quick=True)
        assert (tmp_path / "results/x.json").exists() == bool(before)
    assert seen == [{"value": 2}] * 2
    assert Path(tmp_path / "results/x.json").read_text() == '{"value": 1}'
    (tmp_path / "x.py").write_text("raise ValueError('no data')")
    with pytest.raises(suite.Failed, match="ValueError: no data"):
        suite.measured("order", quick=True)


def broken(figures, printed):
    raise KeyError("median_s")
    yield


SCRIPTS = {
    "raises": ("raise ValueError('no data')", "raises: ValueError: no data"),
    "unread": ("print('other figures')", "unread: its figures cannot be read: KeyError: 'median_s'"),
    "unwritten": ("", "unwritten: its figures cannot be read: FileNotFoundError: "),
    "hangs": ("import time; time.sleep(60)", "hangs: not done in 0 minutes"),
    "empty": ("", "empty: it gave no figures"),
}


def test_one_that_fails_costs_no_row_of_the_others(tmp_path, monkeypatch, capsys):
    """One that raises, changed its figures, wrote none, hangs: each has a line, and what came before and after is printed and recorded."""
    monkeypatch.setattr(suite, "HERE", tmp_path)
    monkeypatch.setattr(suite, "RECORD", tmp_path / "table.json")
    fine = {name: suite.Row(name, "1", "peer", "2", 0.5, "lower") for name in ("before", "after")}
    rows = {name: [row] for name, row in fine.items()}
    benchmarks = {"before": suite.Benchmark("fine", lambda figures, printed: iter(rows["before"]), 1, writes=False)}
    for name, (code, _) in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(code)
        read = broken if name == "unread" else lambda figures, printed: iter(())
        benchmarks[name] = suite.Benchmark(name, read, 1, writes=name == "unwritten")
    (tmp_path / "fine.py").write_text("")
    benchmarks["after"] = suite.Benchmark("fine", lambda figures, printed: iter(rows["after"]), 1, writes=False)
    monkeypatch.setattr(suite, "BENCHMARKS", benchmarks)
    ran = suite.ran
    monkeypatch.setattr(suite, "ran", lambda words, timeout_s: ran(words, 2.0 if "hangs" in words[0] else timeout_s))
    with pytest.raises(SystemExit) as ended:
        suite.main(["--record"])
    told = capsys.readouterr().out
    assert ended.value.code == 1
    assert all(f"| {name} | 1 | peer 2 | 0.50 |" in told for name in fine)
    lines = told.splitlines()[-len(SCRIPTS) :]
    assert all(line.startswith(said) for line, (_, said) in zip(lines, SCRIPTS.values(), strict=True)), lines
    record = json.loads((tmp_path / "table.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["before", "after"] and set(record["took_s"]) == {"before", "after"}


def test_an_interruption_keeps_the_rows_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suite, "RECORD", tmp_path / "table.json")

    def measured(name, quick):
        if name == "bus":
            raise KeyboardInterrupt
        return [suite.Row(name, "1", "peer", "2", 0.5, "lower")]

    monkeypatch.setattr(suite, "measured", measured)
    with pytest.raises(SystemExit) as ended:
        suite.main(["order", "bus", "logits", "--record"])
    told = capsys.readouterr().out
    assert ended.value.code == 1 and "| order | 1 |" in told and "bus: interrupted" in told and "| logits" not in told
    assert [row["name"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == ["order"]


def test_help_tells_how_long_each_takes(capsys):
    with pytest.raises(SystemExit):
        suite.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {asked.minutes:g}" in told for name, asked in suite.BENCHMARKS.items())
