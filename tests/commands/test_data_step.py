"""`plait data step` finds the samples of any step again, and they are those that the run trained on."""

import functools
import json
import re

import pytest

from plait import cli, files
from plait.config import reading
from plait.data import order
from plait.engine.checkpoints import checkpoint
from plait.training import stage
from tests import processes, toy_family
from tests.data import latent_sets

LONG = ("evaluate=[]", "checkpoint.best=null", "guard.forgetting=null")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    return toy_family.install(monkeypatch, tmp_path)


def listed(capture, run, step, *more, code=0):
    capture.readouterr()
    assert cli.main(["data", "step", str(run), str(step), "--json", *more]) == code
    return json.loads(capture.readouterr().out)


def recorded(monkeypatch):
    """The ids of the micro-batches that the runs of this process train on, in order."""
    passes = []

    def digest(ids):
        passes.append([(one.index, one.epoch) for one in ids])
        return order.digest(ids)

    monkeypatch.setattr(stage, "digest", digest)
    return passes


def test_every_step_of_every_stage_lists_what_the_run_trained_on(recipe, tmp_path, monkeypatch, capsys):
    recording = recorded(monkeypatch)
    toy_family.train(recipe, tmp_path / "run", "train.micro_batch=2", *LONG)
    passes = iter(recording)
    for step in range(1, 19):
        told = listed(capsys, tmp_path / "run", step)
        trained = [next(passes), next(passes)]
        shown = [[(one["index"], one["epoch"]) for one in told["samples"] if one["micro_batch"] == number] for number in (0, 1)]
        assert shown == trained
        assert told["hash"] == told["recorded_hash"]
        assert (told["stage"], told["stage_step"]) == (["projection", "vision", "language"][(step - 1) // 6], (step - 1) % 6 + 1)


def test_a_step_of_a_stage_is_that_of_the_run(recipe, tmp_path, capsys):
    toy_family.train(recipe, tmp_path / "run", *LONG)
    assert listed(capsys, tmp_path / "run", 2, "--stage=vision") == listed(capsys, tmp_path / "run", 8)


def test_a_configuration_has_the_steps_that_its_run_will_have(recipe, tmp_path, capsys):
    before = [listed(capsys, recipe, step)["samples"] for step in (1, 7, 18)]
    toy_family.train(recipe, tmp_path / "run", *LONG)
    assert before == [listed(capsys, tmp_path / "run", step)["samples"] for step in (1, 7, 18)]


def test_ranks_are_those_that_the_step_was_divided_over(recipe, tmp_path, capfd):
    run = tmp_path / "run"
    assert processes.codes(processes.start(2, functools.partial(toy_family.train, only="projection"), recipe, run, *LONG)) == [0, 0]
    toy_family.train(run, run)
    assert [one["rank"] for one in listed(capfd, run, 3)["samples"]] == [0, 0, 1, 1]
    assert [one["rank"] for one in listed(capfd, run, 8)["samples"]] == [0, 0, 0, 0]
    told = listed(capfd, run, 3, "--ranks=4")
    assert [one["rank"] for one in told["samples"]] == [0, 1, 2, 3] and told["hash"] == told["recorded_hash"]


def test_a_changed_global_batch_is_followed(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    toy_family.train(recipe, run, "train.steps=4", "stages=[]", "trainable=[language]", *LONG)
    toy_family.train(run, run, "train.steps=8", "train.global_batch=6", *LONG, allow_inexact=True)
    for step in range(1, 9):
        told = listed(capsys, run, step)
        assert len(told["samples"]) == (4 if step <= 4 else 6)
        assert told["hash"] == told["recorded_hash"]


def test_a_bad_sample_is_listed_with_what_took_its_place(recipe, tmp_path, capsys):
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    rows[7] = '{"text": "no numbers"}'
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    toy_family.train(recipe, run, "stages=[]", "trainable=[language]", "train.steps=12", *LONG)
    (bad, *_) = files.read_rows(run / "quarantine.jsonl")
    told = listed(capsys, run, bad["step"])
    (replaced,) = [one for one in told["samples"] if one["replaces"]]
    assert replaced["replaces"]["index"] == 7 and replaced["index"] == bad["replaced_by"]
    assert told["hash"] == told["recorded_hash"]
    assert cli.main(["data", "step", str(run), str(bad["step"])]) == 0
    assert re.search(r"train\.jsonl\[7\] could not be used \(.*\): train\.jsonl:\d+ took its place\n", capsys.readouterr().out)


def test_other_data_than_the_run_had_ends_in_one_line(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    toy_family.train(recipe, run, *LONG)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:20]) + "\n")
    capsys.readouterr()
    assert cli.main(["data", "step", str(run), "3"]) == 2
    found = re.sub(r"\b[0-9a-f]{8}\b", "HASH", capsys.readouterr().err)
    line = "metrics.jsonl has the hash HASH of them, these have HASH, as jsonl:train.jsonl changed"
    assert found == f"plait: step 3 had other samples than these: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["19"], "the run has 18 steps: there is no step 19"),
        (["7", "--stage=vision"], "stage vision has 6 steps: there is no step 7 of it"),
        (["1", "--stage=visoin"], "--stage=visoin: there is no such stage; the stages are projection, vision, language"),
    ],
)
def test_a_step_that_there_is_not_is_one_line(recipe, capsys, words, line):
    assert cli.main(["data", "step", str(recipe), *words]) == 2
    assert capsys.readouterr().err == f"plait: {line}\n"


