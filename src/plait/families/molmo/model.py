"""Molmo: a vision tower, a connector and a causal language model, with image features added to the embeddings of `<im_patch>`.

Tower and language model are transformers' own classes. Which position sees which is in the batch (sequence.py), not decided here.
A batch is what `Inputs.collate` returns: ids, labels, loss_weights, positions (B, L), segments (B, L, 2), crops, real, pools, places.
Legend: B rows, L positions, K positions of the cache and L, D width, V rows of the language model's embedding, T image tokens of the batch.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from plait.families.molmo import towers
from plait.families.molmo.config import Config
from plait.families.molmo.features.crops import CROP_FEATURES
from plait.families.molmo.hf.connector import Connector, add_features
from plait.families.molmo.hf.vision_tower import VisionTower
from plait.families.molmo.packing.dropout import ResidualDropout
from plait.families.molmo.packing.sequence import attention_mask
from plait.families.molmo.towers import embedding_rows
from plait.keys import key
from plait.nn.connectors import root_mean_square, seeded
from plait.nn.documents import within_documents
from plait.nn.idle import contains_sharded, zero_from, zero_from_parameters
from plait.nn.weighted import weighted_cross_entropy

Batch = dict[str, Any]
COMPONENTS = ("connector", "vision", "language")
_META_SCALE = 0.02  # rms assumed of embeddings on the meta device


class Molmo(nn.Module):
    """Tower, connector and language model: `forward` maps a batch to sums of the loss; `embed`, `hidden`, `logits` are its steps."""

    def __init__(self, config: Config, language: PreTrainedModel, vision: VisionTower, connector: Connector):
        super().__init__()
        self.config, self.language, self.vision, self.connector = config, language, vision, connector
        self.rows = embedding_rows(language)
        sizes = language.get_decoder().config.to_dict()
        self.layer_types = frozenset(sizes.get("layer_types") or ())
        self.sliding_window: int | None = sizes.get("sliding_window")
        rates = {"prompt": config.residual_dropout, "answer": config.response_residual_dropout}
        self.dropout = ResidualDropout(language, **rates) if any(rates.values()) else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": sum of w * cross-entropy, "z_loss": sum of w * (log normaliser)^2} over positions of weight w; 0 without any."""
        hidden_BLD = self.hidden(self.embed(batch), batch)
        hidden_ND, target_N, weight_N = hidden_BLD.flatten(0, 1), batch["labels"].flatten(), batch["loss_weights"].flatten()
        tie = self.head is self.language.get_input_embeddings().weight
        loss, z_loss = weighted_cross_entropy(hidden_ND, self.head, target_N, weight_N, places_S=batch["places"]["loss"], tie=tie)
        return {"loss": loss + self._zero_of_unused(batch).to(loss), "z_loss": z_loss}

    @property
    def head(self) -> Tensor:
        """Return the output head's weight (V, D), which has no rows for image tokens."""
        weight: Tensor = self.language.get_output_embeddings().weight
        return weight

    def embed(self, batch: Batch) -> Tensor:
        """Return the embeddings (B, L, D) of all tokens, with image features added at `<im_patch>`."""
        ids_BL = batch["ids"]
        embeds_BLD = self.connector.embed(ids_BL, self.language.get_input_embeddings(), self.rows)
        crops = batch["crops"]
        if not len(crops) and contains_sharded(self.vision):
            embeds_BLD = embeds_BLD + zero_from(self._features(crops.new_zeros(1, *crops.shape[1:]))).to(embeds_BLD.dtype)
        if len(crops):
            features_nPF = batch[CROP_FEATURES].unflatten(0, (len(crops), -1)) if CROP_FEATURES in batch else self._features(crops)
            features_TD = self.connector(features_nPF, batch["real"], batch["pools"])
            embeds_BLD = add_features(embeds_BLD, features_TD, batch["places"]["image"])
        return embeds_BLD

    def hidden(self, embeds_BLD: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Return the language model's last hidden states (B, L, D) for what `embed` returned; fills the key-value `cache`, if given."""
        if self.dropout is not None:
            self.dropout.begin(batch, training=self.training)
        positions_BL = batch["positions"]
        if (documents := batch["places"].get("documents")) is not None:
            decoder = self.language.get_decoder()
            visible = {**within_documents(decoder, documents, embeds_BLD), "past_key_values": cache, "use_cache": cache is not None}
            packed_BLD: Tensor = decoder(inputs_embeds=embeds_BLD, position_ids=positions_BL, **visible)[0]
            return packed_BLD
        return self.run_decoder(embeds_BLD, attention_mask(batch["segments"])[:, None], positions_BL, positions_BL, cache)

    def run_decoder(
        self, embeds_BLD: Tensor, mask_B1LK: Tensor, positions_BL: Tensor, positions_BK: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Return hidden states (B, L, D) of L new positions. They attend to K positions (cached ones, then these) if the mask is True.

        `positions_BL`: place of each new one in its sequence, for RoPE; `positions_BK`: of all K, for layers with a sliding window.
        """
        output = self.language.get_decoder()(
            inputs_embeds=embeds_BLD,
            attention_mask=self._masks_by_layer_type(mask_B1LK, positions_BL, positions_BK),
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden_BLD: Tensor = output.last_hidden_state
        return hidden_BLD

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to logits (..., V) over the language model's vocabulary, without image tokens."""
        logits: Tensor = self.language.get_output_embeddings()(hidden)
        return logits

    def _features(self, crops: Tensor) -> Tensor:
        trains = any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):  # a frozen tower keeps no activations
            features: Tensor = self.vision(crops)
        return features

    def _zero_of_unused(self, batch: Batch) -> Tensor:
        """Return a zero that gives a zero gradient to each trainable parameter for which this batch has no input.

        Every rank then has every gradient, whatever its rows: without it, a text-only micro-batch would hang or skew the other ranks.
        """
        unused = self.vision.unused() if len(batch["crops"]) else [*self.vision.parameters(), *self.connector.parameters()]
        return zero_from_parameters(unused, batch["ids"].device)

    def _masks_by_layer_type(self, mask_B1LK: Tensor, positions_BL: Tensor, positions_BK: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the mask of each type of layer; layers with a sliding window see only positions less than the window away."""
        if self.sliding_window is None or self.layer_types == {"full_attention"}:
            return mask_B1LK
        near_B1LK = mask_B1LK & (positions_BL[:, :, None] - positions_BK[:, None, :] < self.sliding_window)[:, None]
        if not self.layer_types:
            return near_B1LK
        return {"full_attention": mask_B1LK, **dict.fromkeys(self.layer_types - {"full_attention"}, near_B1LK)}


def build(config: Config, assets: Path, *, seed: int) -> Molmo:
    """Build the model; `seed` draws the connector and parts named `debug`. Raises PlaitError for a part that cannot be loaded."""
    return assemble(config, towers.load_language(config, seed), towers.load_vision(config, seed), seed=seed)


def assemble(config: Config, language: PreTrainedModel, vision: VisionTower, *, seed: int) -> Molmo:
    """Join a language model and a tower by a connector with new weights, drawn from `seed` at the scale of the embeddings."""
    sizes = language.config.get_text_config()
    inner = config.connector_hidden or sizes.intermediate_size
    words = language.get_input_embeddings().get_parameter("weight").detach()
    scale = _META_SCALE if words.is_meta else float(root_mean_square(words[: 1 << 16]))  # 65,536 rows tell the scale
    connector = seeded(key(seed, "molmo", "connector") >> 1, lambda: Connector(config.tower, inner, words.shape[1], scale))
    return Molmo(config, language, vision, connector)


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Return {"connector": {name: parameter}, "vision": ..., "language": ...}; image tokens' rows are in connector, a tied head once."""
    assert isinstance(model, Molmo)
    parameters: dict[str, dict[str, nn.Parameter]] = {name: {} for name in COMPONENTS}
    for name, parameter in model.named_parameters():
        parameters[name.partition(".")[0]][name] = parameter
    return parameters


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer layers, vision first: the units that are sharded, recomputed in backward and compiled one by one."""
    assert isinstance(model, Molmo)
    return [*model.vision.layers, *model.language.get_decoder().layers]
