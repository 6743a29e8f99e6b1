"""Benches of which no sample can be used, or fewer than were asked for: refused or told before the first step, in every family."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from plait import cli, files
from tests.families.test_conformance import TINY

SCENES = "{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption, count]}}"
CONFIG = f"""
trainable: ["*"]
data: {{train: [{SCENES}], validation: [{{source: jsonl, path: held.jsonl, allow_blank: true}}], workers: 0}}
train: {{steps: 2, global_batch: 2}}
optim: {{lr: 1.0e-3, schedule: {{warmup_steps: 0}}}}
track: {{tensorboard: false}}
"""
FIGURES = {"theworld": "", "molmo": "/score", "nanodit": "/loss"}
BLANK = {"messages": [{"role": "user", "content": "what?"}]}


def torn(i):
    return {"image": f"torn-{i}.png", "caption": "a cat"}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A function that writes a configuration and its held-out records, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        (tmp_path / f"torn-{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn" + bytes(i))

    def write(family, bench, records, *, samples=4):
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        evaluate = {"bench": bench, "every_steps": 1, "samples": samples, "batch": 2}
        best = {} if bench == "grid" else {"best": "loss" if bench == "loss" else bench + FIGURES[family], "better": "higher"}
        given = {"family": family, "evaluate": [evaluate], "checkpoint": best}
        (tmp_path / "recipe.yaml").write_text(yaml.dump({**yaml.safe_load(CONFIG), **yaml.safe_load(TINY[family]), **given}))

    return write


CASES = [
    ("theworld", "accuracy", lambda i: BLANK, "no answer to compare with"),
    ("theworld", "accuracy", torn, "not a readable image"),
    ("theworld", "loss", torn, ""),
    ("molmo", "accuracy", lambda i: BLANK, "no answer to compare with"),
    ("molmo", "vqa", torn, "not a readable image"),
    ("nanodit", "validation", torn, "not a readable image"),
    ("nanodit", "grid", torn, "not a readable image"),
]


@pytest.mark.parametrize(("family", "bench", "record", "reason"), CASES)
def test_a_bench_without_a_usable_sample_starts_no_run(config, capsys, family, bench, record, reason):
    config(family, bench, [record(i) for i in range(3)])
    assert cli.main(["train", "recipe.yaml", "--run=run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"plait: bench {bench} cannot be run, and would fail during the run: ")
    assert reason in said
    assert "none of 3 held-out samples can be used" in said or "sample held.jsonl:1 and 49 replacements in a row are bad" in said
    assert files.read_rows(Path("run/metrics.jsonl")) == []


@pytest.mark.parametrize(("family", "bench"), [("theworld", "accuracy"), ("molmo", "vqa"), ("nanodit", "validation")])
def test_samples_that_cannot_be_used_are_counted_and_missing_ones_are_told(config, capsys, family, bench, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    config(family, bench, [torn(0), {"image": "a.png", "caption": "a cat"}], samples=500)
    assert cli.main(["train", "recipe.yaml", "--run=run", "--train.steps=1"]) == 0
    told = f"bench {bench}: 500 held-out samples are asked for (samples), and there are 2: all are taken"
    captured = capsys.readouterr()
    assert told in captured.err
    (row,) = [row for row in files.read_rows(tmp_path / "run" / "metrics.jsonl") if f"eval/{bench}/bad_samples" in row]
    assert row[f"eval/{bench}/bad_samples"] == 1.0
    assert cli.main(["eval", "run", f"--bench={bench}", "--samples=500"]) == 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("best", "held_out", "warned"), [("loss", 7, True), ("loss", 8, False), (None, 7, False)])
def test_a_best_checkpoint_of_few_held_out_samples_is_warned_of(config, capsys, tmp_path, best, held_out, warned):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    config("theworld", "loss", [{"image": "a.png", "caption": f"cat {number}"} for number in range(held_out)], samples=None)
    overrides = ["--train.steps=1", f"--checkpoint.best={'null' if best is None else best}"]
    assert cli.main(["train", "recipe.yaml", "--run=run", *overrides]) == 0
    told = f"bench loss: {held_out} held-out samples say little of which checkpoint is best, or of when to stop: hold out more"
    captured = capsys.readouterr()
    assert (told in captured.err) == warned
    assert "measure      plait eval run" in captured.out
    assert "--bench loss" in captured.out


BAD_ONES = {"theworld": {"image": "a.png", "caption": None}, "molmo": {"image": "a.png", "caption": None}, "nanodit": torn(0)}


@pytest.mark.parametrize("family", BAD_ONES)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_held_out_loss_leaves_bad_samples_out_and_counts_them(config, capsys, tmp_path, family, workers):
    for name in ("red", "blue", "green"):
        Image.new("RGB", (32, 32), name).save(tmp_path / f"{name}.png")
    good = [{"image": f"{name}.png", "caption": f"a {name} square"} for name in ("red", "blue", "green")]
    bad = BAD_ONES[family]
    losses = []
    for held_out, count in ((good, None), ([bad, good[0], bad, bad, bad, good[1], good[2], bad, bad], 6.0)):
        config(family, "loss", held_out, samples=None)
        assert cli.main(["train", "recipe.yaml", f"--run=run-{count}", "--train.steps=1", f"--data.workers={workers}"]) == 0
        capsys.readouterr()
        (row,) = [row for row in files.read_rows(tmp_path / f"run-{count}" / "metrics.jsonl") if "eval/loss" in row]
        assert row.get("eval/loss/bad_samples") == count
        losses.append(row["eval/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05 if family == "nanodit" else 1e-5), "noise is drawn by the sample's place"
    if workers == "0":
        assert cli.main(["eval", "run-6.0", "--bench=loss"]) == 0
        assert "bad_samples" in capsys.readouterr().out
