"""Benches: what counts as right, the three ways, and no silent evaluation without a world."""

import pytest
import torch

from plait.errors import PlaitError
from plait.families.theworld import evaluate
from plait.families.theworld.evaluate import benches, is_correct
from plait.families.theworld.loss import Loss
from plait.families.theworld.short_answers import normalise

from .conftest import sample


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
    with pytest.raises(PlaitError, match="needs a world"):
        benches["world_ablation"].predict(model, [sample(1)], inputs, batch=1)


def test_ablation_shows_own_no_and_anothers_world(make, spoken):
    _, model, inputs = make()
    samples = [sample(number, say=f"16 {int(inputs.prompt(sample(number)).frames.sum())}") for number in range(4)]
    rows = benches["world_ablation"].predict(model, samples, inputs, batch=3)
    golds = [row["gold"] for row in rows]
    assert [row["ways"]["on"]["answer"] for row in rows] == golds
    assert [row["ways"]["off"]["answer"] for row in rows] == ["0 0"] * 4
    assert [row["ways"]["shuffled"]["answer"] for row in rows] == [golds[2], golds[3], golds[0], golds[1]]
    figures = benches["world_ablation"].summarise(rows)
    assert [figures[f"accuracy/world_{way}"] for way in ("on", "off", "shuffled")] == [1.0, 0.0, 0.0]
    assert figures["accuracy"] == 1.0


def test_ablation_changes_the_world_alone(make, spoken):
    _, model, inputs = make()
    benches["world_ablation"].predict(model, [sample(1), sample(2)], inputs, batch=2)
    own, _, shuffled = (batch[0] for batch in spoken)
    assert (own.pixels == shuffled.pixels).all()
    assert (own.row.ids == shuffled.row.ids).all()
    assert (own.frames != shuffled.frames).any()


def test_ablation_needs_another_picture(make):
    _, model, inputs = make()
    with pytest.raises(PlaitError, match="needs two samples with different pictures"):
        benches["world_ablation"].predict(model, [sample(1), sample(1)], inputs, batch=2)


@torch.no_grad()
def test_the_loss_with_three_worlds_is_that_of_training(make):
    config, model, inputs = make()
    samples = [sample(number, say="red " * number) for number in (1, 2, 3)]
    rows = benches["world_loss"].predict(model, samples, inputs, batch=2)
    figures = benches["world_loss"].summarise(rows)
    for way, others in (("on", None), ("off", None), ("shuffled", (1, 2, 0))):
        shown = [{"world": way != "off", "world_of": samples[others[i]] if others else None} for i in range(3)]
        batch = inputs.collate([inputs.encode(one, 0, **world) for one, world in zip(samples, shown, strict=True)])
        loss = Loss(config)
        expected = float(loss.sums(model, batch)["loss"]) / float(loss.weights(batch)["loss"])
        assert figures[f"loss/world_{way}"] == pytest.approx(expected, rel=1e-5)
    assert figures["loss"] == figures["loss/world_on"] != figures["loss/world_off"] != figures["loss/world_shuffled"]
    assert figures["samples"] == 3.0


def test_the_loss_with_three_worlds_needs_a_world_pictures_and_something_to_read(make):
    _, model, inputs = make(world="off")
    with pytest.raises(PlaitError, match=r"bench world_loss needs a world; model\.world is off: use bench loss"):
        benches["world_loss"].predict(model, [sample(1)], inputs, batch=1)
    _, model, inputs = make()
    rows = benches["world_loss"].predict(model, [sample(1), sample(images=[b"no picture"]), sample(2)], inputs, batch=3)
    assert "not a readable image" in rows[1]["bad"]
    figures = benches["world_loss"].summarise(rows)
    assert (figures["samples"], figures["bad_samples"]) == (1, 2)  # nor can the sample be compared that would be shown that picture
    with pytest.raises(PlaitError, match=r"none of 1 samples can be used: .*not a readable image"):
        benches["world_loss"].summarise(rows[1:2])


def test_unreadable_sample_is_counted_not_hidden(make):
    _, model, inputs = make()
    rows = benches["accuracy"].predict(model, [sample(1), sample(images=[b"no picture"]), sample(2)], inputs, batch=3)
    figures = benches["accuracy"].summarise(rows)
    assert "not a readable image" in rows[1]["bad"]
    assert (figures["samples"], figures["bad_samples"]) == (2, 1)
