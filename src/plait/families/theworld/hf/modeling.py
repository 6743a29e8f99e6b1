"""The model of families/theworld/model.py as a model of transformers: its own parts under transformers' loading, saving and `generate`.

Legend: B rows, L positions, N images of a row at most, F frames of a row at most, S and W pixels of their sides, V vocabulary rows.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from plait.errors import PlaitError, first_names
from plait.families.theworld.config import Config
from plait.families.theworld.hf import encoder_weights
from plait.families.theworld.hf.configuration import CODE, CODE_TEXT, TheWorldConfig
from plait.families.theworld.model import Batch, TheWorld
from plait.families.theworld.pretrained import held, hub
from plait.families.theworld.pretrained.encoder import WorldEncoder
from plait.families.theworld.sequence import Kind, places_of
from plait.families.theworld.world import WorldProjector
from plait.files import write_whole
from plait.nn import trust

log = logging.get_logger(__name__)

SHARD = "5GB"
_ONCE = ("kinds", "pixels", "pixel_counts", "frames", "frame_counts")


class TheWorldForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers prompts about images and clips. TheWorldProcessor returns the inputs of `forward`.

    `kinds` (B, L): what each position holds (`Kind`); `pixels` (B, N, 3, S, S) uint8, for the vision tower, and `pixel_counts` (B,), how
    many of them each row has; `frames` (B, F, 3, W, W) uint8, for the world encoder, and `frame_counts` (B,).
    """

    config_class = TheWorldConfig
    base_model_prefix = "inner"  # none
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "text"]  # noqa: RUF012  transformers' own attribute
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = False
    _no_split_modules = ["Gemma3DecoderLayer", "SiglipEncoderLayer", "WorldEncoder", "WorldProjector"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = [r"^world\.", r"^projector\."]  # noqa: RUF012  as a run has them

    def __init__(self, config: TheWorldConfig, model: TheWorld | None = None):
        """Build the model from its sizes, or hold `model`, which has them."""
        super().__init__(config)
        whole = _built(config) if model is None else model
        self.gemma, self.world, self.projector = whole.gemma, whole.world, whole.projector
        if config.encoder_config is not None:
            self._keys_to_ignore_on_load_missing = [held.UNUSED if config.encoder_pin is None else encoder_weights.ENCODER]
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Load an export, as transformers does, and the world encoder from where its pin says if the files do not hold it.

        Raises PlaitError where files lack weights of the model or have others, and for an encoder that is not the one of the pin.
        """
        own: dict[str, Any] = {name: value for name, value in kwargs.items() if name not in trust.WEIGHTS}
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **own, **trust.WEIGHTS)  # type: ignore[misc]
        model, info = loaded
        for what, names in (("lack", info["missing_keys"]), ("hold, of no use in this model,", info["unexpected_keys"])):
            if names:
                raise PlaitError(f"{args[0] if args else ''}: the files {what} {len(names)} tensors: {first_names(sorted(names))}")
        if model.config.encoder_pin is not None:
            encoder_weights.load(model.world, model.config.plait, model.config.encoder_pin)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | Path, *args: Any, encoder: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, generation_config.json and the weights; with `encoder` also those of a world encoder that has a pin.

        They are written too, with a warning, if they are no longer those of the pin. Other arguments are transformers' own.
        """
        pin = self.config.encoder_pin
        if pin is not None and self.world is not None and not encoder and not encoder_weights.fits(self.world, pin):
            log.warning(f"the world encoder is no longer that of {pin['source']}: its weights are saved with the model")
            encoder = True
        keep = encoder_weights.used if encoder or pin is None else encoder_weights.elsewhere
        weights = kwargs.pop("state_dict", None) or self.state_dict()
        self.config.encoder_pin = None if encoder else pin
        write_whole(Path(save_directory) / CODE, CODE_TEXT)
        try:
            super().save_pretrained(
                save_directory,
                *args,
                **{
                    "max_shard_size": SHARD,
                    "save_original_format": False,
                    "state_dict": {name: value for name, value in weights.items() if keep(name)},
                    **kwargs,
                },
            )
        finally:
            self.config.encoder_pin = pin

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers would copy the file of this class into what it saves."""

    @property
    def model(self) -> TheWorld:
        """The same parts as a model of the family, which a run trains."""
        return TheWorld(self.gemma, self.world, self.projector)

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what no file holds: constants of the world encoder, such as the statistics of its latents."""
        if isinstance(module, WorldEncoder):
            module.fill()

    def get_input_embeddings(self) -> nn.Module:
        """Return Gemma's embedding."""
        embeddings: nn.Module = self.gemma.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return Gemma's head."""
        head: nn.Module = self.gemma.lm_head
        return head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        kinds: Tensor | None = None,
        pixels: Tensor | None = None,
        pixel_counts: Tensor | None = None,
        frames: Tensor | None = None,
        frame_counts: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Return logits (B, L, V), the cache, and with `labels` the loss. `logits_to_keep`: of the last positions only, 0 for all.

        `labels` (B, L): the ids themselves, which are shifted here, so that each position predicts the next; -100 counts for nothing. The
        loss is their mean cross-entropy, and needs all logits.
        """
        if inputs_embeds is None:
            assert input_ids is not None, "give input_ids or inputs_embeds"
            kinds = _padded(kinds, input_ids)
            inputs_embeds = self.model.embed(_batch(input_ids, kinds, (pixels, pixel_counts), (frames, frame_counts)))
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        blocks = None if kinds is None else ((kinds == Kind.IMAGE) | (kinds == Kind.WORLD)).long()
        output = self.gemma.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=blocks,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BLV = self.model.logits(output.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits=logits_BLV, labels=labels, vocab_size=logits_BLV.shape[-1])
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits_BLV,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments of `forward` for `generate`; images and frames only at first, as later they are in the cache."""
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            kwargs |= dict.fromkeys(_ONCE)
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)  # type: ignore[arg-type]  # the mixin's `self` is not typed as a model


