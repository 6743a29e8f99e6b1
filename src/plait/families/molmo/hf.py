"""Classes by which transformers' AutoModelForCausalLM and AutoProcessor load `plait export --to hf`; importing this registers them.

They wrap the family's own model and inputs and add nothing to them.
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
from plait.families.molmo.inputs import Inputs, TextTokenizer
from plait.families.molmo.model import assemble
from plait.families.molmo.packing.sequence import PADDING
from plait.families.molmo.towers import new_vision
from plait.nn import trust

MODEL_TYPE = "plait_molmo"


def _encode_png(image: Image.Image | bytes) -> bytes:
    """Return an image as a file for the family's inputs. PNG keeps every pixel."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class MolmoConfig(PreTrainedConfig):
    """Configuration of an export: `plait`, the family's `model:` section as a dict, and `text_config`, the language model's."""

    model_type = MODEL_TYPE

    def __init__(self, plait: dict[str, Any] | None = None, text_config: dict[str, Any] | None = None, **kwargs: Any):
        self.plait, self.text_config = plait or {}, text_config or {}
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the language model's configuration, or without `text_config` this object, as transformers may construct it."""
        return AutoConfig.for_model(**self.text_config) if self.text_config else self


class MolmoForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with the interface of transformers' `generate`.

    MolmoProcessor returns its inputs: `input_ids` (B, L) with image tokens, and for the images of the whole batch `crops` (n, 3, S, S)
    uint8, `real` (n, P), the share of each of P patches that is image, and `pools` (T, 4), the patches of each image token.
    """

    config_class = MolmoConfig
    base_model_prefix = "inner"  # none: `model` holds everything
    _supports_sdpa = True

    def __init__(self, config: MolmoConfig):
        super().__init__(config)
        section = Config.model_validate(config.plait)
        language = AutoModelForCausalLM.from_config(config.get_text_config())
        self.model = assemble(section, language, new_vision(section), seed=0)
        PreTrainedModel.post_init(self)

    def _init_weights(self, module: nn.Module) -> None:
        """Fill only what no file holds: the position numbers."""
        position_ids = dict(module.named_buffers(recurse=False)).get("position_ids")
        if position_ids is not None:
            position_ids.copy_(torch.arange(position_ids.shape[-1], device=position_ids.device).expand_as(position_ids))

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's embedding, as transformers requires; it has no rows for image tokens (the connector has them)."""
        embeddings: nn.Module = self.model.language.get_input_embeddings()
        return embeddings

    def forward(  # noqa: PLR0917  transformers' signature
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
        """Return logits (B, L, V), of the last `logits_to_keep` positions only if that is not 0, and the cache.

        `crops`, `real` and `pools`: the images of the batch, as MolmoProcessor returns them; None in steps after the prefill.
        """
        images = {"crops": input_ids.new_empty(0) if crops is None else crops, "real": real, "pools": pools}
        output = self.model.language.get_decoder()(
            inputs_embeds=self.model.embed({"ids": input_ids, **images}),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else output.last_hidden_state
        return CausalLMOutputWithPast(logits=self.model.logits(hidden), past_key_values=output.past_key_values)

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments of `forward` for transformers' `generate`; images only in the prefill, as later they are in the cache."""
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            kwargs |= {"crops": None, "real": None, "pools": None}
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)  # type: ignore[arg-type]  # the mixin's `self` is not typed as a model


class MolmoProcessor:
    """Turns images and prompts into the inputs of MolmoForCausalLM, as training encodes them; decodes its tokens to text.

    Called with (images, text, style), or lists for several rows. `inputs` does the work; `tokenizer`, of transformers, is for callers.
    """

    def __init__(self, inputs: Inputs, tokenizer: Any):
        self.inputs, self.tokenizer = inputs, tokenizer

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> "MolmoProcessor":
        """Open the processor of an exported directory or Hub repository, from its config.json and tokenizer.json.

        `kwargs`: `revision`, `cache_dir`, `token` and `local_files_only` are used, as transformers does; others are ignored.
        """
        hub = {key: kwargs[key] for key in ("revision", "cache_dir", "token", "local_files_only") if kwargs.get(key) is not None}
        settings = json.loads(Path(str(cached_file(name, "config.json", **hub))).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(cached_file(name, "tokenizer.json", **hub)))
        config = Config.model_validate(settings["plait"])
        text_tokenizer = TextTokenizer(tokenizer, AutoConfig.for_model(**settings["text_config"]))
        return cls(Inputs(config, Path(), tokenizer=text_tokenizer), AutoTokenizer.from_pretrained(name, **hub, **trust.CONFIG))

    def __call__(self, images: Any = None, text: str | Sequence[str] = "", style: str | None = None, **kwargs: Any) -> BatchFeature:
        """Encode a prompt with an image or list of them, or a list of prompts with a list of lists. `style`: such as vqa2."""
        prompts = [text] if isinstance(text, str) else list(text)
        images_by_row = [images] if isinstance(text, str) else images or [None] * len(prompts)
        fields = {} if style is None else {"style": style}
        rows = []
        for prompt, given in zip(prompts, images_by_row, strict=True):
            images_of_row = [] if given is None else [given] if isinstance(given, Image.Image | bytes) else list(given)
            messages = [{"role": "user", "content": prompt}]
            encoded = [_encode_png(image) for image in images_of_row]
            rows.append(self.inputs.prompt({"images": encoded, "messages": messages, "fields": fields, "id": prompt}))
        batch = self.inputs.collate(rows, left=True)
        visible = batch["segments"][..., 0] != PADDING
        text_inputs = {"input_ids": batch["ids"], "attention_mask": visible.long(), "position_ids": batch["positions"]}
        return BatchFeature({**text_inputs, **{name: batch[name] for name in ("crops", "real", "pools")}})

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """Return the text of a sequence of generated token ids, without image tokens and ends of text."""
        return self.inputs.tokenizer.decode([int(i) for i in ids]).strip()

    def batch_decode(self, rows: Any, **kwargs: Any) -> list[str]:
        """Return the text of each row of generated token ids, without image tokens and ends of text."""
        return [self.decode(row) for row in rows]


AutoConfig.register(MODEL_TYPE, MolmoConfig, exist_ok=True)
AutoModelForCausalLM.register(MolmoConfig, MolmoForCausalLM, exist_ok=True)
AutoProcessor.register(MolmoConfig, MolmoProcessor, exist_ok=True)
