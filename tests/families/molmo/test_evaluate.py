"""Benches: scores from fields, nothing dropped, and one line for a sample without what a bench compares with."""

import pytest

from plait.errors import PlaitError
from plait.families.molmo import evaluate
from plait.families.molmo.evaluate import RULES, benches
from tests.families.molmo.conftest import sample

SCENE = {"task": "points", "truth": [1], "size": [100, 50], "objects": [{"x": 10, "y": 10, "radius": 5}, {"x": 50, "y": 25, "radius": 5}]}


def scored(bench, answer, /, **fields):
    return RULES[bench](answer, {"id": "s", "messages": [], "fields": fields})


@pytest.mark.parametrize(
    ("bench", "answer", "fields", "score"),
    [
        ("accuracy", "A Frog.", {"answer": "a frog"}, 1.0),
        ("vqa", "2", {"answers": ["two", "2", "three"]}, 2 / 3),
        ("anls", "hallo", {"answers": ["hello"]}, 0.8),
        ("relaxed_accuracy", "104", {"answer": "100"}, 1.0),
        ("multiple_choice", "The answer is B", {"options": ["x", "y"], "answer_idx": 1}, 1.0),
        ("counting", "four", {"count": 5}, 0.0),
        ("pointing", '<point x="50.0" y="50.0" alt="it">it</point>', {"points": [[51, 50]]}, 1.0),
        ("pointing", '<point x="50.0" y="50.0" alt="it">it</point>', {"points": [[51, 50]], "masks": [[[1, 0], [0, 0]]]}, 0.0),
        ("pointing", '<point x="48.0" y="45.0" alt="it">it</point>', SCENE, 1.0),
        ("mmmu", "(B)", {"options": ["x", "y"], "answer_idx": 1}, 1.0),
    ],
)
def test_benches_score_answers(bench, answer, fields, score):
    assert scored(bench, answer, **fields)["score"] == pytest.approx(score)


def test_counting_says_how_near_and_under_which_count():
    assert scored("counting", "four", count=5) == {"score": 0.0, "within_one": 1.0, "score/count_5": 0.0}


def test_benches_name_the_field_they_miss():
    with pytest.raises(PlaitError, match="compares with the field 'count'; sample s has the fields colour"):
        scored("counting", "four", colour="red")


def test_predict_answers_every_sample_in_order(make):
    _, model, inputs = make()
    samples = [{**sample(n), "id": str(n)} for n in range(5)]
    rows = benches["accuracy"].predict(model, samples, inputs, batch=2)
    assert [row["id"] for row in rows] == list("01234")
    assert {"question", "answer", "gold", "correct", "score", "task"} <= rows[0].keys()


def test_predict_keeps_samples_that_cannot_be_read(make):
    _, model, inputs = make()
    rows = benches["accuracy"].predict(model, [sample(1), {**sample(), "images": [b"no image"]}], inputs, batch=2)
    assert "not a readable image" in rows[1]["bad"]
    assert benches["accuracy"].summarise(rows)["bad_samples"] == 1.0


def test_summarise_gives_means_per_task():
    rows = [{"id": str(n), "task": task, "score": score} for n, (task, score) in enumerate([("a", 1.0), ("a", 0.0), ("b", 1.0)])]
    figures = benches["accuracy"].summarise(rows)
    assert figures == {"score": pytest.approx(2 / 3), "score/a": 0.5, "score/b": 1.0, "samples": 3.0}


def test_in_mask_reads_percent_of_rows_and_columns():
    mask = [[0, 1], [0, 0]]
    assert evaluate.in_mask(mask, (75, 25))
    assert not evaluate.in_mask(mask, (25, 75))
    assert evaluate.in_mask(mask, (100, 0))


@pytest.mark.parametrize(("bench", "fields"), [("exact_match", {"answers": ["", "cat"]}), ("pointing", {"points": []})])
def test_an_empty_answer_is_counted_and_never_right(make, monkeypatch, bench, fields):
    _, model, inputs = make()
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, *, max_new_tokens: [" \n" for _ in examples])
    rows = benches[bench].predict(model, [{**sample(), "fields": fields}], inputs, batch=1, moment="")
    assert (rows[0]["correct"], rows[0]["score"], rows[0]["failed"]) == (False, 0.0, "empty")
    assert benches[bench].summarise(rows)["empty_answers"] == 1
