"""Benches: what counts as right, the three ways, and no silent evaluation without a world."""

import pytest
import torch

from plait.assembly import sample_losses
from plait.assembly.held_out import ablation_of
from plait.config.schema import RunConfig
from plait.errors import PlaitError
from plait.families.ablation import ablated, partners
from plait.families.theworld import evaluate
from plait.families.theworld.benchmarks.short_answers import normalise
from plait.families.theworld.evaluate import ablations, benches
from plait.families.theworld.loss import Loss

from .conftest import is_correct, sample


@pytest.fixture
def spoken(monkeypatch):
    """Answers that tell what the model was shown: the number of world tokens and the first pixel of the world picture."""
    shown = []

    def answer(model, inputs, examples, *, max_new_tokens):
        shown.append(list(examples))
        return [f"{example.world_tokens} {int(example.frames.sum())}" for example in examples]

    monkeypatch.setattr(evaluate, "answers", answer)
    return shown


def test_normalise_ignores_case_punctuation_and_space():
    assert normalise("  The  Frog.\n") == normalise("the frog")
    assert normalise("frogs") != normalise("frog")
    assert is_correct("Frog.", "frog", {})
    assert is_correct("a frog", "frog", {})
    assert not is_correct("a frog and a toad", "frog", {})


def test_scenes_are_judged_by_their_truth():
    fields = {"task": "count", "truth": 3, "objects": []}
    assert is_correct("There are three.", "3", fields)
    assert not is_correct("3 or 4", "3", fields)


def test_accuracy_of_a_random_model_has_a_row_per_sample_and_counts_world_tokens(make):
    _, model, inputs = make()
    samples = [sample(number, fields={"task": ["a", "b"][number % 2]}) for number in range(5)]
    bench = benches["accuracy"]
    rows = bench.predict(model, samples, inputs, batch=2)
    assert [(row["id"], row["gold"], row["world_tokens"]) for row in rows] == [(s["id"], "a small green frog", 16) for s in samples]
    figures = bench.summarise(rows)
    assert (figures["samples"], figures["world_tokens"]) == (5, 16)
    assert {"accuracy", "accuracy/a", "accuracy/b"} <= set(figures)


def test_accuracy_does_not_depend_on_the_batch(make):
    _, model, inputs = make()
    samples = [sample(number, say="frog " * (number + 1)) for number in range(5)]
    one, all_at_once = (benches["accuracy"].predict(model, samples, inputs, batch=size) for size in (1, 5))
    assert one == all_at_once


def test_accuracy_is_the_share_of_exact_answers_per_task():
    row = {"id": "1", "world_tokens": 16, "world": "on"}
    rows = [{**row, "correct": right, "task": task} for right, task in [(True, "a"), (False, "a"), (True, "b"), (True, None)]]
    figures = benches["accuracy"].summarise(rows)
    assert (figures["accuracy"], figures["accuracy/a"], figures["accuracy/b"]) == (0.75, 0.5, 1.0)


def test_world_model_without_world_tokens_is_not_measured(make):
    _, model, inputs = make()
    rows = benches["accuracy"].predict(model, [sample(), sample()], inputs, batch=2)
    with pytest.raises(PlaitError, match="none of 2 samples showed the world encoder anything"):
        benches["accuracy"].summarise(rows)


def test_world_off_is_measured_without_world_tokens(make):
    _, model, inputs = make(world=False)
    figures = benches["accuracy"].summarise(benches["accuracy"].predict(model, [sample(1)], inputs, batch=1))
    assert figures["world_tokens"] == 0
    assert ablations["world"].lacks(inputs.config) == "model.world is off" and ablations["image"].lacks(inputs.config) is None


def test_ablation_shows_own_no_and_anothers_world(make, spoken):
    _, model, inputs = make()
    samples = [sample(number, say=f"16 {int(inputs.prompt(sample(number)).frames.sum())}") for number in range(4)]
    bench = ablated(benches["accuracy"], "world", ablations["world"])
    rows = bench.predict(model, samples, inputs, batch=3, moment="")
    golds = [row["gold"] for row in rows]
    assert [row["answer"] for row in rows] == golds
    assert [row["ways"]["off"]["answer"] for row in rows] == ["0 0"] * 4
    assert [row["ways"]["shuffled"]["answer"] for row in rows] == [golds[2], golds[3], golds[0], golds[1]]
    figures = bench.summarise(rows)
    assert [figures[f"accuracy{way}"] for way in ("", "/world_off", "/world_shuffled")] == [1.0, 0.0, 0.0]


