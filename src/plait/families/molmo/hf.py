"""transformers' face of family molmo: importing it lets AutoModelForCausalLM and AutoProcessor load what `plait export --to hf` wrote.

The classes hold the family's own model and inputs and add nothing to them. Registration is what this module is for, and all it does.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.hub import cached_file

from plait.families.molmo.config import Config
from plait.families.molmo.inputs import Inputs, Words2Ids
from plait.families.molmo.model import assemble
from plait.families.molmo.towers import new_vision

MODEL_TYPE = "plait_molmo"


def _encoded(image: Image.Image | bytes) -> bytes:
    """An image file: what the family's inputs read. PNG keeps every pixel."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class MolmoConfig(PreTrainedConfig):
    """The family's `model:` section, and the language model's own configuration."""

    model_type = MODEL_TYPE

    def __init__(self, plait: dict[str, Any] | None = None, text_config: dict[str, Any] | None = None, **kwargs: Any):
        self.plait, self.text_config = plait or {}, text_config or {}
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The language model's configuration; this one while there is none yet."""
        return AutoConfig.for_model(**self.text_config) if self.text_config else self


class MolmoForCausalLM(PreTrainedModel, GenerationMixin):
    """`crops`, `real` and `pools` are the images of the whole batch, as the processor makes them; their tokens stand in `input_ids`."""

    config_class = MolmoConfig
    base_model_prefix = "inner"  # none: `model` holds everything
    _supports_sdpa = True

    def __init__(self, config: MolmoConfig):
        super().__init__(config)
        section = Config.model_validate(config.plait)
        language = AutoModelForCausalLM.from_config(config.get_text_config())
        self.model = assemble(section, language, new_vision(section), seed=0)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Only what no file holds: the numbers of positions."""
        places = getattr(module, "position_ids", None)
        if isinstance(places, Tensor):
            places.copy_(torch.arange(places.shape[-1], device=places.device).expand_as(places))

    def get_input_embeddings(self) -> nn.Module:
        """The language model's own; image tokens' rows are the connector's."""
        return self.model.language.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        crops: Tensor | None = None,
        real: Tensor | None = None,
        pools: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, V) of one conversation per row."""
        images = {"crops": input_ids.new_empty(0) if crops is None else crops, "real": real, "pools": pools}
        out = self.model.language.get_decoder()(
            inputs_embeds=self.model.embed({"ids": input_ids, **images}),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
        )
        hidden = out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state
        return CausalLMOutputWithPast(logits=self.model.logits(hidden), past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Images are shown in the prefill alone; after it they are in the cache."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            kwargs |= {"crops": None, "real": None, "pools": None}
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)  # type: ignore[arg-type]


class MolmoProcessor:
    """Images and a prompt to the model's inputs, by the family's own code."""

    def __init__(self, inputs: Inputs, tokenizer: Any):
        self.inputs, self.tokenizer = inputs, tokenizer

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> "MolmoProcessor":
        """From an exported directory or Hub repository."""
        known = {key: kwargs[key] for key in ("revision", "cache_dir", "token", "local_files_only") if kwargs.get(key) is not None}
        settings = json.loads(Path(str(cached_file(name, "config.json", **known))).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(cached_file(name, "tokenizer.json", **known)))
        config = Config.model_validate(settings["plait"])
        words = Words2Ids(tokenizer, AutoConfig.for_model(**settings["text_config"]))
        return cls(Inputs(config, Path(), words=words), AutoTokenizer.from_pretrained(name, **known))

    def __call__(self, images: Any = None, text: str | Sequence[str] = "", style: str | None = None, **kwargs: Any) -> BatchFeature:
        """`text`: one prompt, or one per row. `images`: an image or a list of them for one prompt, a list of lists for several."""
        prompts = [text] if isinstance(text, str) else list(text)
        shown = [images] if isinstance(text, str) else images or [None] * len(prompts)
        fields = {} if style is None else {"style": style}
        rows = []
        for prompt, pictures in zip(prompts, shown, strict=True):
            listed = [] if pictures is None else [pictures] if isinstance(pictures, Image.Image | bytes) else list(pictures)
            asked = [{"role": "user", "content": prompt}]
            rows.append(
                self.inputs.prompt({"images": [_encoded(one) for one in listed], "messages": asked, "fields": fields, "id": prompt})
            )
        batch = self.inputs.collate(rows, left=True)
        seen = batch["segments"][..., 0] >= 0
        named = {"input_ids": batch["ids"], "attention_mask": seen.long(), "position_ids": batch["positions"]}
        return BatchFeature({**named, **{name: batch[name] for name in ("crops", "real", "pools")}})

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """Text of generated tokens, without image tokens and ends."""
        return self.inputs.words.text([int(i) for i in ids]).strip()

    def batch_decode(self, rows: Any, **kwargs: Any) -> list[str]:
        """`decode` of every row."""
        return [self.decode(row) for row in rows]


AutoConfig.register(MODEL_TYPE, MolmoConfig, exist_ok=True)
AutoModelForCausalLM.register(MolmoConfig, MolmoForCausalLM, exist_ok=True)
AutoProcessor.register(MolmoConfig, MolmoProcessor, exist_ok=True)
