"""Two runs held against each other: what is equal, and which difference is named first."""

import pytest
import torch

from plait import files
from plait.commands.prove import compare
from plait.engine.checkpoints import checkpoint, integrity

STATE = {"step": 2, "stage": 1, "stage_start": 0, "stage_done": None, "probe": 0.5}


def rows(**changes):
    steps = [{"step": n, "ids": f"{n:08x}", "loss": 1.0 / n, "loss/text": 1.0 / n, "grad_norm": 2.0, "time_s": 5.0 * n} for n in (1, 2)]
    return [steps[0], steps[1] | changes, {"step": 2, "eval/loss": 0.25}]


@pytest.fixture
def pair(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        weights = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.zeros(2)}
        moments = {f"head.weight.{kind}": torch.ones(2, 3) for kind in ("exp_avg", "exp_avg_sq")} | {"head.weight.step": torch.tensor(2.0)}
        checkpoint.write(checkpoint.folder_of(tmp_path / name, 1, "only", 2), {"weights": weights, "moments": moments}, {"state": STATE})
        files.append_rows(tmp_path / name / "metrics.jsonl", rows())
    return tmp_path / "a", tmp_path / "b"


def again(run, group="weights", change=lambda tensors: None, **facts):
    """Write the run's checkpoint anew with some tensors or facts changed."""
    saved = integrity.locate(run)
    groups = {name: saved.tensors(name) for name in ("weights", "moments")}
    change(groups[group])
    checkpoint.write(saved.folder, groups, {"state": STATE | facts})


def relog(run, wanted):
    (run / "metrics.jsonl").unlink()
    files.append_rows(run / "metrics.jsonl", wanted)


def test_equal_runs_have_no_divergence_whatever_the_clock_says(pair):
    relog(pair[1], rows(time_s=99.0, step_s=1.0))
    lines = compare.runs(*pair)
    assert compare.divergence(lines) is None
    assert {line.what: line.compared for line in lines} | {"state": 0} == {
        **{
            "rows": 3,
            "sample ids": 2,
            "loss terms": 4,
            "other figures": 4,
            "updates": 0,
            "held-out figures": 2,
            "replaced samples": 0,
            "state": 0,
        },
        **{"weights": 2, "ema": 0, "moments": 3},
    }


def test_sample_ids_are_named_before_the_losses_they_change(pair):
    relog(pair[1], rows(ids="ffffffff", loss=9.0, **{"loss/text": 9.0}))
    assert compare.divergence(compare.runs(*pair)) == "sample ids: step 2: ids is 00000002 and ffffffff"


def test_a_loss_term_is_named_before_its_total_and_the_parameter_after(pair):
    relog(pair[1], rows(loss=9.0, grad_norm=1.0, **{"loss/text": 9.0}))
    again(pair[1], change=lambda weights: weights["head.weight"].view(-1)[3].add_(1))
    said = compare.divergence(compare.runs(*pair))
    assert said.startswith("loss terms: step 2: loss/text is 0.5 and 9.0; first differing parameter: weights of head.weight (1 of 6 values")


def test_the_smallest_difference_of_one_value_is_seen(pair):
    again(pair[1], change=lambda weights: weights["head.bias"][1].sub_(0.0).mul_(-1))  # -0.0 is not 0.0
    assert "weights of head.bias (1 of 2 values differ, by at most 0.0e+00)" in compare.divergence(compare.runs(*pair))


def test_moments_that_began_anew_are_told_by_their_count(pair):
    again(pair[1], "moments", lambda moments: [value.mul_(0.5) for value in moments.values()])
    assert "moments of head.weight.step is 2 and 1" in compare.divergence(compare.runs(*pair))


def test_a_doubled_row_and_a_lost_one_are_told(pair):
    relog(pair[1], [*rows(), rows()[0]])
    assert compare.divergence(compare.runs(*pair)) == "rows: step 1 has 1 step rows in one run and 2 in the other"
    relog(pair[1], rows()[:2])
    assert "step 2 has 1 held-out rows in one run and 0" in compare.divergence(compare.runs(*pair))


def test_a_fact_of_the_state_and_a_missing_checkpoint_are_told(pair):
    again(pair[1], probe=0.75)
    assert "stage-1-only/step-00000002: probe is 0.5 and 0.75" in compare.divergence(compare.runs(*pair))
    saved = integrity.locate(pair[1])
    groups = {name: saved.tensors(name) for name in ("weights", "moments")}
    checkpoint.write(checkpoint.folder_of(pair[1], 2, "more", 2), groups, {"state": STATE | {"stage": 2}})
    assert "the newest checkpoints are stage-1-only/step-00000002 and stage-2-more" in compare.divergence(compare.runs(*pair))


def test_the_ledger_of_stages_is_compared_row_by_row(pair):
    for run in pair:
        files.write_json(run / "ledger" / "stage-1-only.json", {"step": 2, "benches": {"loss": {"rows": [{"id": "a", "correct": True}]}}})
    lines = compare.runs(*pair)
    assert compare.divergence(lines) is None
    assert [(line.what, line.compared) for line in lines if line.what == "stage ledger"] == [("stage ledger", 1)]
    files.write_json(pair[1] / "ledger" / "stage-1-only.json", {"step": 2, "benches": {"loss": {"rows": [{"id": "a", "correct": False}]}}})
    assert compare.divergence(compare.runs(*pair)) == "stage ledger: ledger/stage-1-only.json differs in benches"
    (pair[1] / "ledger" / "stage-1-only.json").unlink()
    assert compare.divergence(compare.runs(*pair)) == "stage ledger: ledger/stage-1-only.json is in one run only"


def test_two_kinds_of_notes_at_one_step_are_not_taken_for_each_other(pair):
    """What a stage forgot, and whether its pictures make a difference, are rows of its last step."""
    for run in pair:
        relog(run, [*rows(), {"step": 2, "warnings": ["after stage only"]}, {"step": 2, "blind/gain": 0.5}])
    assert compare.divergence(compare.runs(*pair)) is None
