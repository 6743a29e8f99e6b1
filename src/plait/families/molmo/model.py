"""Molmo: a vision tower, a connector and a causal language model, with image features added to the embeddings of `<im_patch>`.

Tower and language model are transformers' own classes. The batch says which position may see which; the model never guesses.
Legend: B rows, L positions, D width, V rows of the language model's embedding, n crops, T image tokens of the micro-batch.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from plait.families.molmo import towers
from plait.families.molmo.config import Config
from plait.families.molmo.connector import Connector
from plait.families.molmo.sequence import see
from plait.families.molmo.tiling import PATCH
from plait.families.molmo.towers import VisionTower, embedding_rows
from plait.keys import key
from plait.nn.connectors import root_mean_square, seeded
from plait.nn.idle import is_sharded, zero_from, zero_from_parameters
from plait.nn.weighted import weighted_cross_entropy

Batch = dict[str, Tensor]
COMPONENTS = ("connector", "vision", "language")
_META_SCALE = 0.02  # stands for the embeddings' where there are no values


class Molmo(nn.Module):
    """`forward` gives the loss's sums; `embed`, `hidden` and `logits` are its stages, for generation and tests."""

    def __init__(self, config: Config, language: PreTrainedModel, vision: VisionTower, connector: Connector):
        super().__init__()
        self.config, self.language, self.vision, self.connector = config, language, vision, connector
        self.rows = embedding_rows(language)
        self._keep_BL1: Tensor | None = None
        if config.residual_dropout or config.response_residual_dropout:
            for layer in language.get_decoder().layers:
                layer.self_attn.register_forward_hook(self._drop)
                layer.mlp.register_forward_hook(self._drop)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """{"loss": sum of w * cross-entropy, "z_loss": sum of w * (log normaliser)^2}; zero with zero gradients where no w is set."""
        hidden_BLD = self.hidden(self.embed(batch), batch)
        loss, z_loss = weighted_cross_entropy(hidden_BLD.flatten(0, 1), self.head, batch["labels"].flatten(), batch["weights"].flatten())
        return {"loss": loss + self._untouched(batch).to(loss), "z_loss": z_loss}

    @property
    def head(self) -> Tensor:
        """(V, D): the output head, which has no rows for image tokens."""
        return self.language.get_output_embeddings().weight

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings (B, L, D): words', extra rows', and image features added at `<im_patch>`."""
        ids_BL = batch["ids"]
        extra_BL = ids_BL >= self.rows
        words_BLD = self.language.get_input_embeddings()(ids_BL.masked_fill(extra_BL, 0))
        rows = (ids_BL - self.rows).clamp(min=0)
        embeds_BLD = torch.where(extra_BL[..., None], F.embedding(rows, self.connector.new_embedding).to(words_BLD.dtype), words_BLD)
        crops = batch["crops"]
        if not len(crops) and is_sharded(self.vision):
            embeds_BLD = embeds_BLD + zero_from(self._features(crops.new_zeros(1, *crops.shape[1:]))).to(embeds_BLD.dtype)
        if len(crops):
            features_TD = self.connector(self._features(crops), batch["real"], batch["pools"]).to(embeds_BLD.dtype)
            places = (ids_BL == self.rows + PATCH).flatten().nonzero()[:, 0]
            assert len(places) == len(features_TD), f"{len(places)} places for {len(features_TD)} image tokens"
            embeds_BLD = embeds_BLD.flatten(0, 1).index_add(0, places, features_TD).view_as(embeds_BLD)
        return embeds_BLD

    def hidden(self, embeds_BLD: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """The language model's last hidden states (B, L, D) of whole rows; `cache` is filled when given."""
        if self.training and (self.config.residual_dropout or self.config.response_residual_dropout):
            answer_BL1 = (batch["weights"] > 0)[..., None]
            rates = embeds_BLD.new_tensor([1 - self.config.residual_dropout, 1 - self.config.response_residual_dropout])
            self._keep_BL1 = torch.where(answer_BL1, rates[1], rates[0])
        else:
            self._keep_BL1 = None
        positions_BL = batch["positions"]
        return self.decoded(embeds_BLD, see(batch["segments"])[:, None], positions_BL, positions_BL, cache)

    def decoded(
        self, embeds_BLD: Tensor, see_B1LK: Tensor, positions_BL: Tensor, positions_BK: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states of L positions, where each sees what `see` allows of K: those of the cache, then these."""
        decoder = self.language.get_decoder()
        out = decoder(
            inputs_embeds=embeds_BLD,
            attention_mask=_for_layers(decoder.config, see_B1LK, positions_BL, positions_BK),
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        return self.language.get_output_embeddings()(hidden)

    def _features(self, crops: Tensor) -> Tensor:
        trains = any(p.requires_grad for p in self.vision.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):  # a frozen tower keeps no activations
            return self.vision(crops)

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Dropout with a rate per position, on what a sublayer adds to the residual stream."""
        if self._keep_BL1 is None:
            return output
        value = output[0] if isinstance(output, tuple) else output
        kept = value * (torch.rand_like(value, dtype=torch.float32) < self._keep_BL1) / self._keep_BL1
        return (kept.to(value.dtype), *output[1:]) if isinstance(output, tuple) else kept.to(value.dtype)

    def _untouched(self, batch: Batch) -> Tensor:
        """Zero, with a zero gradient for each trainable parameter that this batch has no input for.

        Every rank then has every gradient, whatever its rows: without this, a text-only micro-batch would hang or upset the others.
        """
        idle = self.vision.unused() if len(batch["crops"]) else [*self.vision.parameters(), *self.connector.parameters()]
        return zero_from_parameters(idle, batch["ids"].device)


def _for_layers(config: Any, see_B1LK: Tensor, positions_BL: Tensor, positions_BK: Tensor) -> Any:
    """The mask for every kind of layer; layers that see only a window get it cut by that window, counted in positions."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if window is None or kinds == {"full_attention"}:
        return see_B1LK
    near_B1LK = see_B1LK & (positions_BL[:, :, None] - positions_BK[:, None, :] < window)[:, None]
    return {"full_attention": see_B1LK, **dict.fromkeys(kinds - {"full_attention"}, near_B1LK)} if kinds else near_B1LK


def build(config: Config, directory: Path, *, seed: int) -> Molmo:
    """The model with its weights; the connector, and whatever is debug, drawn from `seed`. On the meta device: sizes only."""
    return assemble(config, towers.load_language(config, seed), towers.load_vision(config, seed), seed=seed)


def assemble(config: Config, language: PreTrainedModel, vision: VisionTower, *, seed: int) -> Molmo:
    """The parts with a new connector between them."""
    sizes = language.config.get_text_config()
    inner = config.connector_hidden or sizes.intermediate_size
    words = language.get_input_embeddings().get_parameter("weight").detach()
    scale = _META_SCALE if words.is_meta else float(root_mean_square(words[: 1 << 16]))  # 65,536 rows tell it
    return Molmo(config, language, vision, seeded(key(seed, "molmo", "connector") >> 1, lambda: _connector(config, inner, words, scale)))


def _connector(config: Config, inner: int, words: Tensor, scale: float) -> Connector:
    return Connector(config.tower, inner, words.shape[1], scale)


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """connector (pooling, projector, pad embeddings, extra rows), vision, language (a tied head once)."""
    assert isinstance(model, Molmo)
    found: dict[str, dict[str, nn.Parameter]] = {name: {} for name in COMPONENTS}
    for name, parameter in model.named_parameters():
        found[name.partition(".")[0]][name] = parameter
    return found


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer layers, vision first: units of sharding, checkpointing and compiling."""
    assert isinstance(model, Molmo)
    return [*model.vision.layers, *model.language.get_decoder().layers]
