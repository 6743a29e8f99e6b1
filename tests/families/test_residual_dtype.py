"""The dtype of the residual stream: with `train.residual_dtype: bfloat16`, float32 goes through no block and reaches no attention."""

import contextlib
import re

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.overrides import TorchFunctionMode

from plait import cli
from plait.assembly import saved
from plait.assembly.configuration import open_config
from plait.engine import blocks
from plait.engine.precision import autocast, set_precision
from plait.errors import PlaitError
from plait.families import registry
from plait.families.nanodit.network import transformer
from plait.training import run
from tests.families.test_conformance import ALONE, SAMPLES, TINY, Case

DROPOUT = {"molmo": {"residual_dropout": 0.1, "response_residual_dropout": 0.2}}


@pytest.fixture(scope="module", params=registry.names())
def case(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        recipe = yaml.safe_load(TINY[request.param])
        patch.setitem(TINY, request.param, yaml.dump(recipe | {"model": recipe.get("model", {}) | DROPOUT.get(request.param, {})}))
        made = Case(request.param, tmp_path_factory.mktemp(request.param))
    set_precision(made.model, {name for part in made.trained.values() for name in part}, "bf16")
    made.model.train()
    return made


class Attended(TorchFunctionMode):
    """Context manager: the dtypes of queries and keys that reach attention."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key"), args, strict=False)) | (kwargs or {})
            self.dtypes |= {named["query"].dtype, named["key"].dtype}
        return func(*args, **(kwargs or {}))


def passed(case, dtype):
    """Forward and backward; returns (dtypes into and out of blocks, of queries and keys, bytes saved for the backward pass, the loss)."""
    (micro,), stream, saved = case.micros(SAMPLES), set(), {}
    units = case.family.blocks(case.model)
    parameters = {value.untyped_storage().data_ptr() for value in case.model.parameters()}

    def seen(module, args, kwargs, output):
        given = [value for value in (*args, kwargs.get("hidden_states")) if isinstance(value, torch.Tensor)][:1]
        stream.update(value.dtype for value in [*given, output[0] if isinstance(output, tuple) else output])

    def pack(value):
        if (place := value.untyped_storage().data_ptr()) not in parameters:
            saved[place] = (value.untyped_storage().nbytes(), value)  # the tensor stays, and with it its place
        return value

    torch.manual_seed(0)
    case.model.zero_grad()
    with blocks.residual_stream(units, dtype), contextlib.ExitStack() as handles:
        for block in units:
            handles.callback(block.register_forward_hook(seen, with_kwargs=True).remove)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value)
        with hooks, autocast("bf16", torch.device("cpu")), Attended() as attended:
            sums = case.loss.sums(case.model, micro.batch)
        sum(sums.values()).backward()
    assert all(value.grad.dtype == value.dtype for value in case.model.parameters() if value.grad is not None)
    return stream, attended.dtypes, sum(size for size, _ in saved.values()), sums[next(iter(sums))].item()


def test_a_bfloat16_stream_is_that_in_all_blocks_and_at_attention_and_takes_less_memory(case):
    wide, _, wide_bytes, wide_loss = passed(case, "float32")
    half, half_attended, half_bytes, half_loss = passed(case, "bfloat16")
    assert torch.float32 in wide and half == {torch.bfloat16}
    assert half_attended == {torch.bfloat16}
    assert half_bytes < 0.97 * wide_bytes
    assert half_loss == pytest.approx(wide_loss, rel=0.02)  # bfloat16's 8 bits, over a few layers
    assert not any(block._forward_pre_hooks for block in case.family.blocks(case.model))


def test_a_run_its_evaluations_and_its_opened_checkpoint_have_the_stream_that_is_set(tmp_path, monkeypatch):
    seen, plain = set(), transformer.Block.forward

    def forward(block, x_BND, *others):
        seen.add(x_BND.dtype)
        return plain(block, x_BND, *others)

    monkeypatch.setattr(transformer.Block, "forward", forward)
    case = Case("nanodit", tmp_path)
    path = tmp_path / "recipe.yaml"
    train = {"steps": 1, "global_batch": 2, "precision": "bf16", "residual_dtype": "bfloat16"}
    others = {"evaluate": [{"bench": "loss"}], "guard": {"hang_timeout_s": None}, "track": {"tensorboard": False}}
    path.write_text(yaml.dump(yaml.safe_load(path.read_text()) | {"train": train} | others))
    folder = run.train(open_config(path))
    assert seen == {torch.bfloat16}
    seen.clear()
    bundle = saved.open_checkpoint(saved.locate(folder), ALONE)
    (micro,) = case.micros(SAMPLES)
    with torch.no_grad(), autocast("bf16", ALONE.device):
        bundle.loss().sums(bundle.model, micro.batch)
    assert seen == {torch.bfloat16}
    for command in ("upgrade-check", "eval"):
        seen.clear()
        assert cli.main([command, str(folder), *(["--bench=loss", "--against=untrained"] if command == "eval" else [])]) == 0
        assert seen == {torch.bfloat16}
    told = "train.residual_dtype is 'bfloat16', but products are in fp32: set train.precision=bf16, or leave it out"
    with pytest.raises(PlaitError, match=re.escape(told)):
        open_config(path, ["train.precision=fp32"])
