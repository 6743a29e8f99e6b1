"""Encode samples (raw items of data) as clean latents or pixels, noise, times and conditions, and make batches. Runs in data workers.

Everything random about a sample (noise, t, which conditions it keeps, mirroring) is drawn here from its key, a 64-bit seed, so that it is
the same on any number of ranks and workers. Conditions are what the model generates by: features of the caption, and of a reference image.
`assets` is the folder of the model's files, which holds `metadata.json` of the shards (files of precomputed latents and features).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.data import captions, cropping, images
from plait.data.field_names import not_one_image
from plait.data.memory import tensors
from plait.data.sources.metadata import METADATA, read_metadata
from plait.errors import BadSample
from plait.families.nanodit import flow
from plait.families.nanodit.config import Config
from plait.families.nanodit.network.conditions import Conditions, noise, pack, word_ids
from plait.keys import rng

Sample = dict[str, Any]
"""A raw item of data, as in contract.py: `id`, `images`, `messages`, `fields`, and for latents `arrays`."""

WITHOUT = "without"
"""Key of a sample: conditions that it is encoded without, a set of "text" and "image"."""
_PAD_TO = 128  # text tokens; `data.pad: to_128`
_DOWNSAMPLE = 8  # of latents without metadata
_MAX_TOKENS = 512  # text tokens of `data.pad: to_max` when data.max_tokens is not set: what long captions need


@dataclass(frozen=True)
class Example:
    """One encoded sample: `x0` and `noise` (C, H, W) float32, t, the conditions left by dropout, and the caption.

    `mirrored`: whether x0, conditions and caption are those of the mirror image.
    """

    x0: Tensor
    noise: Tensor
    t: float
    conditions: Conditions
    caption: str
    mirrored: bool


class Inputs:
    """Encodes samples: `encode` and `collate` for training and held-out loss; `clean`, `conditions`, `pack` for benches and generation.

    `assets`: RUN/assets. `train`: augment, and drop conditions. `max_tokens`: of a caption; `pad`: text to "longest", "to_128" (a multiple)
    or "to_max".
    """

    def __init__(self, config: Config, assets: Path, *, max_tokens: int | None = None, pad: str = "longest", train: bool = False) -> None:
        self.config, self.assets, self.max_tokens, self.pad, self.train = config, assets, max_tokens, pad, train

    @functools.cached_property
    def metadata(self) -> dict[str, Any] | None:
        """Return the shards' metadata.json (latent statistics, encoders); None without the file. Raises PlaitError if it is damaged."""
        path = self.assets / METADATA
        return read_metadata(path) if path.is_file() else None

    def encoder(self, kind: str) -> dict[str, Any] | None:
        """Return {"name", "revision", "xxh3"} of the encoder of the shards' "latents", "texts" or "images" (`kind`); None: unknown."""
        pins: dict[str, dict[str, Any]] = (self.metadata or {}).get("encoders", {})
        return pins.get(kind)

    @property
    def prediction(self) -> str:
        """Return what the network gives: "v", a velocity, or "x", the clean sample."""
        return self.config.prediction

    @property
    def downsample(self) -> int:
        """Return the number of pixels along one side of a latent cell, such as 8; 1 in pixel space."""
        if self.config.space == "pixels":
            return 1
        return int(self.metadata["latents"]["downsample"]) if self.metadata else _DOWNSAMPLE

    def pictures_folder(self, moment: str) -> Path:
        """Return the folder that benches write into: RUN/<sampling.folder>/<moment>; `moment` such as step-00000100."""
        return self.assets.parent / self.config.sampling.folder / moment

    def encode(self, sample: Sample, key: int) -> Example:
        """Encode a sample; `key` is the seed of everything random.

        Without `train`, it keeps all conditions and is not mirrored. Raises BadSample if its image, latents or features are missing or bad.
        """
        config = self.config
        mirrored = self.train and self._mirrors(sample, key)
        x0 = self.clean(sample)
        conditions = self.conditions(sample, mirrored=mirrored)
        if self.train:
            kept = flow.draw_kept(config.dropout, rng(key, "conditions"))
            conditions = conditions.only(text=kept.text, image=kept.image)
        t = flow.draw_time(config.time, rng(key, "time"))
        text = captions.swap(caption(sample)) if mirrored else caption(sample)
        return Example(x0.flip(-1) if mirrored else x0, noise(x0.shape, key), t, conditions, text, mirrored)

    def clean(self, sample: Sample) -> Tensor:
        """Return x0 (C, H, W) float32: the sample's latents, normalised when they were read, or pixels in [-1, 1].

        Raises BadSample if they are missing, not finite or of another shape.
        """
        config = self.config
        if config.space == "pixels":
            if len(sample["images"]) != 1:
                raise BadSample(not_one_image(sample))
            side = config.image_size
            return images.to_unit(cropping.cover(images.decode(sample["images"][0], at_least=(side, side)), side, side))
        x0 = _array(sample, "vae", torch.float32)
        if x0.ndim != 3 or x0.shape[0] != config.channels or x0.shape[1] % config.patch or x0.shape[2] % config.patch:
            raise BadSample(f"latents of shape {tuple(x0.shape)}; expected ({config.channels}, H, W), H and W multiples of {config.patch}")
        if not bool(x0.isfinite().all()):
            raise BadSample("latents that are not finite")
        return x0

    def conditions(self, sample: Sample, *, mirrored: bool = False) -> Conditions:
        """Return all conditions of a sample, before dropout; an empty caption gives no text. `mirrored`: those of its mirror image.

        Raises BadSample if features are missing, not finite or of another shape.
        """
        (text, cut), image = self._text(sample, mirrored), None
        if self.config.image_dim:
            image = _array(sample, "dinov3", torch.float32)
            if image.shape != (self.config.image_dim,):
                raise BadSample(f"image features of shape {tuple(image.shape)}; expected ({self.config.image_dim},)")
            if not bool(image.isfinite().all()):
                raise BadSample("image features that are not finite")
        without = sample.get(WITHOUT, ())
        return Conditions(text, image, cut).only(text="text" not in without, image="image" not in without)

    def words(self, text: str) -> Tensor | None:
        """Return word ids (T,) of a caption, or None without words. An id is a word's hash modulo `model.words`."""
        return word_ids(text, self.config.words, self.max_tokens)[0]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return a batch of examples of one shape: `x0` and `noise` (B, C, H, W), `t` (B,), and what `pack` returns.

        `cut` (B,): tokens of each caption that were beyond the limit. Raises AssertionError for examples of different shapes.
        """
        shapes = {tuple(example.x0.shape) for example in examples}
        assert len(shapes) == 1, f"samples of different shapes in one batch: {sorted(shapes)}; buckets keep them apart"
        return {
            "x0": tensors.stack([example.x0 for example in examples]),
            "noise": tensors.stack([example.noise for example in examples]),
            "t": torch.tensor([example.t for example in examples], dtype=torch.float32),
            "cut": torch.tensor([example.conditions.cut for example in examples]),
            **self.pack([example.conditions for example in examples]),
        }

    def pack(self, rows: Sequence[Conditions]) -> dict[str, Tensor]:
        """Pack the conditions of B samples for the network (`conditions.pack`), padded as `pad` says."""
        longest = max(1 if row.text is None else len(row.text) for row in rows)
        return pack(rows, self.config.shape, None if self.pad == "longest" else self._padded(longest))

    def _padded(self, longest: int) -> int:
        if self.pad == "to_max":
            return max(longest, self.max_tokens or _MAX_TOKENS)
        return -(-longest // _PAD_TO) * _PAD_TO if self.pad == "to_128" else longest

    def _text(self, sample: Sample, mirrored: bool) -> tuple[Tensor | None, int]:
        """Return a caption's ids or states, None without any, and how many tokens of it were cut off."""
        text = caption(sample)
        if not text:
            return None, 0
        if self.config.text == "words":
            return word_ids(captions.swap(text) if mirrored else text, self.config.words, self.max_tokens)
        name = "t5h_flip" if mirrored and captions.names_side(text) else "t5h"
        whole = _array(sample, name, torch.float32, kept=torch.float16)
        states = whole[: self.max_tokens]
        if states.ndim != 2 or states.shape[1] != self.config.text_dim:
            raise BadSample(f"text states {name} of shape {tuple(states.shape)}; expected (tokens, {self.config.text_dim})")
        if not bool(states.isfinite().all()):
            raise BadSample(f"text states {name} that are not finite")
        return states if len(states) else None, len(whole) - len(states)

    def _mirrors(self, sample: Sample, key: int) -> bool:
        """Return whether to mirror a sample: never where its caption names a side but has no mirrored version."""
        flip, text = self.config.flip, caption(sample)
        if float(rng(key, "flip").random()) >= flip.probability:
            return False
        if not captions.names_side(text):
            return True
        return flip.swap_caption and (self.config.text == "words" or "t5h_flip" in sample.get("arrays", {}))


def caption(sample: Sample) -> str:
    """Return the caption of a sample: the text of its last assistant turn, else of its last user turn, else "".

    Raises BadSample for several annotations (conversations): which of them is the caption is not known.
    """
    if len(sample.get("annotations", ())) > 1:
        raise BadSample(f"it has {len(sample['annotations'])} annotations, of which nanodit learns one; make each a sample of its own")
    turns: dict[str, str] = {message["role"]: message["content"].strip() for message in sample["messages"]}
    return turns.get("assistant", turns.get("user", ""))


def _array(sample: Sample, name: str, dtype: torch.dtype, kept: torch.dtype | None = None) -> Tensor:
    """Return a copy of an array in `dtype`, but of one stored in the type `kept` in that. Raises BadSample without it."""
    arrays = sample.get("arrays", {})
    if name not in arrays:
        cure = "" if arrays else ": `plait data shard` writes latents of pictures, and model.space=pixels draws these themselves"
        raise BadSample(f"no array {name!r} in the sample; it has {', '.join(sorted(arrays)) or 'none'}{cure}")
    array = torch.tensor(arrays[name])  # a copy: the arrays may be views of a shard
    return array if array.dtype == kept else array.to(dtype)
