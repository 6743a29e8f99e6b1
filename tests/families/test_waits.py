"""A micro-batch runs forward and backward without waiting for the device: what depends on values comes from `collate`."""

import pytest
import torch
import yaml

from plait.families import registry
from tests.families.test_conformance import SAMPLES, TINY, Case
from tests.waits import Waits

DROPOUT = {"molmo": {"residual_dropout": 0.1, "response_residual_dropout": 0.2}}  # rates by position


@pytest.mark.parametrize("family", registry.names())
def test_no_micro_batch_waits_for_the_device(family, tmp_path, monkeypatch):
    recipe = yaml.safe_load(TINY[family])
    recipe["model"] = recipe.get("model", {}) | DROPOUT.get(family, {})
    monkeypatch.setitem(TINY, family, yaml.dump(recipe))
    case = Case(family, tmp_path)
    case.model.train()
    for micro in case.micros(SAMPLES):
        with Waits() as waits:
            sums = case.loss.sums(case.model, micro.batch)
            sum(case.loss.coefficients[name] * value for name, value in sums.items()).backward()
        assert not waits.found


def test_what_a_host_waits_for_is_counted():
    values, mask = torch.arange(4.0, requires_grad=True), torch.tensor([True, False, True, False])
    with Waits() as waits:
        chosen = values[mask].sum() + values.masked_scatter(mask, values[:2]).sum()
        chosen.backward()
        assert float(chosen.detach()) == 7.0
    assert waits.found == ["aten.index", "aten.masked_scatter_backward", "aten.index_put", "aten._local_scalar_dense"]
