"""Golden digits: what each family's tiny run, and every function of (seed, step), gave before. A refactoring changes none of them.

`PLAIT_GOLDEN=exact` holds a machine of the recorded kind (x86-64, torch 2.13.0 for CPUs, one thread) to every bit, weights included; other
machines round sums otherwise: SSE4.2 in place of AVX-512 moved the digits by 2e-6 at most; RELATIVE is a hundred times that.
What is counted (ids, samples, tokens) and all functions of keys are exact everywhere.
Recorded before the tree was redrawn. Since then theworld's and molmo's digits were recorded anew once, as their weight decay was mended to
go by what a parameter is (their values moved by 4e-6 at most), theworld's and nanodit's rows gained the count of cut samples, and
theworld's evaluations the mean over tasks and the count of empty answers. molmo's were recorded anew as its residual dropout came to draw
at positions that have a rate alone.
"""

import json
import os

import pytest

from tests.golden import recipes, record

EXACT = os.environ.get("PLAIT_GOLDEN") == "exact"
RELATIVE = 2e-4
COUNTED = ("ids", "step", "stage", "samples", "tokens")


def recorded(name):
    return json.loads((record.FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("family", sorted(recipes.RUNS))
def test_the_tiny_run_of_a_family_gives_the_digits_it_gave(family, tmp_path):
    now, then = record.run(family, tmp_path), recorded(family)
    if EXACT:
        assert now == then
        return
    assert len(now["rows"]) == len(then["rows"])
    for row, before in zip(now["rows"], then["rows"], strict=True):
        assert row.keys() == before.keys()
        for name, value in row.items():
            assert value == (before[name] if name in COUNTED else pytest.approx(before[name], rel=RELATIVE)), (row["step"], name)
    assert now["tensors"].keys() == then["tensors"].keys()


def test_orders_mixtures_buckets_keys_and_schedules_give_what_they_gave():
    now, then = record.functions(), recorded("functions")
    assert now.pop("schedules") == {name: pytest.approx(values, rel=1e-12) for name, values in then.pop("schedules").items()}
    assert now.pop("random") == pytest.approx(then.pop("random"), rel=1e-12)  # the ziggurat's tails go through libm
    assert now == then
