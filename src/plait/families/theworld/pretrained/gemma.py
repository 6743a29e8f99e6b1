"""Read Gemma 3 by its Hub name, at a revision, or from a local `save_pretrained` directory: configuration, weights, tokenizer."""

import logging
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GenerationConfig
from transformers.initialization import no_init_weights

from plait.errors import PlaitError
from plait.families.theworld.pretrained import held, published
from plait.families.theworld.pretrained.hub import MAIN, loading
from plait.nn import trust
from plait.nn.tokenizer import open_tokenizer

log = logging.getLogger(__name__)


def config(name: str, revision: str | None) -> Gemma3Config:
    """Return the configuration of a Gemma; nothing is downloaded for published ones. Raises PlaitError if it cannot be loaded."""
    if (known := published.gemma(name)) is not None:
        return Gemma3Config(**known)
    if (exported := held.gemma(name)) is not None:
        return Gemma3Config(**exported)
    with loading("model.base", name):
        return Gemma3Config.from_pretrained(name, revision=revision or MAIN, **trust.CONFIG)


def load(name: str, revision: str | None) -> Gemma3ForConditionalGeneration:
    """Return a Gemma in the dtype it was saved in. Raises PlaitError if it cannot be loaded."""
    if held.is_whole(name):
        raise PlaitError(f"model.base: {name} is a whole model of theworld, not a Gemma: set `from: {name}`, or export it with --to hf")
    with loading("model.base", name):
        return Gemma3ForConditionalGeneration.from_pretrained(name, revision=revision or MAIN, dtype="auto", **trust.WEIGHTS)


def empty(settings: Gemma3Config, name: str, revision: str | None) -> Gemma3ForConditionalGeneration:
    """Return a Gemma with weights of any value, for a start that overwrites them, in the dtype that its configuration names.

    Reads the configuration of generation alone, or the weights too where no dtype is named: only they can tell it then.
    """
    if not isinstance(settings.dtype, torch.dtype):
        return load(name, revision)
    with no_init_weights():
        gemma: Gemma3ForConditionalGeneration = Gemma3ForConditionalGeneration._from_config(settings, dtype=settings.dtype)
    try:
        gemma.generation_config = GenerationConfig.from_pretrained(name, revision=revision or MAIN)
    except OSError as error:
        if not Path(name).is_dir():  # a folder need not have one
            reason = next(iter(str(error).splitlines()), "")
            log.warning(f"{name}: its generation_config.json cannot be read ({reason}): an export has transformers' settings")
    gemma.tie_weights()
    gemma.get_input_embeddings().get_parameter("weight").data[: 1 << 16] = 1.0  # a new projector, overwritten too, is drawn at their scale
    return gemma


def tokenizer(name: str, revision: str | None) -> Tokenizer:
    """Return Gemma's fast tokenizer. Raises PlaitError if there is none."""
    with loading("model.base", name):
        path = Path(name) / "tokenizer.json"
        if not Path(name).is_dir():
            path = Path(hf_hub_download(name, "tokenizer.json", revision=revision or MAIN))
        if not path.is_file():
            raise PlaitError(f"model.base: {name} holds no tokenizer.json; save the tokenizer there with save_pretrained")
        return open_tokenizer(path, "save or download it again")
