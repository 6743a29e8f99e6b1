"""Answers: one prefill over the fused sequence, then a token at a time over the cache. The world encoder runs once, in the prefill.

Sampling draws from each row's own key, so that a row's answer does not depend on its neighbours in the batch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers import DynamicCache

from plait.errors import PlaitError
from plait.families.theworld.inputs import Example, Inputs
from plait.families.theworld.model import TheWorld
from plait.files import write_json
from plait.keys import key, rng


class GenerateOptions(BaseModel):
    """What `plait generate` asks of family theworld."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(default="", description="the user's text; <image> marks the place of the next image, else images come first")
    image: list[Path] = Field(default=[], description="image files; the world encoder sees the first")
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0: always the likeliest token")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="draw among the likeliest tokens of this total probability"
    )
    seed: int = 0
    world: bool = Field(default=True, description="off: leave the world block out, which leaves Gemma")

    @field_validator("image", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value


def generate(model: TheWorld, inputs: Inputs, options: GenerateOptions, out: Path | None) -> list[str]:
    """The answer; with `out`, also answer.json there."""
    missing = [str(path) for path in options.image if not path.is_file()]
    if missing:
        raise PlaitError(f"generate: --image: no file {missing[0]}")
    sample = {
        "id": "prompt",
        "images": [path.read_bytes() for path in options.image],
        "messages": [{"role": "user", "content": options.prompt}],
        "fields": {},
    }
    example = inputs.prompt(sample, world=options.world)
    drawn = {"temperature": options.temperature, "top_p": options.top_p}
    answer = answers(model, inputs, [example], max_new_tokens=[options.max_new_tokens], keys=[key(options.seed, "generate")], **drawn)[0]
    if out is not None:
        asked = options.model_dump(mode="json")
        write_json(out / "answer.json", {**asked, "answer": answer, "world_tokens": example.world_tokens, "tokens": len(example.row)})
    return [answer]


def answers(
    model: TheWorld,
    inputs: Inputs,
    examples: Sequence[Example],
    *,
    max_new_tokens: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[int] = (),
) -> list[str]:
    """Texts for a batch of prompts, each cut at its own `max_new_tokens`."""
    batch = {name: value.to(model.gemma.device) for name, value in inputs.collate(examples, left=True).items()}
    stops = inputs.chat.stops
    rows = decode(model, batch, max_new_tokens=max(max_new_tokens), stops=stops, temperature=temperature, top_p=top_p, keys=keys)
    return [inputs.chat.decode(row[:most]).strip() for row, most in zip(rows, max_new_tokens, strict=True)]


@torch.no_grad()
def decode(
    model: TheWorld,
    batch: dict[str, Tensor],
    *,
    max_new_tokens: int,
    stops: frozenset[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[int] = (),
) -> list[list[int]]:
    """New tokens of each row of a left-padded batch, up to and without its stop token."""
    assert bool(batch["attention_mask"][:, -1].all()), "prompts are padded on the left: a pad at the end would be continued"
    cache = DynamicCache(config=model.gemma.config.get_text_config())
    hidden = model.hidden(model.embed(batch), batch, cache)
    mask, position = batch["attention_mask"], batch["positions"][:, -1:]
    chosen: list[Tensor] = []
    going = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
    stopping = torch.tensor(sorted(stops), device=mask.device)
    for count in range(max_new_tokens):
        token = _pick(model.logits(hidden[:, -1:])[:, 0].float(), temperature, top_p, [rng(k, count).random() for k in keys])
        chosen.append(torch.where(going, token, stopping[0]))
        going &= ~torch.isin(token, stopping)
        if count + 1 == max_new_tokens or not going.any():
            break
        mask, position = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), position + 1
        hidden = model.gemma.model(
            inputs_embeds=model.gemma.get_input_embeddings()(token[:, None]),
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def _pick(logits_BV: Tensor, temperature: float, top_p: float, draws: Sequence[float]) -> Tensor:
    """The likeliest token, or the one where a row's draw in [0, 1) falls in the distribution cut to `top_p` (nucleus, arXiv:1904.09751)."""
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    assert len(draws) == len(logits_BV), "sampling needs one key per row"
    probability, order = (logits_BV.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probability.cumsum(-1) - probability
    kept = torch.where(before < top_p, probability, 0.0).cumsum(-1)
    draw = torch.tensor(draws, dtype=kept.dtype, device=kept.device)[:, None] * kept[:, -1:]
    return order.gather(-1, (kept <= draw).sum(-1, keepdim=True).clamp(max=kept.shape[-1] - 1))[:, 0]