def _built(config: TheWorldConfig) -> TheWorld:
    gemma = Gemma3ForConditionalGeneration(config.gemma_config)
    section = config.plait
    if section.world is None:
        return TheWorld(gemma, None, None)
    encoder: dict[str, Any] = config.encoder_config or {}
    world = hub.random(encoder, section.world.image_size)
    projector = WorldProjector(section.world, world.grid, gemma.get_input_embeddings().get_parameter("weight").shape[1])
    return TheWorld(gemma, world, projector)


def wrapped(model: TheWorld, section: Config) -> TheWorldForConditionalGeneration:
    """Return `model`, itself and not a copy, as transformers' model. `section`: its `model:` section. It has no pin of the encoder yet."""
    encoder = None if model.world is None else model.world.settings
    dtype = model.gemma.config.dtype
    config = TheWorldConfig(
        gemma_config=copy.deepcopy(model.gemma.config),
        section=section.model_dump(mode="json"),
        encoder_config=encoder,
        dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32,
    )
    whole = TheWorldForConditionalGeneration(config, model)
    whole.generation_config = copy.deepcopy(model.gemma.generation_config)
    return whole


def _padded(kinds: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """Return what each position holds, where `generate` without a cache has added words at the end."""
    if kinds is None or kinds.shape[1] == input_ids.shape[1]:
        return kinds
    return nn.functional.pad(kinds, (0, input_ids.shape[1] - kinds.shape[1]), value=int(Kind.TEXT))


def _flat(pictures: Tensor | None, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the pictures of all rows, one row's after the other's, and how many each row has that has any."""
    if pictures is None or counts is None:
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
    given_BN = torch.arange(pictures.shape[1], device=counts.device) < counts[:, None]
    return pictures[given_BN.to(pictures.device)], counts[counts > 0]


def _batch(ids: Tensor, kinds: Tensor | None, images: tuple[Any, Any], clips: tuple[Any, Any]) -> Batch:
    """Return a batch of families/theworld/model.py. Raises ValueError for other pictures than the positions are for."""
    (pixels, _), (frames, frame_counts) = _flat(*images), _flat(*clips)
    kinds_BL = torch.zeros_like(ids) if kinds is None else kinds
    for what, mark, given in (("images", Kind.IMAGE, len(pixels)), ("a world", Kind.WORLD, len(frames))):
        if ((places := int((kinds_BL == mark).sum())) and not given) or (given and not places):
            raise ValueError(
                f"`kinds` has {places} positions for {what}, and {given} pictures are given: pass all that the processor gives"
            )
    batch = {"ids": ids, "kinds": kinds_BL, "pixels": pixels, "frames": frames, "frame_counts": frame_counts.tolist()}
    return {**batch, "latent_counts": [0] * len(frame_counts), "latents": torch.empty(0, 1, 1, 1), "places": places_of(kinds_BL)}
