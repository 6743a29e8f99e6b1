"""Held-out figures: sums over batches, benches over samples that may not be readable, and what an evaluation leaves behind."""

import contextlib
import re
from types import SimpleNamespace

import pytest
import torch

from plait.config.schema import Evaluate
from plait.engine import evaluation
from plait.engine.evaluation import Bench, Evaluations, HeldOut
from plait.engine.held_out_loss import held_out_loss
from plait.engine.loss import has_targets
from plait.engine.monitoring.signals import Signals
from plait.engine.parallel import distributed
from plait.engine.parallel.rank_failures import BenchFailed, reason_of
from plait.errors import BadSample, PlaitError
from tests import processes

from .toy import ALONE, SquaredError, examples, make_config, make_state, micro


def batches(*groups):
    return [SimpleNamespace(micro=[micro(group, padding) for group, padding in groups_of], bad=[]) for groups_of in groups]


def test_the_held_out_loss_is_one_sum_over_one_weight_whatever_the_batches():
    net = make_state(make_config()).model
    cut = batches([(range(3), False), (range(3, 8), False)], [([8], False), ([2], True)])  # 2 is a repetition that fills a rank
    found = held_out_loss(net, SquaredError(), cut, ALONE, "fp32")
    batch = examples(range(9))
    expected = ((batch["w"] * (net(batch) - batch["y"]) ** 2).sum() / batch["w"].sum()).item()
    assert found == {"loss": pytest.approx(expected, rel=1e-6), "loss/error": pytest.approx(expected, rel=1e-6)}  # float32 sums of 9
    assert not any(value.grad is not None for value in net.parameters())


class TwoTerms(SquaredError):
    """The toy's error thrice, and a term that a batch may not have."""

    coefficients = {"error": 3.0, "rare": 2.0}  # noqa: RUF012
    counts = ()

    def weights(self, batch):
        return {"error": torch.tensor(2.0), "rare": batch["rare"]}

    def sums(self, model, batch):
        return {"error": torch.tensor(8.0), "rare": 5.0 * batch["rare"]}


def rare_batch(value):
    return SimpleNamespace(micro=[SimpleNamespace(batch={"rare": torch.tensor(value)}, ids=[0], padding=False)], bad=[])


def test_bad_held_out_samples_are_counted_once_and_none_but_those_is_an_error():
    net, lost = make_state(make_config()).model, [SimpleNamespace(reason="torn", attempt=0), SimpleNamespace(reason="too", attempt=1)]
    whole, alone = batches([(range(3), False)], [([1], True)]), batches([([1], True)])
    expected = held_out_loss(net, SquaredError(), whole, ALONE, "fp32")
    whole[1].bad = alone[0].bad = lost
    assert held_out_loss(net, SquaredError(), whole, ALONE, "fp32") == {**expected, "bad_samples": 1.0}
    with pytest.raises(evaluation.NoUsableSample, match=r"^none of 1 held-out samples can be used: torn$"):
        held_out_loss(net, SquaredError(), alone, ALONE, "fp32")


@pytest.mark.parametrize(("rare", "loss"), [([0.0, 0.0], {"loss": 12.0, "loss/error": 4.0}), ([0.0, 1.0], None)])
def test_a_term_counts_by_its_coefficient_and_only_where_it_has_weight(rare, loss):
    held = [rare_batch(value) for value in rare]
    found = held_out_loss(make_state(make_config()).model, TwoTerms(), held, ALONE, "fp32")
    assert found == (loss or {"loss": 3 * 4.0 + 2 * 5.0, "loss/error": 4.0, "loss/rare": 5.0})


def test_held_out_samples_without_any_weight_are_an_error():
    batch = micro([1, 2])
    batch.batch["w"].zero_()
    with pytest.raises(PlaitError, match="the held-out samples have nothing to predict: every loss weight is 0"):
        held_out_loss(make_state(make_config()).model, SquaredError(), [SimpleNamespace(micro=[batch], bad=[])], ALONE, "fp32")


def test_a_term_that_is_only_logged_is_nothing_to_predict():
    """Families log such a term, how many samples were cut: its weight is the number of samples, and never 0."""
    held = [rare_batch(0.0)]
    loss = TwoTerms()
    loss.coefficients = {"error": 0.0, "rare": 2.0}
    assert not has_targets(loss, {"error": 2.0, "rare": 0.0}) and has_targets(loss, {"error": 0.0, "rare": 1.0})
    with pytest.raises(PlaitError, match="the held-out samples have nothing to predict: every loss weight is 0"):
        held_out_loss(make_state(make_config()).model, loss, held, ALONE, "fp32")


class Letters:
    """Samples a, b, c, ..., of which some cannot be read."""

    def __init__(self, count, torn=()):
        self.count, self.torn = count, torn

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        if place in self.torn:
            raise BadSample(f"torn at {place}")
        return chr(97 + place)

    def name(self, place):
        return f"letters[{place}]"


