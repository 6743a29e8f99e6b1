"""The model of an export for transformers: its tower, connector and causal language model, with `generate`. Needs no plait.

Legend: B rows, L positions, N crops of a row at most, S pixels of a crop's side, P patches of a crop, T image tokens of a row at most.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from plait.families.molmo.hf.configuration_plait_molmo import PlaitMolmoConfig
from plait.families.molmo.hf.connector import Connector, add_features
from plait.families.molmo.hf.sizes import PATCH, Tower
from plait.families.molmo.hf.vision_tower import KINDS, VisionTower

_IMAGE_INPUTS = ("crops", "marks", "pools")


class PlaitMolmoForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Answers prompts about images. PlaitMolmoProcessor returns the inputs of `forward`.

    `crops` (B, N, 3, S, S) uint8; `marks` (B, N, P): 0 where there is no crop, else 1 of a patch that is image, 2 in part, 3 padding;
    `pools` (B, T, 4): the patches of each image token, counted from 1 over the row's crops, 0 for none. So zeros may be added on any side.
    """

    config_class = PlaitMolmoConfig
    base_model_prefix = "inner"  # none
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = False
    _no_split_modules = ["VisionTower", "Connector"]  # noqa: RUF012  transformers' own attribute

    def __init__(self, config: PlaitMolmoConfig):
        super().__init__(config)
        tower = Tower(**config.tower)
        self.rows = config.image_token_id - PATCH
        self.language: PreTrainedModel = AutoModelForCausalLM.from_config(config.text_config)
        self.vision = VisionTower(KINDS[tower.kind][1](config.vision_config), tower)
        self.connector = Connector(tower, config.connector_hidden, self.language.get_input_embeddings().weight.shape[1], 1.0)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Fill only what no file holds: the position numbers."""
        position_ids = dict(module.named_buffers(recurse=False)).get("position_ids")
        if position_ids is not None:
            position_ids.copy_(torch.arange(position_ids.shape[-1], device=position_ids.device).expand_as(position_ids))

    def get_input_embeddings(self) -> nn.Module:
        """Return the language model's embedding, as transformers requires; it has no rows for image tokens (the connector has them)."""
        embeddings: nn.Module = self.language.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head, which has no rows for image tokens."""
        head: nn.Module = self.language.get_output_embeddings()
        return head

    def embed(self, input_ids: Tensor, crops: Tensor | None = None, marks: Tensor | None = None, pools: Tensor | None = None) -> Tensor:
        """Return embeddings (B, L, D) with image features added at `<im_patch>`. Raises ValueError for other images than the ids have."""
        embeds_BLD: Tensor = self.connector.embed(input_ids, self.get_input_embeddings(), self.rows)
        patches_BL = input_ids == self.rows + PATCH
        if crops is None or marks is None or pools is None:
            if patches_BL.any():
                raise ValueError(f"input_ids hold {int(patches_BL.sum())} image tokens, but no crops, marks and pools are given")
            return embeds_BLD
        given_BN, pooled_BT = marks[..., 0] > 0, (pools > 0).any(-1)
        if not torch.equal(patches_BL.sum(1), pooled_BT.sum(1).to(patches_BL.device)):
            counts = f"{patches_BL.sum(1).tolist()} image tokens, and the images given {pooled_BT.sum(1).tolist()}"
            raise ValueError(f"input_ids hold {counts}: give the images of exactly these ids")
        if not given_BN.any():
            return embeds_BLD
        before_B = (given_BN.sum(1).cumsum(0) - given_BN.sum(1)) * marks.shape[-1]
        pools_T4 = torch.where(pools > 0, pools - 1 + before_B[:, None, None], -1)[pooled_BT]
        real_nP = (3 - marks[given_BN]) / 2  # 1 for image, 0.5 in part, 0 for padding
        features_TD = self.connector(self.vision(crops[given_BN]), real_nP, pools_T4)
        return add_features(embeds_BLD, features_TD.to(embeds_BLD.device), patches_BL.flatten().nonzero()[:, 0])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        crops: Tensor | None = None,
        marks: Tensor | None = None,
        pools: Tensor | None = None,
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
            inputs_embeds = self.embed(input_ids, crops, marks, pools)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        output = self.language.get_decoder()(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits_BLV = self.get_output_embeddings()(output.last_hidden_state[:, kept])
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
        """Return the arguments of `forward` for `generate`; images only at first, as later they are in the cache."""
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            kwargs |= dict.fromkeys(_IMAGE_INPUTS)
        return GenerationMixin.prepare_inputs_for_generation(self, input_ids, *args, **kwargs)  # type: ignore[arg-type]  # the mixin's `self` is not typed as a model


# without an entry here the pipeline logs that it does not support the model, and lists all that it supports
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[PlaitMolmoConfig.model_type] = PlaitMolmoForConditionalGeneration.__name__
