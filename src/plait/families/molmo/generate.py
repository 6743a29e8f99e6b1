"""Generate answers to prompts with images with a model of family molmo, for `plait generate` and the benches (evaluations).

The token-by-token loop is in nn/decoding.py; this file gives it the model with its cache. The vision tower runs once, in the prefill.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import DynamicCache

from plait.engine.parallel.distributed import to_device
from plait.errors import PlaitError
from plait.families.idle_options import of_draw, refuse_idle
from plait.families.molmo.inputs import Example, Inputs
from plait.families.molmo.model import Batch, Molmo
from plait.families.molmo.options import GenerateOptions
from plait.families.molmo.packing.sequence import PADDING
from plait.files import write_json
from plait.keys import key
from plait.nn.decoding import GREEDY, Sampling, decode


def generate(model: Molmo, inputs: Inputs, options: GenerateOptions, out: Path | None, moment: str) -> list[str]:
    """Answer the prompt of `options`; return [answer], and write it to `out`/answer.json unless `out` is None.

    `moment`: name of the checkpoint's step, such as step-00000100. Raises PlaitError if an image file is missing, and for an option that
    changes nothing.
    """
    unnamed = {"style": "model.style is none, so that no prompt names its style"} if inputs.config.style == "none" else {}
    refuse_idle(options.model_fields_set, unnamed | of_draw(options))
    missing = [str(path) for path in options.image if not path.is_file()]
    if missing:
        raise PlaitError(f"generate: --image: no file {missing[0]}")
    sample = {
        "id": "prompt",
        "images": [path.read_bytes() for path in options.image],
        "messages": [{"role": "user", "content": options.prompt}],
        "fields": {} if options.style is None else {"style": options.style},
    }
    example = inputs.prompt(sample)
    sampling = Sampling(options.temperature, options.top_p, [key(options.seed, "generate")])
    answer = answers(model, inputs, [example], max_new_tokens=[options.max_new_tokens], sampling=sampling)[0]
    if out is not None:
        settings = {**options.model_dump(mode="json"), "checkpoint": moment}
        write_json(out / "answer.json", {**settings, "answer": answer, "tokens": len(example.row)})
    return [answer]


def answers(
    model: Molmo, inputs: Inputs, examples: Sequence[Example], *, max_new_tokens: Sequence[int], sampling: Sampling = GREEDY
) -> list[str]:
    """Generate the answer to each of `examples`, prompts made by `Inputs.prompt`, of at most `max_new_tokens[i]` tokens, as text.

    `model`: in eval mode. `inputs`: collates the prompts, decodes the answers. `sampling`: how tokens are chosen, by default the likeliest.
    """
    batch = to_device(inputs.collate(examples, left=True), model.head.device)
    rows = decode(CachedMolmo(model, batch), max_new_tokens=max_new_tokens, stops=inputs.tokenizer.stops, sampling=sampling)
    return [inputs.tokenizer.decode(row).strip() for row in rows]


class CachedMolmo:
    """A model with a left-padded batch of prompts and its key-value cache, mask and positions; nn/decoding.py calls its methods."""

    def __init__(self, model: Molmo, batch: Batch):
        self.model, self.batch = model, batch
        self.visible_BK, self.positions_BK = batch["segments"][..., 0] != PADDING, batch["positions"]
        assert bool(self.visible_BK[:, -1].all()), "prompts are padded on the left: a pad at the end would be continued"
        self.cache = DynamicCache()  # keeps every position: sliding windows are cut by the mask

    def prefill(self) -> Tensor:
        """Process images and prompts, and fill the cache; return the logits (B, V) of each row's first new token."""
        hidden_BLD = self.model.hidden(self.model.embed(self.batch), self.batch, self.cache)
        return self.model.logits(hidden_BLD[:, -1])

    def advance(self, token_B: Tensor) -> Tensor:
        """Append one token id per row, `token_B`, to the cache; return the logits (B, V) of the next."""
        self.visible_BK = torch.cat([self.visible_BK, self.visible_BK.new_ones(len(self.visible_BK), 1)], dim=1)
        self.positions_BK = torch.cat([self.positions_BK, self.positions_BK[:, -1:] + 1], dim=1)
        embeds_B1D = self.model.language.get_input_embeddings()(token_B[:, None])
        mask_B11K = self.visible_BK[:, None, None, :]
        hidden_B1D = self.model.run_decoder(embeds_B1D, mask_B11K, self.positions_BK[:, -1:], self.positions_BK, self.cache)
        return self.model.logits(hidden_B1D[:, -1])
