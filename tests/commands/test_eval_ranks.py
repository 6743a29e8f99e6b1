"""`plait eval` on several ranks: no sample lost or doubled, equal figures, whatever the numbers."""

import json
import os

import pytest

from plait.commands.actions import evaluate, generate
from tests import processes, toy_family


class Signs:
    """Whether the model has the sign of y right, sample by sample."""

    pictures = None

    def predict(self, model, samples, inputs, *, batch):
        assert samples, "a rank without samples is not asked"
        found = []
        for sample in samples:
            answer = float(model(inputs.collate([inputs.encode(sample, 0)]))[0])
            gold = sample["fields"]["y"]
            found.append({"id": sample["id"], "answer": answer, "gold": gold, "correct": (answer > 0) == (gold > 0)})
        return found

    def summarise(self, rows):
        return {"accuracy": sum(row["correct"] for row in rows) / len(rows), "count": float(len(rows))}


@pytest.fixture
def run(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    monkeypatch.setattr(toy_family.FAMILY, "benches", {"signs": Signs()})
    return toy_family.train(recipe, tmp_path / "run", "stages=[]", "evaluate=[]", "checkpoint.best=null")


def measure(run, bench, samples, batch, out):
    return evaluate.evaluate(run, bench, evaluate.Options(samples=samples, batch=batch, show=0, out=out))


@pytest.mark.parametrize(("samples", "batch"), [(8, 2), (7, 2), (2, 1), (1, 3)])
def test_every_sample_is_answered_once_and_figures_are_equal(run, tmp_path, samples, batch):
    for bench in ("signs", "loss"):
        alone = measure(run, bench, samples, batch, tmp_path / "1")
        for size in (2, 3):
            found = processes.run(size, measure, run, bench, samples, batch, tmp_path / str(size))
            assert all(one == pytest.approx(alone, rel=1e-6) for one in found)  # fp32: sums over other cuts
    told = [json.loads((tmp_path / str(size) / "predictions.json").read_text()) for size in (1, 2, 3)]
    assert told[0] == told[1] == told[2]
    assert len({row["id"] for row in told[0]}) == len(told[0]) == samples


def ask(run, lines):
    """What a rank does of `plait generate`: the first one answers."""
    toy_family.FAMILY.GenerateOptions = toy_family.Config
    toy_family.FAMILY.generate = lambda model, inputs, options, out: lines.append(os.environ["RANK"]) or ["an answer"]
    generate.generate(run, [], averaged=True, out=None)
    return lines


def test_several_ranks_give_one_answer(run, capfd):
    assert processes.run(3, ask, run, []) == [["0"], [], []]
    assert capfd.readouterr().out.count("an answer") == 1
