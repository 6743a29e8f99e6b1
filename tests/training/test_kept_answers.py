"""Answers that a run keeps of its evaluations: the first ones, short, once per step."""

from plait import files
from plait.training.figures import kept_answers


def row(number, **more):
    return {"id": f"s{number}", "question": "q" * 2000, "answer": "a", "gold": "b", "correct": False, "world": "on", **more}


def test_the_first_eight_answers_are_kept_with_what_a_reader_needs(tmp_path):
    rows = [{"id": "bad", "bad": "no picture"}, *(row(i, task="colour") for i in range(9))]
    kept_answers.keep(tmp_path, 20, 2, "accuracy", rows)
    (kept,) = files.read_rows(tmp_path / "answers.jsonl")
    assert (kept["step"], kept["stage"], kept["bench"]) == (20, 2, "accuracy")
    assert [answer["id"] for answer in kept["answers"]] == [f"s{i}" for i in range(8)]
    short = {"id": "s0", "task": "colour", "question": "q" * 1000, "answer": "a", "gold": "b", "correct": False}
    assert kept["answers"][0] == short


def test_a_bench_without_answers_keeps_nothing(tmp_path):
    kept_answers.keep(tmp_path, 20, 1, "grid", [{"id": "a", "picture": "a.png"}])
    assert not (tmp_path / "answers.jsonl").exists()