def test_a_stage_that_ended_early_moves_those_after_it(recipe, tmp_path, capsys):
    """Its end is read from the manifests; a run with fewer steps of a stage stands for one that a plateau ended."""
    run = tmp_path / "run"
    toy_family.train(recipe, run, *LONG)
    for folder in checkpoint.published(run):
        if "stage-1" in folder.parent.name:
            files.remove(folder)
    told = listed(capsys, run, 7)
    assert (told["stage"], told["stage_step"], told["hash"]) == ("vision", 1, told["recorded_hash"])


def test_the_page_draws_the_samples_of_the_step_with_their_places(tmp_path, capsys):
    model = {"base": "tiny", "tiny": {"image_size": 16, "image_tokens": 4, "vocabulary": 300}}
    scenes = {"source": "scenes", "limit": 40, "options": {"size": [16, 16], "objects": 1, "sizes": ["large"], "tasks": ["colour"]}}
    tree = {"run": str(tmp_path / "run"), "family": "theworld", "model": model, "train": {"steps": 3, "global_batch": 4}}
    (tmp_path / "config.yaml").write_text(reading.write_yaml({**tree, "data": {"train": [scenes]}}))
    told = listed(capsys, tmp_path / "config.yaml", 2, "--ranks=2", f"--out={tmp_path / 'out'}")
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", page) == [one["id"] for one in told["samples"]]
    assert re.findall(r"<dt>place</dt><dd>(.*?)</dd>", page) == ["rank 0, micro-batch 0"] * 2 + ["rank 1, micro-batch 0"] * 2
    assert cli.main(["data", "step", str(tmp_path / "config.yaml"), "2", f"--out={tmp_path / 'out'}"]) == 2
    assert "is not empty; give --out a new folder" in capsys.readouterr().err


def test_a_stage_that_a_plateau_ended_moves_those_after_it(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    rule = "{metric: loss, window_steps: 2, min_steps: 2, min_gain: 0.99}"
    stages = f"[{{name: projection, trainable: [projector], train: {{plateau: {rule}}}}}, {{name: language, trainable: [language]}}]"
    toy_family.train(recipe, run, f"stages={stages}", "guard.forgetting=null", "checkpoint.best=null")
    told = [listed(capsys, run, step) for step in range(1, 11)]
    ended = sum(one["stage"] == "projection" for one in told)
    assert 2 <= ended < 6, "the plateau ended it"
    assert [one["stage_step"] for one in told[ended:]] == [1, 2, 3, 4, 5, 6]
    assert all(one["hash"] == one["recorded_hash"] for one in told)


def test_a_step_of_data_in_buckets_is_of_one_bucket_and_the_runs(tmp_path, capsys):
    root = latent_sets.make(tmp_path / "set", {"64x64": 9, "48x80": 5, "80x48": 4})
    model = {"metadata": str(root), "channels": 4, "text_dim": 6, "image_dim": 5}
    tree = {"family": "nanodit", "preset": "tiny", "model": model, "train": {"steps": 4, "global_batch": 4}, "evaluate": []}
    tree |= {"data": {"train": [{"source": "latents", "path": str(root)}]}, "track": {"every_steps": 1}}
    (tmp_path / "config.yaml").write_text(reading.write_yaml(tree))
    assert cli.main(["train", str(tmp_path / "config.yaml"), f"--run={tmp_path / 'run'}"]) == 0
    for step in range(1, 5):
        told = listed(capsys, tmp_path / "run", step)
        assert told["hash"] == told["recorded_hash"] and len(told["samples"]) == 4
