"""The blindness alarm: a run whose pictures make no difference says so once, one that looks is left alone, and neither costs training."""

import io
import json
import logging
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from plait import cli, files
from plait.assembly import sample_losses
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring.signals import Paused
from plait.errors import PlaitError
from plait.families import registry
from plait.families.ablation import PICTURES
from plait.keys import rng
from plait.training import blindness
from plait.training.figures import picture_use
from plait.training.figures.paired import Difference
from tests import processes
from tests import toy_family as toy

SETTINGS = ("stages=[]", "trainable=[projector,vision,language]", "checkpoint.every_steps=100", "checkpoint.best=null", "evaluate=[]")
BLIND = "pictures make no sure difference: the loss is "


class Seeing(toy.Inputs):
    """The four numbers of the toy, read from the colour of its picture."""

    def encode(self, sample, key):
        pixel = Image.open(io.BytesIO(sample["images"][0])).getpixel((0, 0)) if sample["images"] else (0, 0, 0, 0)
        return [value / 255 for value in pixel], sample["fields"]["y"]


def write(folder, name, count, *, shuffled=False, pictures=True):
    """Samples of `count` colours, whose answer is the sum of the colour's channels, or of another sample's colour."""
    colours = rng(name).integers(0, 256, (count, 4))
    truths = colours[rng("shuffled").permutation(count)] if shuffled else colours
    rows = []
    for number, (colour, truth) in enumerate(zip(colours.tolist(), truths.tolist(), strict=True)):
        Image.new("RGBA", (1, 1), tuple(colour)).save(folder / f"{name}-{number}.png")
        rows.append({"y": sum(truth) / 255, "text": "a", **({"image": f"{name}-{number}.png"} if pictures else {})})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(blindness, "_ENOUGH_SAMPLES", 0)
    path = toy.install(monkeypatch, tmp_path)
    monkeypatch.setattr(registry, "load", lambda name: replace(toy.FAMILY, Inputs=Seeing))
    write(tmp_path, "train", 200)
    write(tmp_path, "held", 40)
    return path


def rows(run):
    return [row for row in files.read_rows(run / "metrics.jsonl") if picture_use.is_row(row)]


def said(caplog):
    return [record.getMessage() for record in caplog.records if "pictures make" in record.getMessage()]


@pytest.fixture(autouse=True)
def heard(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("plait"), "propagate", True)
    caplog.set_level(logging.INFO)


def test_a_run_that_looks_is_told_so_once_and_not_warned(recipe, tmp_path, caplog):
    toy.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=250", "evaluate=[{bench: loss, every_steps: 50}]")
    (row,) = rows(tmp_path / "run")
    assert (row["step"], row["stage"], row["blind/samples"]) == (100, 1, 16)
    assert 0 < row["intervals"]["blind/gain"][0] < row["blind/gain"] == pytest.approx(row["blind/other"] - row["blind/own"])
    (line,) = said(caplog)
    assert line.startswith(f"step 100: pictures make a difference: the loss is {row['blind/own']:.4f} with their own pictures and ")


def test_a_run_whose_pictures_are_mixed_up_is_warned_once_with_advice(recipe, tmp_path, caplog, capsys):
    write(tmp_path, "train", 200, shuffled=True)
    settings = ("train.steps=250", "evaluate=[{bench: loss, every_steps: 30}]", "trainable=[projector,language]", "optim.lr=1e-3")
    toy.train(recipe, tmp_path / "run", *SETTINGS, *settings)
    looks = rows(tmp_path / "run")
    assert [row["step"] for row in looks] == [120, 250]  # the first evaluation after 100 steps, and the end
    (line,) = said(caplog)
    own, other = (f"{looks[1][name]:.4f}" for name in (picture_use.OWN, picture_use.OTHER))
    assert line.startswith(f"step 250: {BLIND}{own} with their own pictures and {other} with another sample's (16 samples, gain ")
    assert looks[1]["warnings"] == [line] and not any("warnings" in row for row in looks[:1])
    assert "(frozen here: vision)" in line and "plait eval RUN --bench loss --ablate image" in line
    assert str(tmp_path) not in line, "rows of runs in two places are equal"
    assert cli.main(["stages", str(tmp_path / "run")]) == 0
    assert f"  pictures   make no sure difference at step 250: the loss is {looks[1]['blind/own']:.4f}" in capsys.readouterr().out


