"""Encode samples (raw items of data) as the model's inputs: images for both encoders, and one token sequence. Runs in data workers.

A row is one sample's sequence of tokens. Its world block holds the world encoder's tokens between two brackets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from plait.data import images
from plait.data.field_names import no_answer
from plait.data.memory import tensors
from plait.data.rollouts import stored
from plait.errors import BadSample
from plait.families import limits
from plait.families.theworld import features, towers
from plait.families.theworld.chat import Chat
from plait.families.theworld.config import Config
from plait.families.theworld.packing import rows as packing
from plait.families.theworld.pretrained.encoder import Grid
from plait.families.theworld.sequence import BOTH_WAYS, Kind, Row, Span, fuse, pad_rows
from plait.families.theworld.world import tokens_per_frame
from plait.nn import augment
from plait.nn.augment import Augmentation
from plait.nn.documents import LONGEST_MASK

Sample = dict[str, Any]
"""A raw item of data, as in contract.py: `id`, `images`, `messages`, `fields`, for clips `frames`."""

WORLD_OF = "world_of"
"""Key of a sample: another sample, whose frames the world encoder is given, or None for no world. Without it, it is given its own."""


NO_LATENTS = torch.empty(0, 1, 1, 1)  # in place of a predicted future


@dataclass(frozen=True)
class Example:
    """One encoded sample: `row`, its tokens with labels, and its images, uint8.

    `pixels` (n, 3, S, S): n images for the vision tower; `frames` (F, 3, W, W): F frames for the world encoder. S, W: sides in pixels.
    `latents` (T, C, h, h): the predicted future that takes the place of frames, already encoded; else empty.
    """

    row: Row
    pixels: Tensor
    frames: Tensor
    latents: Tensor = NO_LATENTS

    @property
    def world_tokens(self) -> int:
        """Return how many positions of the row hold world tokens, not counting the two brackets."""
        return int((self.row.kinds == Kind.WORLD).sum())


class Parts(NamedTuple):
    """What of the pretrained parts decides how samples are encoded: the tokenizer, and sizes of Gemma and of the world encoder.

    `image_size`: pixels of a side, for the vision tower; `positions`: of the language model, None for any number. `grid`: of
    the world encoder, None without one.
    """

    tokenizer: Tokenizer
    image_size: int
    image_tokens: int
    positions: int | None
    grid: Grid | None


def _parts(config: Config, assets: Path) -> Parts:
    """Read the parts that `config` names. Raises PlaitError for one that cannot be loaded."""
    gemma, tokenizer, world = towers.gemma_config(config), towers.load_tokenizer(config, assets), config.world
    (image_size, image_tokens), positions = towers.image_sizes(gemma), limits.language_positions(gemma)
    grid = towers.encoder_grid(config, world) if world else None
    return Parts(tokenizer, image_size, image_tokens, positions, grid)


class Inputs:
    """Encodes samples: `encode` for training and held-out loss, `prompt` for generation; `collate` makes batches of either.

    `assets`: RUN/assets, with a tiny model's tokenizer. `max_tokens`: truncate longer rows; `pad`: "longest", "to_128" (a multiple),
    "to_max" or "none" (pack all rows into one); `train`: augment images. `parts`: in place of those in files.
    """

    def __init__(
        self,
        config: Config,
        assets: Path,
        *,
        max_tokens: int | None = None,
        pad: str = "longest",
        train: bool = False,
        parts: Parts | None = None,
    ):
        self.config, self.max_tokens, self.pad, self.train = config, max_tokens, pad, train
        tokenizer, self.image_size, self.image_tokens, self.positions, self.grid = parts or _parts(config, assets)
        self.tokens_per_frame = tokens_per_frame(config.world, self.grid) if config.world and self.grid else 0
        self.chat = Chat(tokenizer, image_tokens=self.image_tokens, system=config.system)

    def encode(self, sample: Sample, key: int) -> Example:
        """Encode the whole conversation with its labels. `key`, a 64-bit seed, draws the augmentation, in training only.

        Raises BadSample for a sample with nothing to learn, several annotations (conversations), unreadable images, or too many tokens.
        """
        if len(sample.get("annotations", ())) > 1:
            raise BadSample(f"it has {len(sample['annotations'])} annotations, of which theworld learns one; make each a sample of its own")
        spans = self.chat.spans(sample["messages"], len(sample["images"]))
        if not any(span.supervised for span in spans):
            raise BadSample(no_answer(sample))
        return self.example(sample, spans, augmentation=self._augmentation(key), max_tokens=self.max_tokens)

    def prompt(self, sample: Sample) -> Example:
        """Encode the conversation up to its last user turn, for generation, untruncated. Raises BadSample: roles, bad image, too long."""
        return self.example(sample, self.chat.prompt(sample["messages"], len(sample["images"])))

    def collate(self, examples: Sequence[Example], *, left: bool = False) -> dict[str, Any]:
        """Pad examples to a batch of B rows and L positions; return tensors by name.

        `ids`, `kinds`, `labels`, `attention_mask`, `token_types`, `positions` (B, L), `places`: as of `pad_rows`. `pixels` (n, 3, S, S),
        `frames` (F, 3, W, W): those of all rows, concatenated; `latents` (T, C, h, h): of predicted futures. `frame_counts`,
        `latent_counts`: lists, frames and latents of each row with a world block. `cut` (B,): supervised tokens cut off. `left`: pad there.
        """
        rows, pad = [example.row for example in examples], "longest" if left else self.pad
        one, positions = packing.joined(rows) if pad == "none" else (None, None)
        batch = pad_rows(rows if one is None else [one], pad_id=self.chat.pad, pad=pad, max_tokens=self.max_tokens, left=left)
        if positions is not None:
            batch["positions"], batch["places"]["documents"] = positions[None], packing.documents_of(rows, None, BOTH_WAYS)
        elif (length := batch["ids"].shape[1]) > LONGEST_MASK:
            batch["places"]["documents"] = packing.documents_of(rows, length, BOTH_WAYS, left=left)
        worlds = [example for example in examples if len(example.frames) or len(example.latents)]
        batch["pixels"] = tensors.cat([example.pixels for example in examples])
        batch["frames"] = tensors.cat([example.frames for example in examples])
        batch["frame_counts"] = [len(example.frames) for example in worlds]
        batch["latent_counts"] = [len(example.latents) for example in worlds]
        batch["latents"] = torch.cat([example.latents for example in worlds if len(example.latents)] or [NO_LATENTS])
        batch["cut"] = torch.tensor([example.row.cut for example in examples])
        return batch

    def example(
        self,
        sample: Sample,
        spans: list[Span],
        *,
        augmentation: Augmentation | None = None,
        max_tokens: int | None = None,
    ) -> Example:
        """Encode a sample's images and frames, with `spans` in place of its messages. Raises BadSample: bad image, too long."""
        pictures = [self._decode(data) for data in sample["images"]]
        source = sample.get(WORLD_OF, sample)
        rolled = source.get(stored.FIELD) if source and self.config.world else None
        latents = NO_LATENTS if rolled is None else features.stored_future(rolled, self.config, train=self.train)
        frames = self._frames(source, pictures if source is sample else None) if self.config.world and source and not len(latents) else []
        latent_frames = len(latents) or (self.grid.latent_frames(len(frames)) if self.grid and frames else 0)
        row = fuse(spans, latent_frames * self.tokens_per_frame, pad_id=self.chat.pad, max_tokens=max_tokens)
        limits.check_length(len(row), self.positions)
        side = self.config.world.image_size if self.config.world else 8
        return Example(row, _squares(pictures, self.image_size, augmentation), _squares(frames, side, augmentation), latents)

    def _augmentation(self, key: int) -> Augmentation | None:
        wanted = self.config.augment
        return augment.draw(key, flip=wanted.flip, shift=wanted.shift) if self.train and wanted.on else None

    def _frames(self, source: Sample, pictures: list[Tensor] | None) -> list[Tensor]:
        """Return a sample's frames for the world encoder: the first of its clip where world steps are configured, else the first image.

        `pictures`: the images of `source`, where they are decoded already.
        """
        assert self.config.world is not None and self.grid is not None
        if (lacking := self.lacks_frames(source)) is not None:
            raise BadSample(f"{lacking}: give `frames`, a future by `plait data rollout`, or set model.world.steps=0")
        clip = source.get("frames") or []
        kept = self.grid.kept(len(clip), self.config.world.steps)
        if kept > 1 or not source["images"]:
            return [self._decode(data) for data in clip[:kept]]
        return pictures[:1] if pictures is not None else [self._decode(source["images"][0])]

    def lacks_frames(self, source: Sample) -> str | None:
        """Return why a sample has fewer frames than world steps need, None where it has enough or none."""
        world, clip = self.config.world, source.get("frames") or []
        if world is None or not world.steps or self.grid is None or not (clip or source["images"]):
            return None
        have = f"a clip of {len(clip)} frames" if clip else "a single picture"
        takes = f"model.world.steps {world.steps} takes {self.grid.rule}"
        return f"it has {have}, and {takes}" if self.grid.kept(len(clip), world.steps) == 1 else None

    def _decode(self, data: bytes) -> Tensor:
        largest = max(self.image_size, self.config.world.image_size if self.config.world else 0)
        return images.decode(data, at_least=(largest, largest))


def _squares(pictures: Sequence[Tensor], side: int, augmentation: Augmentation | None) -> Tensor:
    """Resize images to squares without keeping their aspect ratio, as Gemma's processor does: (n, 3, side, side) uint8, augmented."""
    if not pictures:
        return torch.empty(0, 3, side, side, dtype=torch.uint8)
    squares = images.resize_all(pictures, side, side, mode="bilinear")
    return squares if augmentation is None else augment.apply(squares, augmentation)
