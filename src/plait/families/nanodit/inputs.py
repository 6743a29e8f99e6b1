"""Samples to what the model takes: clean latents or pixels, noise, time, and the conditions that stay. Runs in data workers.

Everything random about a sample (noise, t, which conditions stay, mirroring) is drawn here from its key, so that no layout changes it.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.data import captions, images
from plait.data.sources.metadata import METADATA, read_metadata
from plait.errors import BadSample
from plait.families.nanodit import flow
from plait.families.nanodit.config import Config
from plait.keys import key as key_of
from plait.keys import rng

Sample = dict[str, Any]

_WORD = re.compile(r"\w+|[^\w\s]")
_PAD_TO = 128  # text tokens; `data.pad: to_128`
_DOWNSAMPLE = 8  # of latents whose metadata is not at hand
_MAX_TOKENS = 512  # text tokens of `data.pad: to_max` when data.max_tokens is not set: what long captions need


@dataclass(frozen=True)
class Conditions:
    """What one sample shows: `text` (T, features), or word ids (T,) where they are learned; `image` (features,). None: nothing."""

    text: Tensor | None = None
    image: Tensor | None = None

    def only(self, *, text: bool, image: bool) -> "Conditions":
        """A part of them."""
        return Conditions(self.text if text else None, self.image if image else None)


@dataclass(frozen=True)
class Example:
    """One sample as the loss takes it: `x0` and `noise` (C, H, W) float32, t, the conditions that stay; the caption as x0 is mirrored."""

    x0: Tensor
    noise: Tensor
    t: float
    conditions: Conditions
    caption: str
    mirrored: bool


class Inputs:
    """`encode` and `collate` for training and held-out loss; `clean` and `conditions` for benches and generation."""

    def __init__(self, config: Config, directory: Path, *, max_tokens: int | None = None, pad: str = "longest", train: bool = False):
        self.config, self.directory, self.max_tokens, self.pad, self.train = config, directory, max_tokens, pad, train

    @functools.cached_property
    def metadata(self) -> dict[str, Any] | None:
        """Statistics and encoders of the shards, as kept with the run; None where the run has none."""
        place = self.directory / METADATA
        return read_metadata(place) if place.is_file() else None

    def encoder(self, kind: str) -> dict[str, Any] | None:
        """The pin of the encoder (latents, texts, images) that made the shards; None where nobody recorded it."""
        return (self.metadata or {}).get("encoders", {}).get(kind)

    @property
    def downsample(self) -> int:
        """Pixels of one side of a latent cell (1 in pixel space)."""
        if self.config.space == "pixels":
            return 1
        return int(self.metadata["latents"]["downsample"]) if self.metadata else _DOWNSAMPLE

    def pictures_folder(self, moment: str) -> Path:
        """Return the folder that benches write into: RUN/<sampling.folder>/<moment>."""
        return self.directory.parent / self.config.sampling.folder / moment

    def encode(self, sample: Sample, key: int) -> Example:
        """Held-out samples keep their conditions and are never mirrored; their t and noise are as fixed as their key."""
        config = self.config
        mirrored = self.train and self._mirrors(sample, key)
        x0 = self.clean(sample)
        found = self.conditions(sample, mirrored=mirrored)
        if self.train:
            kept = flow.draw_kept(config.dropout, rng(key, "conditions"))
            found = found.only(text=kept.text, image=kept.image)
        t = flow.draw_time(config.time, rng(key, "time"))
        said = captions.swap(caption(sample)) if mirrored else caption(sample)
        return Example(x0.flip(-1) if mirrored else x0, noise(x0.shape, key), t, found, said, mirrored)

    def clean(self, sample: Sample) -> Tensor:
        """x0 (C, H, W) float32: the shard's latents, which the source has normalised, or pixels in [-1, 1]."""
        config = self.config
        if config.space == "pixels":
            if not sample["images"]:
                raise BadSample("no image in the sample, and the model draws pixels")
            side = config.image_size
            return images.to_unit(images.cover(images.decode(sample["images"][0], at_least=(side, side)), side, side))
        x0 = _array(sample, "vae", torch.float32)
        if x0.ndim != 3 or x0.shape[0] != config.channels or x0.shape[1] % config.patch or x0.shape[2] % config.patch:
            raise BadSample(f"latents of shape {tuple(x0.shape)}; expected ({config.channels}, H, W), H and W multiples of {config.patch}")
        if not bool(x0.isfinite().all()):
            raise BadSample("latents that are not finite")
        return x0

    def conditions(self, sample: Sample, *, mirrored: bool = False) -> Conditions:
        """All that the sample shows. An empty caption is none."""
        text, image = self._text(sample, mirrored), None
        if self.config.image_dim:
            image = _array(sample, "dinov3", torch.float32)
            if image.shape != (self.config.image_dim,):
                raise BadSample(f"image features of shape {tuple(image.shape)}; expected ({self.config.image_dim},)")
            if not bool(image.isfinite().all()):
                raise BadSample("image features that are not finite")
        return Conditions(text, image)

    def words(self, text: str) -> Tensor | None:
        """Word ids (T,) of a caption, for models that learn words: a hash of each, so that there is no vocabulary to keep."""
        found = [key_of("word", word) % self.config.words for word in _WORD.findall(text.lower())]
        return torch.tensor(found[: self.max_tokens], dtype=torch.int64) if found else None

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """One batch of one shape: the loss's tensors, and the conditions packed."""
        shapes = {tuple(example.x0.shape) for example in examples}
        assert len(shapes) == 1, f"samples of different shapes in one batch: {sorted(shapes)}; buckets keep them apart"
        return {
            "x0": torch.stack([example.x0 for example in examples]),
            "noise": torch.stack([example.noise for example in examples]),
            "t": torch.tensor([example.t for example in examples], dtype=torch.float32),
            **self.pack([example.conditions for example in examples]),
        }

    def pack(self, rows: Sequence[Conditions]) -> dict[str, Tensor]:
        """Conditions of a batch. A row without text has one null token: the caption's own mask would leak its length.

        `text` (T, features) or (T,) holds the valid tokens of all rows, `text_places` (T,) where they stand in `text_mask` (B, L).
        """
        lengths = [1 if row.text is None else len(row.text) for row in rows]
        longest = self._padded(max(lengths))
        mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
        null = torch.zeros(len(rows), longest, dtype=torch.bool)
        null[:, 0] = torch.tensor([row.text is None for row in rows])
        config = self.config
        one = torch.zeros(1, dtype=torch.int64) if config.text == "words" else torch.zeros(1, config.text_dim)
        text = torch.cat([one if row.text is None else row.text.to(one.dtype) for row in rows])
        places = mask.flatten().nonzero()[:, 0]
        if self.pad != "longest":  # every place holds a token, so that shapes never change
            text = one.new_zeros(len(rows) * longest, *one.shape[1:]).index_copy(0, places, text)
            places = torch.arange(len(rows) * longest)
        batch = {"text": text, "text_places": places, "text_null": null.flatten()[places], "text_mask": mask}
        if config.image_dim:
            none = torch.zeros(config.image_dim)
            batch["image"] = torch.stack([none if row.image is None else row.image for row in rows])
            batch["image_null"] = torch.tensor([row.image is None for row in rows])
        return batch

    def _padded(self, longest: int) -> int:
        if self.pad == "to_max":
            return max(longest, self.max_tokens or _MAX_TOKENS)
        return -(-longest // _PAD_TO) * _PAD_TO if self.pad == "to_128" else longest

    def _text(self, sample: Sample, mirrored: bool) -> Tensor | None:
        said = caption(sample)
        if not said:
            return None
        if self.config.text == "words":
            return self.words(captions.swap(said) if mirrored else said)
        name = "t5h_flip" if mirrored and captions.names_side(said) else "t5h"
        states = _array(sample, name, torch.float32)[: self.max_tokens]
        if states.ndim != 2 or states.shape[1] != self.config.text_dim:
            raise BadSample(f"text states {name} of shape {tuple(states.shape)}; expected (tokens, {self.config.text_dim})")
        if not bool(states.isfinite().all()):
            raise BadSample(f"text states {name} that are not finite")
        return states if len(states) else None

    def _mirrors(self, sample: Sample, key: int) -> bool:
        """Pixels and text are mirrored together or not at all."""
        flip, said = self.config.flip, caption(sample)
        if float(rng(key, "flip").random()) >= flip.probability:
            return False
        if not captions.names_side(said):
            return True
        return flip.swap_caption and (self.config.text == "words" or "t5h_flip" in sample.get("arrays", {}))


def noise(shape: Sequence[int], key: int) -> Tensor:
    """Standard normals (C, H, W) float32 of one sample."""
    return torch.from_numpy(rng(key, "noise").standard_normal(tuple(shape), dtype=np.float32))


def caption(sample: Sample) -> str:
    """The sample's text: its last assistant turn, else its last user turn."""
    turns = {message["role"]: message["content"].strip() for message in sample["messages"]}
    return turns.get("assistant", turns.get("user", ""))


def _array(sample: Sample, name: str, dtype: torch.dtype) -> Tensor:
    found = sample.get("arrays", {})
    if name not in found:
        raise BadSample(f"no array {name!r} in the sample; it has {', '.join(sorted(found)) or 'none'}")
    return torch.tensor(found[name], dtype=dtype)  # a copy: the arrays may be views of a shard
