"""`plait eval` on several ranks: no sample lost or doubled, equal figures, whatever the numbers."""

import json
import os
from dataclasses import replace

import pytest

from plait.commands.actions import generate
from plait.commands.actions.evaluation import evaluate
from plait.commands.actions.evaluation.subject import Saved
from plait.engine.evaluation import Bench
from plait.families import registry
from tests import processes, toy_family


def predict(model, samples, inputs, *, batch, moment):
    """Whether the model has the sign of y right, sample by sample."""
    assert samples, "a rank without samples predicts nothing"
    rows = []
    for sample in samples:
        answer = float(model(inputs.collate([inputs.encode(sample, 0)]))[0])
        gold = sample["fields"]["y"]
        rows.append({"id": sample["id"], "answer": answer, "gold": gold, "correct": (answer > 0) == (gold > 0)})
    return rows


def summarise(rows):
    return {"accuracy": sum(row["correct"] for row in rows) / len(rows), "count": float(len(rows))}


@pytest.fixture
def run(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    monkeypatch.setattr(registry, "benches", lambda family: {"signs": Bench(predict, summarise)})
    return toy_family.train(recipe, tmp_path / "run", "stages=[]", "evaluate=[]", "checkpoint.best=null")


def measure(run, bench, samples, batch, out):
    return evaluate.evaluate(Saved(run), bench, evaluate.EvaluateOptions(samples=samples, batch=batch, show=0, out=out)).result.figures


@pytest.mark.parametrize(("samples", "batch"), [(8, 2), (7, 2), (2, 1), (1, 3)])
def test_every_sample_is_answered_once_and_figures_are_equal(run, tmp_path, samples, batch):
    for bench in ("signs", "loss"):
        alone = measure(run, bench, samples, batch, tmp_path / "1")
        for size in (2, 3):
            figures = processes.run(size, measure, run, bench, samples, batch, tmp_path / str(size))
            assert all(of_rank == pytest.approx(alone, rel=1e-6) for of_rank in figures)  # fp32: sums over other shards
    rows = [json.loads((tmp_path / str(size) / "predictions.json").read_text()) for size in (1, 2, 3)]
    assert rows[0] == rows[1] == rows[2]
    assert len({row["id"] for row in rows[0]}) == len(rows[0]) == samples


def ask(run, lines):
    """What a rank does of `plait generate`: the first one answers."""

    def answer(model, inputs, options, out, moment):
        lines.append(os.environ["RANK"])
        return ["an answer"]

    family = replace(toy_family.FAMILY, GenerateOptions=toy_family.Config, generate=answer)
    registry.load = lambda name: family  # in a process of its own
    generate.generate(run, [], averaged=True, out=None)
    return lines


def test_several_ranks_give_one_answer(run, capfd):
    assert processes.run(3, ask, run, []) == [["0"], [], []]
    assert capfd.readouterr().out.count("an answer") == 1