def test_a_long_stage_is_looked_at_ten_times_as_late_each_time():
    evaluate = [SimpleNamespace(every_steps=every) for every in (300, 450, None)]
    config = SimpleNamespace(evaluate=evaluate, train=SimpleNamespace(global_batch=4))

    def looked(steps, among, done=None):
        plan, state = SimpleNamespace(config=config, steps=steps), SimpleNamespace(stage_done=done, stage_step=0)
        alarm = blindness.Blindness(plan, None, state, None, None)
        return [state.stage_step for state.stage_step in among if alarm.is_time()]

    assert looked(20_000, range(1, 20_001)) == [300, 1200, 10_200]
    assert looked(1999, range(1, 2000)) == []  # fewer than 8,000 samples: at the end only
    assert looked(1999, (99, 100, 1999), "planned steps done") == [100, 1999]


def test_nobody_looks_where_that_is_off_or_the_stage_is_short(recipe, tmp_path):
    toy.train(recipe, tmp_path / "off", *SETTINGS, "train.steps=120", "guard.blindness=false")
    toy.train(recipe, tmp_path / "short", *SETTINGS, "train.steps=99")
    assert rows(tmp_path / "off") == rows(tmp_path / "short") == []


def test_a_model_without_pictures_is_not_looked_at(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(registry, "ablations", lambda name: {"image": replace(PICTURES, lacks=lambda section: "it sees none")})
    toy.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=120")
    monkeypatch.setattr(registry, "ablations", lambda name: {})
    toy.train(recipe, tmp_path / "other", *SETTINGS, "train.steps=120")
    assert rows(tmp_path / "run") == rows(tmp_path / "other") == [] and not said(caplog)


def test_training_samples_are_looked_at_where_nothing_is_held_out(recipe, tmp_path, caplog):
    write(tmp_path, "train", 200, shuffled=True)
    toy.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=120", "data.validation=[]", "optim.lr=1e-3")
    (row,) = rows(tmp_path / "run")
    assert row["step"] == 120 and len(said(caplog)) == 1


def test_too_few_pictures_are_told_and_no_verdict_is_given(recipe, tmp_path, caplog):
    write(tmp_path, "held", 40, pictures=False)
    write(tmp_path, "few", 15)
    few = f"data.validation=[{{source: jsonl, path: {tmp_path}/held.jsonl}}, {{source: jsonl, path: {tmp_path}/few.jsonl}}]"
    toy.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=120", few)
    reason = "it takes 16 held-out samples with pictures of their own"
    assert rows(tmp_path / "run") == []
    assert f"step 120: whether pictures make a difference is not known: {reason}, and of 55 15 can be used" in caplog.text


REASON = "none of 16 samples can be shown with its own pictures and with another's: ZeroDivisionError: no pictures today (test_blindness"


def test_what_fails_is_told_and_costs_no_training(recipe, tmp_path, monkeypatch, caplog):
    def broken(sample, other):
        raise ZeroDivisionError("no pictures today")

    monkeypatch.setattr(registry, "ablations", lambda name: {"image": replace(PICTURES, exchange=broken)})
    run = tmp_path / "run"
    toy.train(recipe, run, *SETTINGS, "train.steps=120")
    assert toy.at(run, 120).manifest["state"]["stage_done"] and rows(run) == []
    (row,) = files.read_rows(run / "bench_failures.jsonl")
    assert (row["bench"], row["step"], row["reason"][: len(REASON)]) == ("blindness", 120, REASON)
    assert f"bench blindness failed after step 120: {REASON}" in caplog.text


def test_a_family_whose_ablations_are_wrong_is_told_and_trains(recipe, tmp_path, monkeypatch, caplog):
    def wrong(name):
        raise PlaitError("its ablations are no mapping")

    monkeypatch.setattr(registry, "ablations", wrong)
    toy.train(recipe, tmp_path / "run", *SETTINGS, "train.steps=120")
    assert toy.at(tmp_path / "run", 120).manifest["state"]["stage_done"]
    assert "bench blindness failed after step 120: its ablations are no mapping; the run goes on" in caplog.text


def test_held_out_data_that_one_rank_cannot_open_is_told_by_all(recipe, tmp_path):
    processes.fork(2, without_data, recipe, tmp_path / "run")
    (row,) = files.read_rows(tmp_path / "run" / "bench_failures.jsonl")
    assert row["reason"] == "held.jsonl is gone here" and toy.at(tmp_path / "run", 100).manifest["state"]["stage_done"]


def without_data(recipe, run):
    def gone(self, entry):
        raise PlaitError("held.jsonl is gone here")

    if os.environ["RANK"] == "1":
        blindness.HeldOutData.of = gone
    toy.train(recipe, run, *SETTINGS, "train.steps=100")


def test_looking_changes_nothing_about_the_training(recipe, tmp_path):
    evaluate = "evaluate=[{bench: loss, every_steps: 40}]"
    for name, on in (("on", "true"), ("off", "false")):
        toy.train(recipe, tmp_path / name, *SETTINGS, "train.steps=160", evaluate, f"guard.blindness={on}")
    assert [row["step"] for row in rows(tmp_path / "on")] == [120]
    assert toy.figures(tmp_path / "off") == [row for row in toy.figures(tmp_path / "on") if not picture_use.is_row(row)]
    assert toy.same(toy.at(tmp_path / "on", 160).tensors("weights"), toy.at(tmp_path / "off", 160).tensors("weights"))


def test_a_stop_while_looking_is_heard_and_the_next_start_looks(recipe, tmp_path, monkeypatch, caplog):
    settings = (*SETTINGS, "train.steps=160", "evaluate=[{bench: loss, every_steps: 120}]")
    row = sample_losses.row

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return row(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sample_losses, "row", stopped)
        with pytest.raises(Paused):
            toy.train(recipe, tmp_path / "run", *settings)
    assert rows(tmp_path / "run") == []
    toy.train(recipe, tmp_path / "run", *settings)
    toy.train(recipe, tmp_path / "straight", *settings)
    assert rows(tmp_path / "run") == rows(tmp_path / "straight") and [row["step"] for row in rows(tmp_path / "run")] == [120]
    assert toy.same(toy.at(tmp_path / "run", 160).tensors("weights"), toy.at(tmp_path / "straight", 160).tensors("weights"))


@pytest.mark.parametrize(
    ("gain", "low", "high", "differs"),
    [(0.1, 0.05, 0.15, True), (0.1, -0.01, 0.2, False), (0.1, 0.0, 0.2, False), (-0.1, -0.2, -0.05, False), (0.004, 0.001, 0.019, False)],
)
def test_pictures_make_a_difference_where_they_surely_save_something(gain, low, high, differs):
    row = picture_use.row_of(2.0, 2.0 + gain, Difference(gain, low, high), 64)
    assert picture_use.makes_difference(row) is differs
    assert picture_use.saves_less(row, 0.02) is (high < 0.04)


def test_a_long_stage_is_warned_before_its_end_where_pictures_surely_save_little(recipe, tmp_path, monkeypatch, caplog):
    write(tmp_path, "train", 200, shuffled=True)
    monkeypatch.setattr(blindness, "_LATE_STEPS", 100)
    settings = ("train.steps=250", "evaluate=[{bench: loss, every_steps: 50}]", "trainable=[language]", "optim.lr=1e-12")
    for little in (0.5, 0.0):  # of a loss that is known to some 4 %
        monkeypatch.setattr(blindness, "_LITTLE", little)
        toy.train(recipe, tmp_path / str(little), *SETTINGS, *settings)
    assert [line.partition(":")[0] for line in said(caplog)] == ["step 100", "step 250"]


def test_a_warning_is_not_repeated_after_a_restart(recipe, tmp_path, caplog):
    write(tmp_path, "train", 200, shuffled=True)
    evaluate = "evaluate=[{bench: loss, every_steps: 40}]"
    for steps in (120, 150):  # the second start begins at 120, a step to look at, where the first one did
        toy.train(recipe, tmp_path / "run", *SETTINGS, f"train.steps={steps}", "optim.lr=1e-3", evaluate)
    assert [row["step"] for row in rows(tmp_path / "run")] == [120, 150] and len(said(caplog)) == 1


def test_ranks_look_together_and_find_what_one_finds(recipe, tmp_path):
    settings = (*SETTINGS, "train.steps=100", "train.global_batch=6")
    toy.train(recipe, tmp_path / "one", *settings)
    processes.fork(2, toy.train, recipe, tmp_path / "two", *settings, "distributed.strategy=fsdp")
    (one,), (two,) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert two["blind/samples"] == one["blind/samples"] == 16
    assert two["intervals"]["blind/gain"] == pytest.approx(one["intervals"]["blind/gain"], rel=1e-3)
    assert two["blind/other"] == pytest.approx(one["blind/other"], rel=1e-3)  # sums of gradients have another order


def test_more_ranks_than_samples_look_together_too(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(blindness, "_FEWEST", 2)
    write(tmp_path, "held", 2)
    processes.fork(
        3, toy.train, recipe, tmp_path / "run", *SETTINGS, "train.steps=100", "train.global_batch=6", "distributed.strategy=fsdp"
    )
    assert [row["blind/samples"] for row in rows(tmp_path / "run")] == [2]


def test_a_rank_that_fails_while_looking_is_told_by_all_and_training_goes_on(recipe, tmp_path):
    processes.fork(2, failing_rank, recipe, tmp_path / "run")
    (row,) = files.read_rows(tmp_path / "run" / "bench_failures.jsonl")
    assert row["reason"] == "RuntimeError: rank 1 is out of luck" and checkpoint.published(tmp_path / "run")


def failing_rank(recipe, run):
    row = sample_losses.row

    def unlucky(*arguments):
        if os.environ["RANK"] == "1":
            raise RuntimeError("rank 1 is out of luck")
        return row(*arguments)

    sample_losses.row = unlucky
    toy.train(recipe, run, *SETTINGS, "train.steps=100")


FAMILIES = {
    "theworld": """
preset: tiny
model:
  tiny: {hidden: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4, initializer_range: 0.18,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16, max_tokens: 1}
trainable: [projector, vision, language]
""",
    "molmo": "preset: debug\nmodel: {max_crops: 1}\n",
}
REAL = """
family: FAMILY
run: run
data:
  train: [{source: jsonl, path: train.jsonl}]
  validation: [{source: jsonl, path: held.jsonl}]
  workers: 0
train: {steps: 100, global_batch: 8}
optim: {lr: 5.0e-3, schedule: {name: cosine, warmup_steps: 10}}
checkpoint: {every_steps: 500}
track: {tensorboard: false}
"""
ASKED = {"from": "human", "value": "<image>\nWhich colour?"}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


def write_colours(folder, name, count, *, shuffled):
    """Pictures of one colour, asked for its name; shuffled, each answer is given to each picture as often."""
    names = list(COLOURS)
    for colour, value in COLOURS.items():
        Image.new("RGB", (16, 16), value).save(folder / f"{colour}.png")
    pairs = [(names[number % 4], names[number // 4 % 4 if shuffled else number % 4]) for number in range(count)]
    rows = [{"image": f"{shown}.png", "conversations": [ASKED, {"from": "gpt", "value": answer}]} for shown, answer in pairs]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shuffled", [False, True])
def test_families_that_see_are_warned_only_where_pictures_are_mixed_up(tmp_path, monkeypatch, capfd, family, shuffled):
    monkeypatch.chdir(tmp_path)
    write_colours(tmp_path, "train", 400, shuffled=shuffled)
    write_colours(tmp_path, "held", 60, shuffled=False)
    (tmp_path / "c.yaml").write_text(REAL.replace("FAMILY", family) + FAMILIES[family])
    assert cli.main(["train", "c.yaml"]) == 0
    out, err = capfd.readouterr()
    assert (f"warning: step 100: {BLIND}" in err) is shuffled
    assert ("step 100: pictures make a difference: the loss is " in out) is not shuffled
