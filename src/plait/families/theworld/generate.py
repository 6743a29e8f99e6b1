"""Generate answers to prompts with images with a model of family theworld, for `plait generate` and the benches (evaluations).

The token-by-token loop is in nn/decoding.py; this file gives it the model with its cache. The world encoder runs once, in the prefill.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from plait.data.formats.clips import is_clip, read_clip
from plait.data.records import IMAGE_KINDS
from plait.engine.parallel.distributed import to_device
from plait.errors import PlaitError
from plait.families.idle_options import of_draw, refuse_idle
from plait.families.theworld.inputs import WORLD_OF, Example, Inputs
from plait.families.theworld.model import Batch, TheWorld
from plait.families.theworld.options import GenerateOptions
from plait.files import write_json
from plait.keys import key
from plait.nn.decoding import GREEDY, Sampling, decode


def generate(model: TheWorld, inputs: Inputs, options: GenerateOptions, out: Path | None, moment: str) -> list[str]:
    """Answer the prompt of `options`; return [answer], and write it to `out`/answer.json unless `out` is None.

    `moment`: name of the checkpoint's step, such as step-00000100. Raises PlaitError if a file is missing or no clip, for an option that
    changes nothing, and where the model needs a clip.
    """
    refuse_idle(options.model_fields_set, idle(inputs, options) | of_draw(options))
    for name, given in (("image", options.image), ("frames", options.frames)):
        if missing := [str(path) for path in given if not (path.is_file() or (name == "frames" and path.is_dir()))]:
            raise PlaitError(f"generate: --{name}: no file {missing[0]}")
    sample = {
        "id": "prompt",
        "images": [path.read_bytes() for path in options.image],
        "messages": [{"role": "user", "content": options.prompt}],
        "fields": {},
        "frames": [frame for path in options.frames for frame in (read_clip(path, IMAGE_KINDS) if is_clip(path) else [path.read_bytes()])],
    }
    check_clip(inputs, sample, "--frames", "--world=off", wanted=options.world)
    example = inputs.prompt(sample if options.world else {**sample, WORLD_OF: None})
    sampling = Sampling(options.temperature, options.top_p, [key(options.seed, "generate")])
    answer = answers(model, inputs, [example], max_new_tokens=[options.max_new_tokens], sampling=sampling)[0]
    if out is not None:
        settings = {**options.model_dump(mode="json"), "checkpoint": moment}
        write_json(out / "answer.json", {**settings, "answer": answer, "world_tokens": example.world_tokens, "tokens": len(example.row)})
    return [answer]


def idle(inputs: Inputs, options: GenerateOptions) -> dict[str, str]:
    """Return the options about the world that change nothing for this model, with the reason. `options`: as they were given."""
    if inputs.config.world is None:
        why = "this model has no world encoder (model.world is off)"
        return {"frames": why} | ({"world": why} if options.world else {})
    return {} if options.world else {"frames": "only the world encoder sees frames, and it is left out"}


def check_clip(inputs: Inputs, sample: Mapping[str, Any], frames: str, without: str, *, wanted: bool) -> None:
    """Raise PlaitError where a prompt has too few frames for the model, or more than it will ever see.

    `frames` and `without`: what the caller calls the clip, and leaving the world out; `wanted`: whether it is to be used.
    """
    world, grid = inputs.config.world, inputs.grid
    if world is None or grid is None or not wanted:
        return
    if (lacking := inputs.lacks_frames(dict(sample))) is not None:
        raise PlaitError(f"generate: this model was trained on clips or futures: {lacking}: give {frames} a clip, or {without}")
    if not world.steps and sample["frames"] and (sample["images"] or len(sample["frames"]) > 1):
        raise PlaitError(f"generate: {frames}: model.world.steps is 0, so that the world encoder sees one picture: give it as the image")


def answers(
    model: TheWorld, inputs: Inputs, examples: Sequence[Example], *, max_new_tokens: Sequence[int], sampling: Sampling = GREEDY
) -> list[str]:
    """Generate the answer to each of `examples`, prompts made by `Inputs.prompt`, of at most `max_new_tokens[i]` tokens, as text.

    `inputs`: collates the prompts and decodes the answers; `sampling`: how tokens are chosen, by default the likeliest.
    """
    batch = to_device(inputs.collate(examples, left=True), model.gemma.device)
    rows = decode(CachedTheWorld(model, batch), max_new_tokens=max_new_tokens, stops=inputs.chat.stops, sampling=sampling)
    return [inputs.chat.decode(row).strip() for row in rows]


class CachedTheWorld:
    """A model with a left-padded batch of prompts and its key-value cache, mask and positions; nn/decoding.py calls its methods."""

    def __init__(self, model: TheWorld, batch: Batch):
        assert bool(batch["attention_mask"][:, -1].all()), "prompts are padded on the left: a pad at the end would be continued"
        self.model, self.batch = model, batch
        self.cache = DynamicCache(config=model.gemma.config.get_text_config())
        self.mask_BK, self.position_B1 = batch["attention_mask"], batch["positions"][:, -1:]

    def prefill(self) -> Tensor:
        """Process images, worlds and prompts, and fill the cache; return the logits (B, V) of each row's first new token."""
        return self._logits(self.model.hidden(self.model.embed(self.batch), self.batch, self.cache))

    def advance(self, token_B: Tensor) -> Tensor:
        """Append one token id per row, `token_B`, to the cache; return the logits (B, V) of the next."""
        self.mask_BK = torch.cat([self.mask_BK, self.mask_BK.new_ones(len(self.mask_BK), 1)], dim=1)
        self.position_B1 = self.position_B1 + 1
        gemma = self.model.gemma
        output = gemma.model(
            inputs_embeds=gemma.get_input_embeddings()(token_B[:, None]),
            attention_mask=self.mask_BK,
            position_ids=self.position_B1,
            past_key_values=self.cache,
            use_cache=True,
        )
        return self._logits(output.last_hidden_state)

    def _logits(self, hidden_BLD: Tensor) -> Tensor:
        return self.model.logits(hidden_BLD[:, -1:])[:, 0]
