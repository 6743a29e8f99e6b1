"""The migration table: what a saved state means to a model."""

import pytest
import torch

from plait.engine.checkpoints import migrate

from .toy import Net

NET = Net()
TOWER, HEAD = (set(part) for part in NET.components().values())


def saved(*groups, of=NET):
    """Tensors of those parameters as weights, ema and moments."""
    named = {name: value.detach() for name, value in of.named_parameters()}
    weights, ema, moments = ({name: named[name] for name in group} for group in groups)
    kinds = {f"{name}.{kind}": value for name, value in moments.items() for kind in ("exp_avg", "exp_avg_sq", "step")}
    return {"weights": weights, "ema": ema, "moments": kinds}


def table(tensors, wanted, expected):
    rows = migrate.compare(tensors, NET.components(), dict.fromkeys(("weights", "ema", "moments"), wanted), expected)
    return {(row.group, row.component, row.verdict): (row.tensors, row.values) for row in rows}, rows


def test_a_state_of_what_trains_now_is_kept_whole():
    found, rows = table(saved(HEAD, HEAD, HEAD), HEAD, HEAD)
    assert found == {(group, "head", "keep"): (2, 9) for group in ("weights", "ema", "moments")}
    assert migrate.inexact(rows) == []


def test_an_unfrozen_part_is_initialised_beside_what_is_kept():
    found, rows = table(saved(HEAD, HEAD, HEAD), HEAD | TOWER, HEAD)
    assert found[("moments", "tower", "initialise")] == (2, 40)
    assert found[("moments", "head", "keep")] == (2, 9)
    assert migrate.inexact(rows) == []


def test_a_refrozen_part_is_kept_though_it_does_not_train():
    found, rows = table(saved(HEAD | TOWER, HEAD | TOWER, HEAD | TOWER), HEAD, HEAD | TOWER)
    assert all(found[(group, "tower", "keep")] == (2, 40) for group in ("weights", "ema", "moments"))
    assert migrate.inexact(rows) == []


def test_what_has_no_parameter_is_dropped_and_named():
    tensors = saved(HEAD, HEAD, HEAD)
    tensors["weights"]["neck.weight"] = torch.zeros(3)
    found, rows = table(tensors, HEAD, HEAD)
    assert found[("weights", migrate.OTHER, "drop")] == (1, 3)
    assert migrate.inexact(rows) == ["weights of (none): drop 1 (neck.weight)"]


def test_another_shape_is_dropped_in_every_group():
    wider = Net()
    wider.head = torch.nn.Linear(8, 2)
    found, rows = table(saved(HEAD, HEAD, HEAD, of=wider), HEAD, HEAD)
    assert all(found[(group, "head", "drop")] == (2, 18) for group in ("weights", "ema", "moments"))
    assert len(migrate.inexact(rows)) == 3


def test_what_was_trained_but_not_saved_is_missing():
    found, rows = table(saved(HEAD, HEAD, HEAD), HEAD, HEAD | TOWER)
    assert found[("weights", "tower", "missing")] == (2, 40)
    assert migrate.inexact(rows) == ["weights of tower: missing 2 (tower.bias, tower.weight)"]


def test_what_was_trained_and_is_in_neither_files_nor_model_is_missing_with_no_values():
    found, _ = table(saved(HEAD, HEAD, HEAD), HEAD, HEAD | {"gone.weight"})
    assert found[("weights", migrate.OTHER, "missing")] == (1, 0)


@pytest.mark.parametrize("count", [3, 5])
def test_long_lists_of_names_are_cut(count):
    tensors = saved(HEAD, HEAD, HEAD)
    tensors["weights"].update({f"neck.{i}": torch.zeros(1) for i in range(count)})
    (line,) = migrate.inexact(table(tensors, HEAD, HEAD)[1])
    assert line.endswith("(neck.0, neck.1, neck.2)" if count == 3 else "(neck.0, neck.1, neck.2, ...)")


def test_the_table_lists_groups_in_order_with_aligned_counts():
    lines = migrate.table(table(saved(HEAD, HEAD, HEAD), HEAD | TOWER, HEAD)[1]).splitlines()
    assert lines[0].split() == ["component", "tensors", "values"]
    assert [line.split()[0] for line in lines[1:]] == ["weights", "weights", "ema", "ema", "moments", "moments"]
    assert len({len(line) for line in lines}) == 1


def test_the_table_has_words_on_the_left_and_numbers_on_the_right_of_their_columns():
    _, rows = table(saved(HEAD | TOWER, HEAD, HEAD), HEAD, HEAD | TOWER)
    head, *lines = migrate.table(rows).splitlines()
    assert len({len(line) for line in (head, *lines)}) == 1
    assert head.index("component") == min(line.index("head") for line in lines if "head" in line)
    assert all(line.endswith(f"{row.values:,}") for line, row in zip(lines, rows, strict=True))
    assert {line[head.index("tensors") : head.index("tensors") + 7] for line in lines} == {"      2"}
