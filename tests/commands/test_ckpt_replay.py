"""`plait ckpt replay`: any step of a run again, in memory, with what it held; the run itself stays as it is."""

import json
import shutil

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.keys import rng
from tests import toy_family

SETTINGS = ("train.steps=100", "stages=[]", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=30", "guard.blindness=false")
STEP = 87


@pytest.fixture
def toy(monkeypatch):
    for name, value in (("load", toy_family.FAMILY), ("benches", toy_family.BENCHES), ("model_config", toy_family.Config)):
        monkeypatch.setattr(f"plait.families.registry.{name}", lambda _, value=value: value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of the toy's recipe, whose step 87 has a sample with a target that is far too large, by policy; and that sample's name."""
    folder = tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patched:
        recipe = toy_family.install(patched, folder)
        rows = [{"x": (x := rng("train", i).standard_normal(4).round(3).tolist()), "y": round(sum(x), 3)} for i in range(1000)]
        write(folder, rows)
        (view,) = open_config(recipe, [f"run={folder}", *SETTINGS]).stages
        index = open_training(view.config).order(view).ids(STEP - 1)[1].index
        rows[index] = rows[index] | {"y": 100.0}
        write(folder, rows)
        for policy in ("tell", "skip", "rewind"):
            toy_family.train(recipe, folder / policy, *SETTINGS, f"guard.spikes={policy}")
        yield folder, recipe, f"jsonl:train.jsonl:{index}", rows


def write(folder, rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def replayed(run, step, *options):
    assert cli.main(["ckpt", "replay", str(run), str(step), *options]) == 0
    return json.loads((run / "replays" / f"step-{step:08d}" / "spike.json").read_text())


@pytest.mark.parametrize("policy", ["tell", "skip", "rewind"])
def test_the_step_of_a_spike_is_the_one_that_the_run_looked_into(made, toy, capsys, policy):
    folder, _, sample, _ = made
    before = content(folder / policy)
    told = replayed(folder / policy, STEP)
    box = json.loads((folder / policy / "spikes" / f"step-{STEP:08d}" / "spike.json").read_text())
    for name in ("step", "stage", "stage_step", "cause", "replay", "modules", "samples", "before"):
        assert told[name] == box[name], name
    assert {name: value for name, value in told["figures"].items() if name != "spike"} == {
        name: value for name, value in box["figures"].items() if name != "spike"
    }
    said = capsys.readouterr().out
    assert f"step {STEP}: sample {sample} (loss " in said
    assert "the 26 recorded losses on the way are the same, to the bit" in said  # 61 to 86
    shutil.rmtree(folder / policy / "replays")
    assert content(folder / policy) == before


def test_any_step_can_be_looked_into_also_before_the_first_checkpoint_and_after_a_skipped_one(made, toy, capsys):
    folder, _, _, _ = made
    for step, on_the_way in ((20, 19), (31, None), (98, 7)):
        told = replayed(folder / "skip", step, f"--out={folder / 'skip' / 'replays'}")
        recorded = {row["step"]: row["loss"] for row in toy_family.figures(folder / "skip") if "loss" in row}
        assert told["figures"]["loss"] == recorded[step]
        assert told["what"] == "replayed" and len(told["samples"]) == 4
        said = capsys.readouterr().out
        same = f"the {on_the_way} recorded losses on the way are the same" if on_the_way else "no step on the way has a recorded loss"
        assert same in said


def test_a_step_of_a_later_stage_is_reached_over_the_end_of_the_one_before(made, toy, tmp_path, capsys):
    _, recipe, _, _ = made
    toy_family.train(recipe, tmp_path / "run", "evaluate=[]", "checkpoint.best=null")  # three stages of 6 steps
    for folder in (tmp_path / "run").glob("stage-*/step-*"):
        if int(folder.name[5:]) not in (4, 18):
            shutil.rmtree(folder)
    told = replayed(tmp_path / "run", 15)
    assert (told["stage"], told["stage_step"], [*told["modules"]]) == ("language", 2, ["language"])
    recorded = {row["step"]: row["loss"] for row in toy_family.figures(tmp_path / "run") if "loss" in row}
    assert told["figures"]["loss"] == recorded[15]
    assert "the 10 recorded losses on the way are the same, to the bit" in capsys.readouterr().out  # 5 to 14


def test_a_step_that_is_not_finite_names_its_samples(made, toy, tmp_path, capsys):
    folder, _, sample, rows = made
    for name in ("train.jsonl", "held.jsonl", "recipe.yaml"):
        (tmp_path / name).write_text((folder / name).read_text().replace(str(folder), str(tmp_path)))
    write(tmp_path, [row | {"y": 1e39} if row["y"] == 100.0 else row for row in rows])
    toy_family.train(tmp_path / "recipe.yaml", tmp_path / "run", *SETTINGS, "guard.non_finite=skip")
    told = replayed(tmp_path / "run", STEP)
    assert told["cause"].startswith(f"sample {sample} (loss inf, the others ")
    assert told["what"].startswith(f"step {STEP} is not finite (loss = inf")
    assert [row["loss"] for row in told["samples"] if row["sample"] == sample] == ["inf"]
    assert f"step {STEP}: sample {sample}" in capsys.readouterr().out


def test_what_cannot_be_replayed_is_told_in_a_line(made, toy, tmp_path, capsys):
    folder, _, _, _ = made
    for words, said in (
        ((folder / "tell", "101"), f"plait: {folder / 'tell'} has not had step 101: its last recorded one is 100\n"),
        ((tmp_path / "none", "3"), f"plait: {tmp_path / 'none' / 'config.yaml'}: no such file"),
        ((folder / "tell", "0"), "must be a whole number of at least 1, got '0'"),
    ):
        assert cli.main(["ckpt", "replay", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