def test_the_world_is_left_out_and_exchanged_alone(make, spoken):
    _, model, inputs = make()
    bench = ablated(benches["accuracy"], "world", ablations["world"])
    bench.predict(model, [sample(1), sample(2)], inputs, batch=2, moment="")
    own, off, shuffled = (batch[0] for batch in spoken)
    assert (own.pixels == off.pixels).all() and (own.pixels == shuffled.pixels).all()
    assert (own.row.ids == shuffled.row.ids).all() and off.world_tokens == 0
    assert (own.frames != shuffled.frames).any()


def test_without_pictures_neither_encoder_is_shown_anything_and_no_mark_is_left(make, spoken):
    _, model, inputs = make()
    bench = ablated(benches["accuracy"], "image", ablations["image"])
    bench.predict(model, [sample(1), sample(2)], inputs, batch=2, moment="")
    own, off, shuffled = (batch[0] for batch in spoken)
    assert (len(off.pixels), len(off.frames), off.world_tokens) == (0, 0, 0) and len(own.pixels) == 1
    assert (own.pixels != shuffled.pixels).any() and (own.frames != shuffled.frames).any()
    assert "<image>" not in inputs.chat.decode(off.row.ids.tolist(), special=True)


@torch.no_grad()
def test_the_loss_in_three_ways_is_that_of_training(make):
    config, model, inputs = make()
    samples = [sample(number, say="red " * number) for number in (1, 2, 3)]
    loss = Loss(config)
    bench = ablated(sample_losses.bench(loss), "world", ablations["world"])
    rows = bench.predict(model, samples, inputs, batch=2, moment="")
    figures = bench.summarise(rows)
    worlds = {"loss": lambda i: samples[i], "loss/world_off": lambda i: None, "loss/world_shuffled": lambda i: samples[(i + 1) % 3]}
    for name, world_of in worlds.items():
        batch = inputs.collate([inputs.encode({**one, "world_of": world_of(i)}, 0) for i, one in enumerate(samples)])
        assert figures[name] == pytest.approx(float(loss.sums(model, batch)["loss"]) / float(loss.weights(batch)["loss"]), rel=1e-5)
    assert len({figures[name] for name in worlds}) == 3
    assert figures["samples"] == 3.0


def test_a_sample_that_cannot_be_read_is_compared_in_no_way(make):
    _, model, inputs = make()
    bench = ablated(benches["accuracy"], "world", ablations["world"])
    rows = bench.predict(model, [sample(1, say="red"), sample(images=[b"no picture"]), sample(2, say="red")], inputs, batch=3, moment="")
    assert "not a readable image" in rows[1]["bad"]
    assert all({"off", "shuffled"} == rows[number]["ways"].keys() for number in (0, 2))  # each is shown the other's, not that one's
    assert (bench.summarise(rows)["samples"], bench.summarise(rows)["bad_samples"]) == (2, 1)


def test_unreadable_sample_is_counted_not_hidden(make):
    _, model, inputs = make()
    rows = benches["accuracy"].predict(model, [sample(1), sample(images=[b"no picture"]), sample(2)], inputs, batch=3)
    figures = benches["accuracy"].summarise(rows)
    assert "not a readable image" in rows[1]["bad"]
    assert (figures["samples"], figures["bad_samples"]) == (2, 1)


def test_an_empty_answer_is_never_right():
    assert not is_correct("", ".", {})
    assert not is_correct("\u200b", "...", {})


def others_of_the_world(steps, *shown):
    """The partners of samples for a model with so many world steps."""
    config = RunConfig(family="theworld", model={"base": "tiny", "world": {"image_size": 32, "steps": steps}})
    ablation = ablation_of(config, "world")
    return partners(shown, list(map(ablation.content, shown)), ablation)


def test_a_partner_of_the_world_differs_in_what_the_encoder_sees():
    first, same, other = ({"images": [b"a", b"b"]}, {"images": [b"a", b"c"]}, {"images": [b"d", b"b"]})
    assert others_of_the_world(0, first, same) == [None, None]
    assert others_of_the_world(0, first, same, other) == [2, 2, 0]


@pytest.mark.parametrize("pictures", [[], [b"p"]])
def test_clips_that_differ_beyond_what_the_world_encoder_takes_are_no_partners(pictures):
    clips = [
        {"images": pictures, "frames": [bytes([part]) for part in parts]} for parts in ([*range(6)], [0, 9, 2, 3, 4, 5], [*range(5), 9])
    ]
    assert others_of_the_world(0, *clips) == [None, None, None]
    assert others_of_the_world(1, *clips) == [1, 2, 1]
