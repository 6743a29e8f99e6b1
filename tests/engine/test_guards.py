"""Samples that cannot be read: how many a run may meet, what is listed of each, and what a resumed run remembers of them."""

from types import SimpleNamespace

import pytest
import torch

from plait import files
from plait.engine.guards import GradientWatch, Quarantine, audit
from plait.errors import Stopped

from .toy import ALONE, Id, make_config, make_state, micro, step_batch


def bad(index, attempt=0):
    return SimpleNamespace(id=Id(2, index, 1), name=f"photo-{index}", reason="torn", replaced_by=Id(2, index + 50, 1), attempt=attempt)


def stops(folder, count, samples):
    try:
        Quarantine(folder / "q.jsonl", 0.01).add(1, [bad(i) for i in range(count)], {"samples": samples}, ALONE)
    except Stopped:
        return True
    return False


@pytest.mark.parametrize(
    ("count", "samples", "stopped"),
    [(1, 16, False), (2, 16, True), (1, 99, False), (1, 100, False), (2, 199, True), (2, 200, False), (3, 200, True), (3, 299, True)],
)
def test_a_hundredth_of_the_samples_may_be_bad_and_one_of_the_first_hundred(tmp_path, count, samples, stopped):
    assert stops(tmp_path, count, samples) is stopped
    assert len(files.read_rows(tmp_path / "q.jsonl")) == count  # listed before the run stops


def test_the_list_tells_step_sample_reason_and_replacement(tmp_path):
    quarantine, totals = Quarantine(tmp_path / "q.jsonl", 0.5), {"samples": 16}
    quarantine.add(7, [bad(3)], totals, ALONE)
    wanted = {"step": 7, "sample": "photo-3", "source": 2, "index": 3, "reason": "torn", "replaced_by": 53, "attempt": 0}
    assert files.read_rows(tmp_path / "q.jsonl") == [wanted]
    assert totals == {"samples": 16, "bad": 1}


def test_bad_replacements_are_listed_and_not_counted_again(tmp_path):
    totals = {"samples": 16}
    Quarantine(tmp_path / "q.jsonl", 0.5).add(1, [bad(3), bad(4, attempt=1), bad(5, attempt=2)], totals, ALONE)
    assert totals["bad"] == 1
    assert [row["attempt"] for row in files.read_rows(tmp_path / "q.jsonl")] == [0, 1, 2]


def test_a_step_without_bad_samples_writes_and_counts_nothing(tmp_path):
    totals = {"samples": 16}
    Quarantine(tmp_path / "q.jsonl", 0.0).add(1, [], totals, ALONE)
    assert totals == {"samples": 16} and not (tmp_path / "q.jsonl").exists()


def test_bad_samples_add_up_over_steps_and_the_stop_shows_the_latest_five(tmp_path):
    quarantine, totals = Quarantine(tmp_path / "q.jsonl", 0.08), {"samples": 64}
    quarantine.add(4, [bad(i) for i in range(8)], totals, ALONE)
    with pytest.raises(Stopped, match=r"^15 of 64 samples could not be used, .* = 0\.08 allows; .*the latest: ") as stopped:
        quarantine.add(5, [bad(i) for i in range(10, 17)], totals, ALONE)
    assert str(stopped.value).split("the latest: ")[1] == "; ".join(f"photo-{i}: torn" for i in range(10, 15))


def test_a_resumed_run_forgets_the_bad_samples_of_steps_it_takes_again(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.5)
    for step in (1, 2, 3):
        quarantine.add(step, [bad(step)], {"samples": 16}, ALONE)
    quarantine.resume(2)
    assert [row["step"] for row in files.read_rows(tmp_path / "q.jsonl")] == [1, 2]


def test_a_restored_state_goes_on_counting_bad_samples(make_loop):
    config = make_config()
    first, second = make_state(config), make_state(config)
    batch = step_batch(0, [micro(list(range(16)))])
    batch.bad = [bad(1)]
    make_loop(first, config).step(first.model, batch, 100, audit=False)
    second.pause()
    second.restore(first.metadata(), first.tensors())
    second.begin(second.model.components(), config.optim)
    again = step_batch(1, [micro(list(range(16)))])
    again.bad = [bad(2)]
    with pytest.raises(Stopped, match=r"^2 of 32 samples could not be used"):
        make_loop(second, config).step(second.model, again, 100, audit=False)


def test_the_audit_is_silent_where_exactly_what_trains_has_gradients():
    state = make_state(make_config(), trainable=("head",))
    for value in state.model.head.parameters():
        value.grad = torch.zeros_like(value)
    assert audit(state.model) == []


def watched(norms, *, stop=True, last=None):
    """The step at which a watch over two components stops, with its message; None where it does not."""
    watch = GradientWatch(["vision", "projector"], stop=stop)
    for step, norm in enumerate(norms, 1):
        try:
            watch({"loss": 2.5, "grad_norm": norm}, last=step == last)
        except Stopped as error:
            return step, str(error)
    return None


def test_ten_first_steps_without_a_gradient_stop_a_run_and_say_so():
    step, told = watched([0.0] * 20)
    assert step == 10
    assert told == (
        "the gradient of vision, projector was exactly 0 in the first 10 steps, at a loss of 2.5; nothing that trains takes part in the "
        "loss of these samples: look at them with `plait data inspect`, and at trainable; to go on all the same, say "
        "guard.no_gradient=continue"
    )


@pytest.mark.parametrize(
    ("norms", "last", "stops_at"), [([0.0] * 9 + [1e-9] + [0.0] * 20, 30, None), ([0.0] * 3, 3, 3), ([1.0, 0.0], 2, None)]
)
def test_one_gradient_is_enough_and_a_short_stage_is_looked_at_as_well(norms, last, stops_at):
    found = watched(norms, last=last)
    assert (found and found[0]) == stops_at


def test_a_step_that_was_skipped_counts_for_nothing():
    watch = GradientWatch(["vision"], stop=True)
    for _ in range(20):
        watch({"loss": float("nan"), "skipped": 1}, last=False)
    assert watch.zeros == 0


def test_where_it_is_allowed_it_is_told_once(capsys):
    assert watched([0.0] * 30, stop=False) is None
    assert capsys.readouterr().err.count("was exactly 0 in the first 10 steps") == 1