def bench(calls, figures=None, pictures=None):
    def predict(model, samples, inputs, *, batch, moment):
        calls.append((list(samples), batch, moment))
        return [{"id": sample} for sample in samples]

    return Bench(predict, lambda rows: {"count": float(len(rows)), **(figures or {})}, pictures)


def answered(samples, calls, **options):
    how = {"inputs": None, "batch": 2, "ranks": ALONE, "precision": "fp32", "moment": "step-00000003"}
    return evaluation.run_bench(bench(calls), None, samples, **how, **options)


def test_a_bench_answers_every_sample_once_in_portions_of_four_batches():
    calls, kept = [], []
    figures, rows = answered(Letters(11), calls, keep=kept.append)
    assert [len(samples) for samples, *_ in calls] == [8, 3]  # 4 x 2
    assert {call[1:] for call in calls} == {(2, "step-00000003")}
    assert [row["id"] for row in rows] == list("abcdefghijk") == [row["id"] for part in kept for row in part]
    assert figures == {"count": 11.0}


def test_a_bench_that_goes_on_answers_only_what_it_had_not():
    calls = []
    done = [{"id": letter, "old": True} for letter in "abcdefgh"]
    figures, rows = answered(Letters(10), calls, done=done)
    assert [samples for samples, *_ in calls] == [["i", "j"]]
    assert figures == {"count": 10.0} and rows[:8] == done
    assert answered(Letters(3), [], done=done) == ({"count": 3.0}, done[:3])


def test_a_sample_that_cannot_be_read_has_a_row_with_the_reason_and_no_answer():
    calls = []
    figures, rows = answered(Letters(4, torn=(1,)), calls)
    assert [samples for samples, *_ in calls] == [["a", "c", "d"]]
    assert rows == [{"id": "a"}, {"id": "letters[1]", "bad": "torn at 1", "unread": True}, {"id": "c"}, {"id": "d"}]
    assert figures == {"count": 3.0, "bad_samples": 1.0}


def test_samples_that_a_bench_calls_bad_add_to_those_that_cannot_be_read():
    rows = [{"id": 1}, {"id": 2, "unread": True}, {"id": 3, "unread": True}]
    assert evaluation.summary(bench([], {"bad_samples": 4.0}), rows) == {"count": 1.0, "bad_samples": 6.0}
    assert evaluation.summary(bench([]), rows[:1]) == {"count": 1.0}


def test_a_bench_without_a_sample_that_can_be_used_has_no_figures():
    with pytest.raises(evaluation.NoUsableSample, match=r"^none of 2 held-out samples can be used: 1 x torn at 0; 1 x torn at 1$"):
        answered(Letters(2, torn=(0, 1)), calls := [])
    with pytest.raises(evaluation.NoUsableSample, match=r"^there are no held-out samples$"):
        answered(Letters(0), calls)
    with pytest.raises(evaluation.NoUsableSample, match=r"^none of 1 held-out samples can be used: x$"):
        evaluation.summary(bench([]), [{"id": "a", "bad": "x"}])
    assert calls == []


def test_figures_of_no_sample_are_absent_in_a_run_and_told():
    failures = []
    judge = evaluations(
        [Evaluate(bench="letters"), Evaluate(bench="loss")],
        held_out=HeldOut(lambda entry: batches([(range(4), False)]), lambda entry: Letters(2, torn=(0, 1))),
        failed=lambda name, error: failures.append((name, reason_of(error))),
    )
    assert judge.run(make_state(make_config()), judge.entries).keys() == {"loss", "loss/error"}
    assert failures == [("letters", "none of 2 held-out samples can be used: 1 x torn at 0; 1 x torn at 1")]


@pytest.mark.parametrize("torn", [29, 30])
def test_a_rehearsal_looks_on_until_a_sample_can_be_used(torn):
    taken = []
    judge = evaluations(
        [Evaluate(bench="letters", batch=1)],
        benches={"letters": bench(taken)},
        held_out=HeldOut(lambda entry: (), lambda entry: Letters(min(30, entry.samples or 30), torn=range(torn))),
    )
    if torn == 30:
        message = r"^bench letters cannot be run, .*: none of 30 held-out samples can be used: 1 x torn at 0; .*; and 22 more reasons$"
        with pytest.raises(PlaitError, match=message):
            judge.rehearse(make_state(make_config()), [])
    else:
        judge.rehearse(make_state(make_config()), ["letters/count"])
        assert [samples for samples, *_ in taken] == [[chr(97 + 29)]]


