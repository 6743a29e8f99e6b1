"""Rows of over 2,048 tokens: no tensor of all positions by all positions in training, evaluation and generation, and the same answers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from plait.assembly.data import open_data
from plait.families.molmo.generate import CachedMolmo
from plait.families.theworld.generate import CachedTheWorld
from plait.nn.decoding import decode
from plait.nn.documents import LONGEST_MASK
from tests.families.test_conformance import Case
from tests.families.test_packing import FAMILIES, long_batch

LENGTH = 2304
CACHED = {"theworld": CachedTheWorld, "molmo": CachedMolmo}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    made = Case(request.param, tmp_path_factory.mktemp(request.param))
    (source,) = open_data(made.config, made.config.data.train, "train")
    made.samples = [source[i] for i in range(3)]
    return made


class Squares(TorchDispatchMode):
    """Context manager: notes the shapes of tensors that have two dimensions over LONGEST_MASK, and how many operators it saw."""

    def __init__(self):
        super().__init__()
        self.found, self.operators = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        shapes = [tuple(value.shape) for value in tree_leaves(out) if isinstance(value, Tensor)]
        self.found += [(func, shape) for shape in shapes if sum(size > LONGEST_MASK for size in shape) > 1]
        return out


def prompts(case, length=None):
    """A batch of prompts padded on the left, of which the last one, if `length` is given, has so many tokens."""
    inputs = case.parts.inputs(case.config, train=False)
    examples = [inputs.prompt(sample) for sample in case.samples]
    if length is not None:
        row = examples[-1].row
        fill = torch.full((length - len(row),), 5)
        values = {"ids": fill, "kinds": 0 * fill, "labels": fill - 105}
        if case.family.name == "molmo":
            last = row.annotations[-1:].expand(len(fill))
            values = {"ids": fill, "labels": fill, "annotations": last, "loss_weights": 0.0 * fill}
            values["positions"] = row.positions[-1] + 1 + torch.arange(len(fill))
        grown = {name: torch.cat([vars(row)[name], more]) for name, more in values.items()}
        examples[-1] = replace(examples[-1], row=replace(row, **grown))
    return inputs.collate(examples, left=True)


@pytest.mark.parametrize("pad", ["none", "longest"])
@pytest.mark.parametrize("work", ["training", "evaluation"])
def test_a_long_row_has_no_tensor_of_positions_by_positions(case, work, pad):
    batch = long_batch(case, LENGTH, pad)
    case.model.train(work == "training")
    with torch.set_grad_enabled(work == "training"), Squares() as squares:
        total = sum(case.loss.sums(case.model, batch).values())
        if work == "training":
            total.backward()
    assert squares.operators > 100 and not squares.found
    case.model.eval()
    case.model.zero_grad()


def test_a_long_prompt_has_none_either(case):
    batch = prompts(case, LENGTH)
    assert batch["ids"].shape == (3, LENGTH)
    with Squares() as squares:
        rows = decode(CACHED[case.family.name](case.model.eval(), batch), max_new_tokens=[3] * 3, stops=frozenset({-1}))
    assert squares.operators > 100 and not squares.found and [len(row) for row in rows] == [3] * 3


@torch.no_grad()
def test_prompts_have_the_same_logits_within_documents_as_with_masks(case, monkeypatch):
    logits = []
    for longest in (1 << 30, 16):
        monkeypatch.setattr(f"plait.families.{case.family.name}.inputs.LONGEST_MASK", longest)
        batch = prompts(case)
        assert ("documents" in batch["places"]) is (longest == 16)
        assert len({document.stop - document.start for document in batch["places"].get("documents", ())}) != 1
        cached = CACHED[case.family.name](case.model.eval(), batch)
        first, token = cached.prefill(), torch.tensor([7, 8, 9])
        logits.append([first, cached.advance(token), cached.advance(token + 3)])
    for masked, within in zip(*logits, strict=True):
        torch.testing.assert_close(within, masked, rtol=1e-5, atol=1e-5)
