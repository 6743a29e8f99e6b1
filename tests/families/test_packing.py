"""Packed rows are trained as padded ones are, without a mask of all positions, whatever the family packs."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from plait import cli
from plait.assembly.data import open_data
from plait.errors import PlaitError
from plait.families.molmo.packing.sequence import Annotation, build_row
from plait.nn.documents import LONGEST_MASK
from plait.training.planning.fake_step import Live
from tests.families.test_conformance import Case
from tests.training.test_token_lengths import MOLMO, configuration
from tests.waits import Waits

SAMPLES = 6
FAMILIES = ("theworld", "molmo")


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    made = Case(request.param, tmp_path_factory.mktemp(request.param))
    (source,) = open_data(made.config, made.config.data.train, "train")
    made.samples = [source[i] for i in range(2)]
    return made


class Masks(TorchFunctionMode):
    """Context manager: notes the queries, keys and mask of each attention of the language model."""

    def __init__(self):
        super().__init__()
        self.seen, self.heads = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            mask = (kwargs or {}).get("attn_mask")
            self.seen.append((args[0].shape[2], args[1].shape[2], None if mask is None else tuple(mask.shape)))
            self.heads.append((args[0].shape[1], args[1].shape[1]))
        return func(*args, **(kwargs or {}))


def micros(case, pad, size=SAMPLES):
    case.config = case.config.model_copy(update={"data": case.config.data.model_copy(update={"pad": pad})})
    return case.micros(size, count=SAMPLES)


def test_a_packed_micro_batch_has_the_loss_and_gradient_of_a_padded_one(case):
    padded, packed = micros(case, "longest"), micros(case, "none")
    (batch,) = [micro.batch for micro in packed]
    lengths = [document.stop - document.start for document in batch["places"]["documents"]]
    assert batch["ids"].shape == (1, sum(lengths)) and len(lengths) == SAMPLES and len(set(lengths)) > 1
    weights = [case.loss.weights(micro.batch) for micro in (*padded, *packed)]
    by_sample = [case.loss.by_sample(micro.batch) for micro in (*padded, *packed)]
    for name in weights[0]:
        assert torch.equal(weights[0][name], weights[1][name])
    for name in case.loss.amounts:
        assert torch.equal(by_sample[0][name], by_sample[1][name])
    sums = [case.loss.sums(case.model, micro.batch) for micro in (*padded, *packed)]
    for name in sums[0]:
        torch.testing.assert_close(sums[0][name], sums[1][name], rtol=1e-6, atol=1e-6)
    one, other = case.gradient(padded), case.gradient(packed)
    assert one.keys() == other.keys()
    for name in one:  # relative to the largest: sums in another order
        assert (one[name] - other[name]).abs().max() <= 1e-6 * max(1.0, one[name].abs().max())


def test_packed_documents_have_no_mask_and_do_not_wait(case):
    (micro,) = micros(case, "none")
    with Masks() as masks, Waits() as waits:
        sum(case.loss.sums(case.model, micro.batch).values()).backward()
    longest = max(document.stop - document.start for document in micro.batch["places"]["documents"])
    assert not waits.found
    config = language_config(case)
    shared = (config.num_attention_heads, config.num_key_value_heads)
    assert shared[1] < shared[0]
    lengths = {document.stop - document.start for document in micro.batch["places"]["documents"]}
    assert masks.heads.count(shared) >= len(lengths) * config.num_hidden_layers  # keys and values are not repeated for each head
    assert max(queries for queries, _, _ in masks.seen) <= max(longest, micro.batch["real"].shape[1] + 1 if "real" in micro.batch else 0)
    assert micro.batch["ids"].shape[1] > 2 * longest


def test_packs_of_any_size_have_one_gradient(case):
    whole, parts = micros(case, "none"), micros(case, "none", 2)
    assert len(parts) == SAMPLES / 2
    one, other = case.gradient(whole), case.gradient(parts)
    for name in one:
        assert (one[name] - other[name]).abs().max() <= 1e-6 * max(1.0, one[name].abs().max())


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("family", [None, MOLMO], ids=["theworld", "molmo"])
def test_a_packed_run_counts_as_a_padded_one_and_resumes_to_the_bit(tmp_path, family):
    path = configuration(tmp_path, family)
    packed = ["--data.pad=none", "--checkpoint.every_steps=3"]
    for name, more in (("padded", []), ("packed", packed), ("stopped", packed)):
        assert cli.main(["train", str(path), f"--run={tmp_path / name}", "--train.steps=4", *more]) == 0
    shutil.rmtree(tmp_path / "stopped" / "stage-1-train" / "step-00000004")
    assert cli.main(["train", str(path), f"--run={tmp_path / 'stopped'}", "--train.steps=4", *packed]) == 0
    padded, whole = rows_of(tmp_path / "padded"), rows_of(tmp_path / "packed")
    assert [row["tokens"] for row in whole] == [row["tokens"] for row in padded]
    assert [row["loss"] for row in whole] == pytest.approx([row["loss"] for row in padded], rel=1e-5)
    ends = [sorted((tmp_path / name / "stage-1-train" / "step-00000004").glob("weights*")) for name in ("packed", "stopped")]
    assert ends[0] and [path.read_bytes() for path in ends[0]] == [path.read_bytes() for path in ends[1]]


def long_batch(case, length, pad):
    """A micro-batch of a sample whose row is of `length` tokens, mostly supervised, and of the next sample."""
    inputs = case.parts.inputs(case.config, train=True, pad=pad)
    first, second = (inputs.encode(sample, 1) for sample in case.samples[:2])
    if case.family.name == "theworld":
        fill = torch.full((length - len(first.row),), 5)
        parts = {"ids": fill, "kinds": 0 * fill, "labels": fill}
        row = replace(first.row, **{name: torch.cat([vars(first.row)[name], part]) for name, part in parts.items()})
    else:
        shared = first.row.ids[: int((first.row.annotations == 0).sum())].tolist()
        answer = Annotation([5] * (length - len(shared)), [0.0] + [1.0] * (length - len(shared) - 1))
        row = build_row(shared, [answer], text_rows=inputs.tokenizer.image_start)
    return inputs.collate([replace(first, row=row), second])


def held(case, length):
    """Bytes that forward and backward of that micro-batch hold at most."""
    batch = long_batch(case, length, "none")
    case.model.zero_grad()
    with Live([*case.model.parameters()]) as live, Masks() as masks:
        sum(case.loss.sums(case.model, batch).values()).backward()
    sizes = [math.prod(mask) for _, _, mask in masks.seen if mask is not None]
    assert max(sizes, default=0) < LONGEST_MASK**2
    return live.peak


def test_memory_grows_linearly_with_the_length_of_a_row(case):
    lengths = (2560, 5376, 8192) if case.family.name == "theworld" else (2304, 3328, 4352)
    small, middle, large = (held(case, length) for length in lengths)
    assert large - middle == pytest.approx(middle - small, rel=0.1)  # were there masks, it would be 1.4 to 1.7 times as much
    if case.family.name == "theworld":
        assert large < 100e6  # one mask of 8,192 x 8,192 in float32 would be 268 MB


def test_a_padded_row_that_is_too_long_for_a_mask_has_none_and_the_same_loss(case, monkeypatch):
    batches = {}
    for module in ("theworld", "molmo"):
        monkeypatch.setattr(f"plait.families.{module}.inputs.LONGEST_MASK", 1 << 30)
    batches["masked"] = long_batch(case, 2100, "longest")
    monkeypatch.undo()
    batches["within"] = long_batch(case, 2100, "longest")
    assert "documents" in batches["within"]["places"] and "documents" not in batches["masked"]["places"]
    assert batches["within"]["ids"].shape == (2, 2100)
    gradients = []
    for batch in batches.values():
        case.model.zero_grad()
        sums = case.loss.sums(case.model, batch)
        (sums["loss"] / 2100).backward()
        gradients.append({name: value.grad.clone() for name, value in case.model.named_parameters() if value.grad is not None})
    for name, value in gradients[0].items():
        assert (value - gradients[1][name]).abs().max() <= 1e-6 * max(1.0, value.abs().max())


def language_config(case):
    model = case.model
    return (model.gemma.model.language_model if case.family.name == "theworld" else model.language.get_decoder()).config


@torch.no_grad()
def test_after_a_packed_batch_others_are_attended_to_by_their_masks_as_before(case):
    (padded,), (packed,) = micros(case, "longest"), micros(case, "none")
    language_config(case)._attn_implementation = "sdpa"
    before = case.loss.sums(case.model, padded.batch)
    case.loss.sums(case.model, packed.batch)
    assert language_config(case)._attn_implementation != "sdpa"
    after = case.loss.sums(case.model, padded.batch)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_attention_that_is_not_torchs_is_told(case, monkeypatch):
    config = language_config(case)
    before = config._attn_implementation
    config._attn_implementation = "eager"
    with pytest.raises(PlaitError, match=r"attends by eager: load it with attn_implementation sdpa, or set data\.pad=longest"):
        case.loss.sums(case.model, micros(case, "none")[0].batch)
    config._attn_implementation = before