def test_fewer_samples_than_asked_for_are_told_before_the_first_step(caplog):
    judge = evaluations(
        [Evaluate(bench="letters", samples=500), Evaluate(bench="loss", samples=3), Evaluate(bench="loss")],
        held_out=HeldOut(lambda entry: batches([(range(4), False)]), lambda entry: Letters(min(3, entry.samples or 3))),
    )
    judge.rehearse(make_state(make_config()), [])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "bench letters: 500 held-out samples are asked for (samples), and there are 3: all are taken"
    ]


def evaluations(entries, **changes):
    held_out = HeldOut(lambda entry: batches([(range(4), False)]), lambda entry: Letters(3))
    given = {
        "benches": {"letters": bench([])},
        "inputs": None,
        "stop": Signals(),
        "mark": lambda part: None,
        "gathered": contextlib.nullcontext,
    }
    given |= {
        "failed": lambda bench, error: None,
        "record": lambda row: None,
        "show": lambda step, pictures: None,
        "ranks": ALONE,
        "precision": "fp32",
        "answered": lambda bench, rows: {},
    }
    return Evaluations(**{"entries": entries, "held_out": held_out, "loss": SquaredError(), **given} | changes)


def broken(message, error=ValueError):
    def predict(model, samples, inputs, *, batch, moment):
        raise error(message)

    return Bench(predict, lambda rows: {})


def test_a_bench_that_fails_costs_its_own_figures_alone():
    failures, rows = [], []
    judge = evaluations(
        [Evaluate(bench="broken"), Evaluate(bench="loss"), Evaluate(bench="late")],
        benches={"broken": broken("no such\nfile"), "late": Bench(bench([]).predict, lambda rows: 1 / 0)},
        failed=lambda name, error: failures.append((name, reason_of(error))),
        record=rows.append,
    )
    figures = judge.run(make_state(make_config()), judge.entries)
    assert figures.keys() == {"loss", "loss/error"} and len(rows) == 1
    assert failures == [("broken", "ValueError: no such"), ("late", "ZeroDivisionError: division by zero")]


class TwoRanks(type(ALONE)):
    """This rank and another, which tells that its work failed."""

    def gather(self, value):
        return [value, ([], "TypeError: there")]


def test_a_bench_that_fails_on_one_rank_fails_on_all():
    ranks = TwoRanks(0, 2, torch.device("cpu"))
    with pytest.raises(BenchFailed, match=r"^TypeError: there$"):
        evaluation.run_bench(bench([]), None, Letters(3), inputs=None, batch=1, ranks=ranks, precision="fp32", moment="x")


class BreaksInBatch2(SquaredError):
    """Its second call of a method breaks the contract, on rank 1."""

    def __init__(self, method, rank):
        self.method, self.rank, self.calls = method, rank, 0

    def answered(self, method, value):
        self.calls += method == self.method
        return {} if method == self.method and self.rank == 1 and self.calls == 2 else value

    def weights(self, batch):
        return self.answered("weights", super().weights(batch))

    def sums(self, model, batch):
        return self.answered("sums", super().sums(model, batch))


def failing(fault):
    """What two ranks say of an evaluation in which one fails and the other does not: their figures, and failures by bench."""
    failures = {}

    def held_out(entry):
        yield from batches([(range(4), False)])
        if fault == "data" and ranks.rank == 1:
            raise PlaitError("a: sample 3 and 49 replacements in a row are bad")
        yield from batches([(range(4), False)], [(range(4), False)])

    def pictures(rows):
        assert ranks.first
        raise PlaitError("no pictures")

    with distributed.join("cpu") as ranks:
        judge = evaluations(
            [Evaluate(bench="loss"), Evaluate(bench="letters"), Evaluate(bench="drawn")],
            benches={"letters": bench([]), "drawn": bench([], pictures=pictures)},
            held_out=HeldOut(held_out, lambda entry: Letters(3)),
            loss=BreaksInBatch2(fault, ranks.rank),
            ranks=ranks,
            failed=lambda name, error: failures.update({name: reason_of(error)}),
        )
        return judge.run(make_state(make_config()), judge.entries), failures


