"""`plait eval --ablate`: the same samples in three ways, the differences with their certainty, and the sentence on what they say."""

import json

import pytest
from PIL import Image

from plait import cli
from plait.commands.actions.evaluation import ablations
from plait.commands.actions.evaluation.ablations import Comparison, Difference
from plait.engine.evaluation import Bench
from plait.families.ablation import ablated
from plait.keys import rng
from tests.families.test_ablation import WORD, predict, summarise

RUN = """
family: FAMILY
run: run
data:
  train: [{source: scenes, limit: 16, options: &scenes {size: [32, 32], objects: 1, tasks: [colour]}}]
  validation: [{source: scenes, limit: 12, options: *scenes}]
  workers: 0
train: {steps: 1, global_batch: 4}
optim: {schedule: {warmup_steps: 0}}
track: {tensorboard: false}
"""
TINY = {
    "theworld": """
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
""",
    "molmo": "preset: debug\n",
    "nanodit": """
model: {space: pixels, depth: 1, hidden: 48, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
""",
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    def train(family):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.yaml").write_text(RUN.replace("FAMILY", family) + TINY[family])
        assert cli.main(["train", "c.yaml"]) == 0

    return train


@pytest.mark.parametrize(
    ("family", "bench", "name"),
    [
        ("theworld", "accuracy", "world"), ("theworld", "loss", "image"), ("molmo", "loss", "image"), ("molmo", "accuracy", "image"),
        ("nanodit", "loss", "text"), ("nanodit", "validation", "text"),
    ],
)  # fmt: skip
def test_every_family_is_measured_with_without_and_with_anothers_input(trained, capsys, tmp_path, family, bench, name):
    trained(family)
    capsys.readouterr()
    command = ["eval", "run", "--bench", bench, "--ablate", name, "--batch=4"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    (path,) = (tmp_path / "run" / "eval").glob(f"{bench}-step-*-ablate-{name}/metrics.json")
    metrics = json.loads(path.read_text())
    figure, first = next(iter(metrics["ablation"].items()))
    assert metrics["bench"] == f"{bench} with and without {name}" and metrics["count"] == 12
    assert first["on"] == metrics[figure] and first["off"] == metrics[f"{figure}/{name}_off"]
    better = -1 if bench in ("loss", "validation") else 1
    for pair in ("on-off", "on-shuffled", "shuffled-off"):
        a, b = pair.split("-")
        assert first[pair]["value"] == pytest.approx(better * (first[a] - first[b]))
        if first[pair]["low"] is None:  # one step of nanodit: nothing moves yet
            assert family == "nanodit" and first[pair] == {"value": 0.0, "low": None, "high": None, "alike": 12}
        else:
            assert first[pair]["low"] <= first[pair]["value"] <= first[pair]["high"]
    assert f"  {figure}: on " in said and f"{figure}/{name}_off" not in said and metrics["verdict"] in " ".join(said.split())
    assert cli.main(command) == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_a_bench_that_only_draws_keeps_the_pictures_of_all_ways(trained, tmp_path, capsys):
    trained("nanodit")
    assert cli.main(["eval", "run", "--bench=grid", "--ablate=text", "--samples=4"]) == 0
    (path,) = (tmp_path / "run" / "eval").glob("grid-step-*-ablate-text/predictions.json")
    rows = json.loads(path.read_text())
    drawn = [[row["picture"], *(row["ways"][way]["picture"] for way in ("off", "shuffled"))] for row in rows]
    assert len({picture for pictures in drawn for picture in pictures}) == 12
    assert all((tmp_path / picture).is_file() for pictures in drawn for picture in pictures)
    assert "bench grid measures nothing that could be compared" in capsys.readouterr().out
    assert cli.main(["eval", "run", "--bench=edit", "--samples=4", "--against=base"]) == 0
    out = capsys.readouterr().out
    assert "bench edit measures nothing that could be compared" in out and not {"hurts", "beats", "loses"} & {*out.split()}
    assert cli.main(["eval", "run", "--bench=edit", "--samples=4", "--ablate=text"]) == 2
    reason = "none of 4 samples has a text to exchange, as where --ablate text leaves it out"
    assert capsys.readouterr().err.endswith(f"plait: {reason}\n")
    told = "--evaluate=[{bench: edit, samples: 2}, {bench: validation, samples: 2}]"
    assert cli.main(["train", "c.yaml", "--run=compared", told, "--guard.forgetting=0.05"]) == 0
    (ended,) = (tmp_path / "compared/ledger").glob("stage-1-*.json")
    assert [*json.loads(ended.read_text())["benches"]] == ["validation"]


def test_several_benches_are_measured_on_one_model(trained, capsys, tmp_path):
    trained("theworld")
    assert cli.main(["eval", "run", "--bench=loss,accuracy", "--ablate=image", "--samples=8"]) == 0
    assert sorted(path.name for path in (tmp_path / "run/eval").iterdir()) == [
        "accuracy-step-00000001-ablate-image", "loss-step-00000001-ablate-image",
    ]  # fmt: skip
    assert cli.main(["eval", "run", "--bench=loss,accuracy", "--samples=8", "--out=out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accuracy", "loss"]


def test_several_inputs_are_left_out_each_in_turn(trained, capsys, tmp_path):
    trained("theworld")
    assert cli.main(["eval", "run", "--bench=loss", "--ablate=image,world", "--samples=8"]) == 0
    assert sorted(path.name for path in (tmp_path / "run/eval").iterdir()) == [
        "loss-step-00000001-ablate-image", "loss-step-00000001-ablate-world",
    ]  # fmt: skip
    assert cli.main(["eval", "run", "--bench=loss,accuracy", "--ablate=image,world", "--samples=8", "--out=out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{bench}-ablate-{name}" for bench in ("accuracy", "loss") for name in ("image", "world")
    ]  # fmt: skip
    capsys.readouterr()
    for given, words in (("image,image", "--ablate names 'image' twice"), ("image,eyes", "has no input 'eyes' that can be left out")):
        assert cli.main(["eval", "run", "--bench=loss", f"--ablate={given}", "--out=none"]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_an_evaluation_of_training_has_the_three_ways(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(TINY, "theworld", TINY["theworld"] + "evaluate: [{bench: accuracy, ablate: world}, {bench: loss, ablate: image}]\n")
    trained("theworld")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "eval/accuracy" in row]
    assert {"eval/accuracy/world_off", "eval/accuracy/world_shuffled", "eval/loss", "eval/loss/image_off"} <= row.keys()


@pytest.mark.parametrize(("family", "inputs"), [("theworld", "image,world"), ("molmo", "image"), ("nanodit", "text")])
def test_a_loss_with_its_input_is_the_plain_loss_with_the_same_random_numbers(trained, tmp_path, family, inputs):
    trained(family)
    for words in (["--batch=1", "--out=one"], ["--batch=5", "--out=five"], [f"--ablate={inputs}", "--out=with"]):
        assert cli.main(["eval", "run", "--bench=loss", *words]) == 0
    assert cli.main(["eval", "run", "--bench=loss", f"--ablate={inputs}", "--against=base", "--out=against"]) == 0
    assert cli.main(["eval", "run", "--bench=loss", "--against=base", "--out=rows"]) == 0
    one, five = (json.loads((tmp_path / name / "metrics.json").read_text())["loss"] for name in ("one", "five"))
    shown = [json.loads(path.read_text()) for name in ("with", "against", "rows") for path in tmp_path.glob(f"{name}*/**/metrics.json")]
    own = [metrics for metrics in shown if metrics["checkpoint"].endswith("step-00000001")]
    assert len(own) == 2 * len(inputs.split(",")) + 1 and {metrics["loss"] for metrics in own} == {one}, "to the bit, a sample at a time"
    assert one == pytest.approx(five, rel=1e-5), "sums of batches are rounded otherwise"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--bench=accuracy", "--ablate=worlds"],
            "family 'theworld' has no input 'worlds' that can be left out (ablate): known: world, image",
        ),
        (["--bench=nothing", "--ablate=world"], "--bench 'nothing' is unknown"),
    ],
)
def test_an_unknown_input_is_refused_with_those_that_are_known(trained, capsys, options, words):
    trained("theworld")
    assert cli.main(["eval", "run", *options]) == 2
    assert words in capsys.readouterr().err


def test_an_input_that_the_model_lacks_is_refused(trained, capsys, monkeypatch):
    monkeypatch.setitem(TINY, "theworld", "preset: tiny\nmodel: {world: off}\ntrainable: [language]\n")
    trained("theworld")
    assert cli.main(["eval", "run", "--bench=accuracy", "--ablate=world"]) == 2
    assert "there is no world to leave out (ablate): model.world is off" in capsys.readouterr().err


def compared(values, lower=False):
    """The comparison of a bench whose rows have these figures (on, off, shuffled)."""
    bench = Bench(predict, lambda rows: {"score": sum(row["value"] for row in rows) / len(rows)}, means=True, lower=lower)
    rows = [{"id": "x", "value": on, "ways": {"off": {"value": off}, "shuffled": {"value": other}}} for on, off, other in values]
    return ablations.compare(ablated(bench, "word", WORD), rows)[0]


NOISE = [float(value) for value in rng("noise").normal(0, 0.1, 200)]


@pytest.mark.parametrize(
    ("gains", "lower", "words"),
    [
        ((1.0, 0.5, 0.5), False, "the content of word is used"),
        ((0.5, 1.0, 1.0), True, "the content of word is used"),
        ((1.0, 0.5, 1.0), False, "word helps, but another sample's does as well: not its content"),
        ((0.5, 1.0, 0.5), False, "word hurts"),
        ((1.0, 1.0, 0.5), False, "the content of word is read (another's misleads), but nothing is gained over having none"),
        ((1.0, 1.0, 1.0), False, "no use of word shows in 200 samples"),
    ],
)
def test_the_verdict_says_what_the_differences_mean(gains, lower, words):
    on, off, shuffled = gains
    values = [(on + NOISE[i], off + NOISE[i - 7], shuffled + NOISE[i - 50]) for i in range(200)]
    one = compared(values, lower)
    assert ablations.verdict("word", one).endswith(f": {words}")
    assert one.differences["on-off"].value == pytest.approx((off - on if lower else on - off), abs=0.05)


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ((1, 1, 0), "the content of world is used"),
        ((1, 0, 1), "world helps, but another sample's does as well: not its content"),
        ((1, 0, 0), "world helps; whether by its content does not show in 50 samples"),
        ((1, -1, 1), "world helps, but another sample's helps more: not its content"),
        ((0, 1, -1), "the content of world is read (another's misleads), but nothing is gained over having none"),
        ((0, 1, 0), "the content of world is read (another's does worse), but nothing is gained over having none"),
        ((0, 0, 0), "no use of world shows in 50 samples"),
        ((0, 0, 1), "no use of the content of world shows in 50 samples"),
        ((0, -1, 1), "the content of world misleads: another sample's does better, and nothing is gained over having none"),
        ((-1, 1, -1), "world hurts, and another sample's hurts more: its content is read"),
        ((-1, 0, -1), "world hurts"),
        ((-1, -1, 0), "world hurts by its content: another sample's does better"),
    ],
)
def test_each_outcome_has_its_own_meaning(signs, words):
    """The signs of on against off, of on against shuffled, and of shuffled against off."""
    pairs = {pair: Difference(sign * 0.1, sign * 0.1 - 0.05, sign * 0.1 + 0.05) for pair, sign in zip(PAIRS, signs, strict=True)}
    said = ablations.verdict("world", Comparison("accuracy", {}, pairs, points=True, samples=50))
    assert said.endswith(f": {words}")
    verbs = {1: "beats", 0: "is level with", -1: "loses to"}
    assert all(f"{pair.split('-')[0]} {verbs[sign]} {pair.split('-')[1]}" in said for pair, sign in zip(PAIRS, signs, strict=True))


