"""Answers: one prefill over images and prompt, then a token at a time over the cache. The tower runs once, in the prefill."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers import DynamicCache

from plait.errors import PlaitError
from plait.families.molmo.inputs import Example, Inputs
from plait.families.molmo.model import Molmo
from plait.families.molmo.sequence import PADDING
from plait.files import write_json
from plait.keys import key, rng
from plait.nn.sampling import pick


class GenerateOptions(BaseModel):
    """What `plait generate` asks of family molmo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(default="", description="the user's text; images come first, or at <|image|> marks")
    image: list[Path] = Field(default=[], description="image files")
    style: str | None = Field(default=None, description="what the prompt begins with, such as vqa2; None: the model's default_style")
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0.0)] = Field(default=0.0, description="0: always the likeliest token")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=1.0, description="draw among the likeliest tokens of this total probability"
    )
    seed: int = 0

    @field_validator("image", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Path) else value


def generate(model: Molmo, inputs: Inputs, options: GenerateOptions, out: Path | None) -> list[str]:
    """The answer; with `out`, also answer.json there."""
    missing = [str(path) for path in options.image if not path.is_file()]
    if missing:
        raise PlaitError(f"generate: --image: no file {missing[0]}")
    fields = {} if options.style is None else {"style": options.style}
    pictures = [path.read_bytes() for path in options.image]
    sample = {"id": "prompt", "images": pictures, "messages": [{"role": "user", "content": options.prompt}], "fields": fields}
    example = inputs.prompt(sample)
    drawn: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p}
    answer = answers(model, inputs, [example], max_new_tokens=[options.max_new_tokens], keys=[key(options.seed, "generate")], **drawn)[0]
    if out is not None:
        write_json(out / "answer.json", {**options.model_dump(mode="json"), "answer": answer, "tokens": len(example.row)})
    return [answer]


def answers(
    model: Molmo,
    inputs: Inputs,
    examples: Sequence[Example],
    *,
    max_new_tokens: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[int] = (),
) -> list[str]:
    """Texts for a batch of prompts, each cut at its own `max_new_tokens`."""
    batch = {name: value.to(model.head.device) for name, value in inputs.collate(examples, left=True).items()}
    drawn: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "keys": keys}
    rows = decode(model, batch, max_new_tokens=max(max_new_tokens), stops=inputs.words.stops, **drawn)
    return [inputs.words.text(row[:most]).strip() for row, most in zip(rows, max_new_tokens, strict=True)]


@torch.no_grad()
def decode(
    model: Molmo,
    batch: dict[str, Tensor],
    *,
    max_new_tokens: int,
    stops: frozenset[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    keys: Sequence[int] = (),
) -> list[list[int]]:
    """New tokens of each row of a left-padded batch, up to and without its stop token. The model must be in evaluation mode."""
    seen_BL = batch["segments"][..., 0] != PADDING
    assert bool(seen_BL[:, -1].all()), "prompts are padded on the left: a pad at the end would be continued"
    cache = DynamicCache()  # keeps every position: windows are cut by the mask
    hidden = model.hidden(model.embed(batch), batch, cache)
    positions_BL = batch["positions"]
    chosen: list[Tensor] = []
    going = torch.ones(len(seen_BL), dtype=torch.bool, device=seen_BL.device)
    stopping = torch.tensor(sorted(stops), device=seen_BL.device)
    for count in range(max_new_tokens):
        draws = [rng(k, count).random() for k in keys]
        token_B = pick(model.logits(hidden[:, -1]).float(), temperature=temperature, top_p=top_p, draws=draws)
        chosen.append(torch.where(going, token_B, stopping[0]))
        going &= ~torch.isin(token_B, stopping)
        if count + 1 == max_new_tokens or not going.any():
            break
        seen_BL = torch.cat([seen_BL, seen_BL.new_ones(len(seen_BL), 1)], dim=1)
        positions_BL = torch.cat([positions_BL, positions_BL[:, -1:] + 1], dim=1)
        words = model.language.get_input_embeddings()(token_B[:, None])
        hidden = model.decoded(words, seen_BL[:, None, None, :], positions_BL[:, -1:], positions_BL, cache)
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]
