"""Gemma 3 with a world encoder (of a video VAE), whose tokens join those of images and text in a sequence. They are the world block.

Gemma and the encoder are transformers' and diffusers' own classes. A row without a world block is computed exactly as Gemma computes it. A
batch is what `Inputs.collate` returns: ids, kinds, labels, attention_mask, token_types, positions (B, L), pixels, frames, frame_counts,
places. What depends on values is there, so that no micro-batch waits for the device.
Legend: B rows, L positions, D width, K image tokens, V vocabulary rows.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma3ForConditionalGeneration
from transformers.cache_utils import Cache
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from plait.errors import PlaitError
from plait.families.theworld import towers
from plait.families.theworld.config import TINY, Config, WorldEncoderConfig
from plait.families.theworld.pretrained import gemma as pretrained_gemma
from plait.families.theworld.pretrained.encoder import Grid, WorldEncoder, unit_range
from plait.families.theworld.world import WorldProjector, group_by_length
from plait.keys import key
from plait.nn.connectors import root_mean_square, seeded
from plait.nn.documents import within_documents
from plait.nn.idle import contains_sharded, zero_from, zero_from_parameters
from plait.nn.losses import token_cross_entropy

Batch = dict[str, Any]
"""Tensors by name, and counts, as `Inputs.collate` returns them."""
IMAGE_FEATURES, WORLD_LATENTS = "image_features", "world_latents"
"""Entries of a batch with what a frozen encoder made of its `pixels` (n, K, D) and `frames` (T of all rows, C, h, h), if it was kept."""


class TheWorld(nn.Module):
    """Gemma with an optional world encoder: `forward` maps a batch of `Inputs.collate` to the summed loss.

    `embed`, `hidden` and `logits` are its steps, which generation calls one by one.
    """

    def __init__(self, gemma: Gemma3ForConditionalGeneration, world: WorldEncoder | None, projector: WorldProjector | None):
        super().__init__()
        self.gemma, self.world, self.projector = gemma, world, projector

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": cross-entropy in nats summed over supervised positions}, or without any 0 with zero gradients."""
        embeds_BLD = self.embed(batch)
        if contains_sharded(self.gemma.model.language_model):  # also going back through it gathers: all ranks do, or none
            embeds_BLD = embeds_BLD + self._zero_of_unused(batch).to(embeds_BLD.dtype)
        hidden_BLD = self.hidden(embeds_BLD, batch)
        hidden_ND, target_N, places = hidden_BLD.flatten(0, 1)[:-1], batch["labels"].flatten()[1:], batch["places"]["loss"]
        head, words = self.gemma.lm_head.weight, self.gemma.get_input_embeddings().weight
        total = token_cross_entropy(hidden_ND, head, target_N, softcap=self.softcap, places_S=places, tie=head is words)
        return {"loss": total + self._zero_of_unused(batch).to(total)}

    def embed(self, batch: Batch) -> Tensor:
        """Return embeddings (B, L, D) of the tokens, with image features and world blocks at their positions."""
        embeds_BLD: Tensor = self.gemma.get_input_embeddings()(batch["ids"])
        pixels, places = batch["pixels"], batch["places"]
        if len(pixels):
            features = batch[IMAGE_FEATURES] if IMAGE_FEATURES in batch else self.image_features(pixels)
            embeds_BLD = _put(embeds_BLD, places["image"], features)
        elif contains_sharded(self.gemma.model.vision_tower):
            blank = self.image_features(pixels.new_zeros(1, *pixels.shape[1:]))
            embeds_BLD = embeds_BLD + zero_from(blank).to(embeds_BLD.dtype)
        if len(batch["frame_counts"]):
            embeds_BLD = _put(embeds_BLD, places["world"], self._world_blocks(batch))
        return embeds_BLD

    def hidden(self, embeds_BLD: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Return the language model's last hidden states (B, L, D) for what `embed` returned; fills the key-value `cache`, if given."""
        visible = {"attention_mask": batch["attention_mask"], "token_type_ids": batch["token_types"]}
        if (documents := batch["places"].get("documents")) is not None:
            visible = within_documents(self.gemma.model.language_model, documents, embeds_BLD)
        positions = {"position_ids": batch["positions"], "past_key_values": cache, "use_cache": cache is not None}
        output = self.gemma.model(inputs_embeds=embeds_BLD, **visible, **positions)
        hidden_BLD: Tensor = output.last_hidden_state
        return hidden_BLD

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to logits (..., V), soft-capped if Gemma's configuration has a cap."""
        logits: Tensor = self.gemma.lm_head(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def softcap(self) -> float | None:
        """Return the value at which logits are soft-capped; None: they are not."""
        softcap: float | None = self.gemma.config.get_text_config().final_logit_softcapping
        return softcap

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return Gemma's features (n, K, D) of uint8 pixels (n, 3, S, S)."""
        tower = self.gemma.model
        with _gradients_if_trained(tower.vision_tower, tower.multi_modal_projector):
            weight = next(tower.vision_tower.parameters())
            features: Tensor = self.gemma.get_image_features(unit_range(pixels, weight.dtype)).pooler_output
        return features

    def _world_blocks(self, batch: Batch) -> Tensor:
        """Return all world blocks, concatenated in the rows' order: (positions, D)."""
        assert self.projector is not None and self.world is not None
        counts, futures = batch["frame_counts"], batch["latent_counts"]
        rows, stored = [torch.empty(0)] * len(counts), batch.get(WORLD_LATENTS)
        lengths = counts if stored is None else [self.world.grid.latent_frames(count) if count else 0 for count in counts]
        for indices, group in group_by_length(batch["frames"] if stored is None else stored, lengths):
            if group.shape[1]:  # rows without frames have a stored future
                latents_BTChw = self.latents(group) if stored is None else group
                for i, block in zip(indices, self.projector(latents_BTChw.transpose(1, 2)), strict=True):
                    rows[i] = block
        for indices, future in group_by_length(batch["latents"], futures):
            if future.shape[1]:
                for i, block in zip(indices, self.projector(self._predicted(future)), strict=True):
                    rows[i] = block
        return torch.cat(rows)

    def latents(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to normalised latents (B, T, C, h, h), contiguous."""
        assert self.world is not None
        with _gradients_if_trained(self.world):
            latents_BCThw: Tensor = self.world(frames_BFCSS)
        return latents_BCThw.transpose(1, 2).contiguous()

    def _predicted(self, latents_BTChw: Tensor) -> Tensor:
        """Return stored futures as the world encoder puts its latents out. Raises PlaitError if it trains: they would be of another one."""
        assert self.world is not None
        if self.training and any(p.requires_grad for p in self.world.parameters()):
            raise PlaitError("the world encoder trains, and stored futures (`rollout`) stay as it was: leave `world` out of trainable")
        return latents_BTChw.transpose(1, 2).to(self.world.dtype)

    def _zero_of_unused(self, batch: Batch) -> Tensor:
        """Return a zero that gives a zero gradient to each trainable parameter for which this batch has no input.

        Every rank then has every gradient, whatever its rows: without it, a text-only micro-batch would hang or skew
        the other ranks.
        """
        unused: list[nn.Module] = []
        if not len(batch["pixels"]):
            unused += [self.gemma.model.vision_tower, self.gemma.model.multi_modal_projector]
        if self.world is not None and not any(count > 1 for count in batch["frame_counts"]):  # no clip: time convolutions see nothing
            unused += [self.world]
        if self.projector is not None and not len(batch["frame_counts"]):
            unused += [self.projector]
        return zero_from_parameters((p for module in unused for p in module.parameters()), batch["ids"].device)


def _put(embeds_BLD: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """Return the embeddings with `features`, in order, at the positions `places`."""
    rows_ND = embeds_BLD.flatten(0, 1)
    return rows_ND.index_copy(0, places, features.reshape(-1, rows_ND.shape[1]).to(rows_ND.dtype)).view_as(embeds_BLD)


def _gradients_if_trained(*modules: nn.Module) -> torch.autograd.grad_mode.set_grad_enabled:
    """Enable gradients only where a parameter trains, so that a frozen tower keeps no activations."""
    trains = any(p.requires_grad for module in modules for p in module.parameters())
    return torch.set_grad_enabled(trains and torch.is_grad_enabled())


def build(config: Config, assets: Path, *, seed: int) -> TheWorld:
    """Build the model with pretrained weights; the projector, and parts named `tiny` (small, for tests), are drawn from `seed`.

    Under `torch.device("meta")` without weights. `assets` is not used. Raises PlaitError for a part that cannot be loaded.
    """
    if config.world is not None:
        towers.encoder_grid(config, config.world)  # what does not fit is told before Gemma is read
    return _joined(towers.load_gemma(config, seed), config, seed)


def build_over(config: Config, assets: Path, *, seed: int, parts: frozenset[str]) -> TheWorld:
    """Build the model without reading Gemma's weights if `parts` has "gemma": any values until they are loaded. `seed`: the projector's."""
    if "gemma" not in parts or config.base == TINY:
        return build(config, assets, seed=seed)
    return _joined(pretrained_gemma.empty(towers.gemma_config(config), config.base, config.base_revision), config, seed)


def _joined(gemma: Gemma3ForConditionalGeneration, config: Config, seed: int) -> TheWorld:
    """Join Gemma with the world encoder and a new projector, or leave it alone where the configuration has no world."""
    if config.world is None:
        return TheWorld(gemma, None, None)
    encoder = towers.load_encoder(config, config.world, seed)
    return TheWorld(gemma, encoder, _projector(config.world, encoder.grid, gemma, seed))


def _projector(world: WorldEncoderConfig, grid: Grid, gemma: Gemma3ForConditionalGeneration, seed: int) -> WorldProjector:
    weight = gemma.get_input_embeddings().get_parameter("weight").detach()

    def make() -> WorldProjector:
        projector = WorldProjector(world, grid, weight.shape[1])
        if not weight.is_meta:
            rows = weight[: 1 << 16]  # 65,536 rows tell the scale; all 262,208 would take 2.7 GB of float32
            projector.match_embedding_scale(
                float(root_mean_square(rows)) * weight.shape[1] ** 0.5
            )  # Gemma multiplies embeddings by sqrt(D)
        return projector

    return seeded(key(seed, "theworld", "projector") >> 1, make)


_COMPONENTS = {
    "projector.": "projector",
    "gemma.model.vision_tower.": "vision",
    "gemma.model.multi_modal_projector.": "vision",
    "gemma.": "language",
    "world.vae.encoder.": "world",
    "world.vae.quant_conv.": "world",
    "world.model.predictor.": "world_decoder",
    "world.model.embeddings.mask_token": "world_decoder",
    "world.model.": "world",
    "world.": "world_decoder",
}
"""{prefix of a parameter's name: its component}; the first that fits counts."""

_OVER_TIME = re.compile(r"\.time_conv\.|\.temp_attentions\.\d+\.to_[qk]\.")
"""Parameters of a VAE that a single picture gives no gradient, or one of rounding errors alone."""

NEVER_TRAINED = frozenset({"world_decoder", "world_time"})
"""Components that no setting may train."""


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Group the parameters, {component: {name: parameter}}: of projector, vision, language, world, world_decoder, world_time what there is.

    vision is SigLIP and Gemma's image projection, language has the tied head once, world is the encoder (of a VAE with its quant_conv).
    world_time is what it uses over time alone, without world steps (latent frames after the first): convolutions, or queries and keys.
    """
    assert isinstance(model, TheWorld)
    clips = model.projector is not None and model.projector.world.steps > 0
    parameters: dict[str, dict[str, nn.Parameter]] = {name: {} for name in (*dict.fromkeys(_COMPONENTS.values()), "world_time")}
    for name, parameter in model.named_parameters():
        component = next(component for prefix, component in _COMPONENTS.items() if name.startswith(prefix))
        if component == "world" and not clips and _OVER_TIME.search(name):
            component = "world_time"
        parameters[component][name] = parameter
    idle = NEVER_TRAINED - {"world_time" if clips else ""} if model.world is not None else frozenset()  # empty where an encoder has none
    return {component: named for component, named in parameters.items() if named or component in idle}


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer layers, vision first: the units that are sharded, recomputed in backward and compiled one by one."""
    return [module for module in model.modules() if isinstance(module, SiglipEncoderLayer | Gemma3DecoderLayer)]