PAIRS = ("on-off", "on-shuffled", "shuffled-off")


def test_answers_that_never_differ_are_level_as_surely_as_they_are_many():
    bench = ablated(Bench(predict, summarise), "word", WORD)
    row = {"id": "1", "correct": True, "ways": {"off": {"correct": True}, "shuffled": {"correct": True}}}
    (one,) = ablations.compare(bench, [row] * 20)
    assert "on is level with off (+0.0 points [-13.9, +13.9])" in ablations.verdict("word", one)
    assert ablations.verdict("word", one).endswith(": no use of word shows in 20 samples")


def test_captions_that_never_differ_have_no_interval():
    one = compared([(0.5, 0.5, 0.5)] * 20)
    assert "on is level with off (no difference on 20 samples)" in ablations.verdict("word", one)
    assert ablations.as_json([one])["score"]["on-off"] == {"value": 0.0, "low": None, "high": None, "alike": 20}


def by_task(rows):
    tasks = {row["task"] for row in rows}
    mean = {task: [row["correct"] for row in rows if row["task"] == task] for task in sorted(tasks)}
    return {"accuracy": sum(row["correct"] for row in rows) / len(rows), **{f"accuracy/{t}": sum(v) / len(v) for t, v in mean.items()}}


def test_a_task_that_is_equal_in_all_ways_is_in_the_table_and_one_that_is_not_is_told():
    bench = ablated(Bench(predict, by_task), "word", WORD)
    used, same = (
        {"id": task, "correct": True, "task": task, "ways": {way: {"correct": right, "task": task} for way in ("off", "shuffled")}}
        for task, right in (("direction", False), ("caption", True))
    )
    listed = ablations.compare(bench, [used] * 30 + [same] * 20)
    assert [one.figure for one in listed] == ["accuracy", "accuracy/caption", "accuracy/direction"]
    (line,) = [line for line in ablations.lines("word", listed) if line.startswith("accuracy/caption")]
    assert line.split("  ")[-1].strip() == "+0.0 points [-13.9, +13.9]" and "1.0000" in line
    verdict, of_tasks = ablations.sentences("word", listed)
    assert verdict.endswith("the content of word is used")
    assert of_tasks == "by task: caption: no use of word shows in 20 samples; direction: the content of word is used"
    assert len(ablations.sentences("word", ablations.compare(bench, [used] * 30))) == 1