LOSS = "tests.engine.test_evaluation.BreaksInBatch2"
FAULTS = {
    "data": "a: sample 3 and 49 replacements in a row are bad",
    "weights": f"{LOSS}.weights(batch) returned no names: it is to return a scalar tensor for each of error, tokens",
    "sums": f"{LOSS}.sums(model, batch) returned no names: it is to return a scalar tensor for each of error",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_on_one_of_two_ranks_is_told_by_both_and_the_other_benches_go_on(fault):
    outcome = ({"letters/count": 3.0}, {"loss": FAULTS[fault], "drawn": "no pictures"})
    assert processes.run(2, failing, fault) == [outcome, outcome]


def test_a_rehearsal_takes_the_beginning_of_every_bench_and_records_nothing():
    taken, nothing = [], lambda *_: pytest.fail("a rehearsal is no evaluation")
    judge = evaluations(
        [Evaluate(bench="letters", batch=1), Evaluate(bench="loss")],
        benches={"letters": Bench(bench(taken).predict, lambda rows: {"count": 1.0 / (len(rows) > 9)}, lambda rows: nothing())},
        held_out=HeldOut(lambda entry: batches([(range(4), False)]), lambda entry: Letters(entry.samples or 30)),
        record=nothing,
        show=nothing,
    )
    state = make_state(make_config())
    judge.rehearse(state, ["loss", "letters/count"])  # the figures of four samples cannot be computed, which is no fault
    assert [(len(samples), moment) for samples, _, moment in taken] == [(4, "rehearsal")]
    assert state.model.training
    with pytest.raises(PlaitError, match="no bench of evaluate gives a figure 'lost'; they give loss, loss/error"):
        judge.rehearse(state, ["lost"])
    with pytest.raises(PlaitError, match=r"^bench broken cannot be run, and would fail during the run: KeyError: 'x'$"):
        evaluations([Evaluate(bench="broken")], benches={"broken": broken("x", KeyError)}).rehearse(state, [])


def test_a_model_is_evaluated_without_dropout_and_trains_on_with_it():
    state = make_state(make_config())
    with evaluation.evaluation_mode(state) as model:
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in state.model.modules())


def test_an_entry_is_due_where_its_interval_ends_in_the_stage():
    often, once = Evaluate(bench="loss", every_steps=3), Evaluate(bench="loss", every_steps=None)
    state = make_state(make_config())
    state.step, state.stage_start = 9, 4
    assert evaluations([often, once]).due(state) == []
    state.step = 10
    assert evaluations([often, once]).due(state) == [often]


def test_an_evaluation_records_one_row_of_all_figures_with_the_averages_and_gives_the_weights_back():
    state, rows = make_state(make_config(optim={"lr": 0.1, "ema": {"decay": 0.5}, "schedule": {"name": "constant"}})), []
    for value in state.model.parameters():
        value.data.add_(1.0)
    before = [value.detach().clone() for value in state.model.parameters()]
    state.step, state.stage = 6, 2
    entries = [Evaluate(bench="loss"), Evaluate(bench="letters")]
    figures = evaluations(entries, record=rows.append).run(state, entries)
    averaged = held_out_loss(make_state(make_config()).model, SquaredError(), batches([(range(4), False)]), ALONE, "fp32")
    assert figures == {**averaged, "letters/count": 3.0}
    assert rows == [{"step": 6, "stage": 2, **{f"eval/{name}": value for name, value in figures.items()}}]
    assert all(torch.equal(one, other) for one, other in zip(state.model.parameters(), before, strict=True)) and state.model.training


def test_a_stop_between_two_parts_records_nothing_and_gives_the_weights_back():
    state, rows, stop = make_state(make_config()), [], Signals()
    stop.received = "SIGTERM"
    entries = [Evaluate(bench="loss")]
    assert evaluations(entries, record=rows.append, stop=stop).run(state, entries) is None
    assert rows == [] and state.model.training and stop.agreed


def test_each_part_of_an_evaluation_is_marked_before_the_ranks_agree_on_it():
    marks = []
    entries = [Evaluate(bench="loss"), Evaluate(bench="letters", batch=1)]
    judge = evaluations(
        entries, mark=marks.append, held_out=HeldOut(lambda entry: batches(*[[(range(4), False)]] * 2), lambda _: Letters(9))
    )
    judge.run(make_state(make_config()), entries)
    assert marks == ["next"] * (2 + 3)  # two batches, and nine samples in portions of four


def test_the_pictures_of_a_bench_are_shown_with_their_step():
    shown, state = [], make_state(make_config())
    state.step = 12
    drawing = {"letters": bench([], pictures=lambda rows: {"grid": len(rows), "letters/one": 1})}
    entries = [Evaluate(bench="letters")]
    evaluations(entries, benches=drawing, show=lambda *given: shown.append(given)).run(state, entries)
    assert shown == [(12, {"letters/grid": 3, "letters/one": 1})]


@pytest.mark.parametrize(
    ("figure", "counts"),
    [
        ("samples", True),
        ("grid/pictures/32x32", True),
        ("pictures/64x64", True),
        ("accuracy/empty_answers", True),
        ("accuracy/colour", False),
    ],
)
def test_numbers_of_things_are_no_results(figure, counts):
    assert evaluation.is_count(figure) is counts


def test_an_unknown_bench_is_refused_with_the_known_ones():
    evaluation.check([Evaluate(bench="loss"), Evaluate(bench="letters")], {"letters": bench([])})
    message = "evaluate names bench 'words', which is unknown; known: loss, letters, zebra"
    with pytest.raises(PlaitError, match=f"^{re.escape(message)}$"):
        evaluation.check([Evaluate(bench="words")], {"zebra": bench([]), "letters": bench([])})