def test_terms_of_a_loss_are_no_tasks():
    def terms(rows):
        return {"loss": rows[0]["a"], "loss/text": rows[0]["a"], "loss/z_loss": rows[0]["b"]}

    row = {"id": "1", "a": 1.0, "b": 2.0, "ways": {"off": {"a": 1.5, "b": 1.0}, "shuffled": {"a": 2.0, "b": 1.0}}}
    rows = [row | {"ways": {way: {name: v + n / 99 for name, v in one.items()} for way, one in row["ways"].items()}} for n in range(20)]

    def mean(chosen):
        each = [terms([one]) for one in chosen]
        return {name: sum(one[name] for one in each) / len(each) for name in each[0]}

    listed = ablations.compare(ablated(Bench(predict, mean, means=True, lower=True), "word", WORD), rows)
    assert [one.signs[0] for one in listed] == [1, 1, -1]
    (verdict,) = ablations.sentences("word", listed)
    assert verdict.endswith("the content of word is used")


def test_differences_of_shares_are_told_in_points_and_others_as_they_are():
    one = Difference(0.031, 0.012, 0.05)
    assert one.text(points=True) == "+3.1 points [+1.2, +5.0]"
    assert one.text(points=False) == "+0.0310 [+0.0120, +0.0500]"


def test_a_sample_that_had_no_other_beside_it_is_asked_again_with_more(trained, capsys, tmp_path):
    trained("theworld")
    command = ["eval", "run", "--bench=accuracy", "--ablate=world", "--out=out"]
    assert cli.main([*command, "--samples=1"]) != 0
    assert "no other world among those beside it" in capsys.readouterr().err
    assert cli.main([*command, "--samples=10"]) == 0
    assert "1 of 1 samples could not be used before: trying them again" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["samples"] == 10 and "bad_samples" not in metrics
    assert cli.main([*command[:-1], "--out=whole", "--samples=10"]) == 0
    assert (tmp_path / "whole/predictions.jsonl").read_bytes() == (tmp_path / "out/predictions.jsonl").read_bytes()


def test_a_sample_with_the_same_first_picture_is_no_partner_of_the_world(trained, capsys, tmp_path):
    trained("theworld")
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    said = [{"role": "user", "content": "<image><image>what?"}, {"role": "assistant", "content": "red"}]
    rows = [{"images": ["a.png", f"{name}.png"], "messages": said} for name in "bc"]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", "run", "--bench=accuracy", f"--data={tmp_path / 'same.jsonl'}"]
    assert cli.main([*command, "--ablate=world"]) != 0
    assert "no other world among those beside it" in capsys.readouterr().err
    assert cli.main([*command, "--ablate=image"]) == 0


def test_a_clip_that_begins_alike_is_no_partner_where_the_world_sees_its_first_frame(trained, capsys, tmp_path):
    trained("theworld")
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    said = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]
    rows = [{"frames": ["a.png", *[f"{name}.png"] * 4], "messages": said} for name in "bc"]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["eval", "run", "--bench=accuracy", "--data=clips.jsonl", "--ablate=world"]) != 0
    assert "no other world among those beside it" in capsys.readouterr().err
