"""Samples to what the model takes: pixels for both towers, and the fused sequence. Runs in data workers, without the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data import images
from plait.errors import BadSample
from plait.families.theworld import towers
from plait.families.theworld.chat import Chat
from plait.families.theworld.config import Config
from plait.families.theworld.sequence import Kind, Piece, Row, fuse, pad_rows
from plait.families.theworld.world import frames_kept, tokens_per_frame
from plait.keys import rng
from plait.nn.losses import IGNORED

Sample = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One sample as the model takes it: its row; pictures (n, 3, S, S) for vision and frames (F, 3, W, W) for the world encoder, uint8."""

    row: Row
    pixels: Tensor
    frames: Tensor

    @property
    def world_tokens(self) -> int:
        """World positions of the row, brackets apart."""
        return int((self.row.kinds == Kind.WORLD).sum())


@dataclass(frozen=True)
class _Change:
    """An augmentation drawn for one sample: mirrored or not, moved by shares of the side."""

    flip: bool
    down: float
    right: float


class Inputs:
    """`encode` and `collate` for training and held-out loss; `prompt` for generation."""

    def __init__(self, config: Config, directory: Path, *, max_tokens: int | None = None, pad: str = "longest", train: bool = False):
        image_size, image_tokens = towers.image_sizes(config)
        self.config, self.max_tokens, self.pad, self.train = config, max_tokens, pad, train
        self.image_size = image_size
        tokenizer = towers.load_tokenizer(config, directory)
        self.chat = Chat(tokenizer, image_tokens=image_tokens, system=config.system)
        world = config.world
        self.tokens_per_frame = tokens_per_frame(world, towers.wan_config(config, world)["z_dim"]) if world else 0

    def encode(self, sample: Sample, key: int) -> Example:
        """The whole conversation with its labels. `key` draws the augmentation, in training only."""
        if len(sample.get("annotations", ())) > 1:
            raise BadSample(f"it has {len(sample['annotations'])} annotations, of which theworld learns one; make each a sample of its own")
        pieces = self.chat.pieces(sample["messages"], len(sample["images"]))
        if not any(piece.supervised for piece in pieces):
            raise BadSample("no assistant turn: there is nothing to learn from this sample")
        change = _draw(self.config, key) if self.train else None
        return self._example(sample, pieces, change=change, max_tokens=self.max_tokens)

    def prompt(self, sample: Sample, *, world: bool = True, world_of: Sample | None = None) -> Example:
        """The conversation opened for its last answer, never cut. `world=False` leaves the block out, `world_of` shows another's world."""
        pieces = self.chat.prompt(sample["messages"], len(sample["images"]))
        return self._example(sample, pieces, world=world, world_of=world_of)

    def collate(self, examples: Sequence[Example], *, left: bool = False) -> dict[str, Tensor]:
        """One batch; pictures and frames of all rows follow each other in the rows' order, and `frame_counts` cuts the frames."""
        pad = "longest" if left else self.pad
        batch = pad_rows([example.row for example in examples], pad_id=self.chat.pad, pad=pad, max_tokens=self.max_tokens, left=left)
        counts = [len(example.frames) for example in examples if len(example.frames)]
        batch["pixels"] = torch.cat([example.pixels for example in examples])
        batch["frames"] = torch.cat([example.frames for example in examples])
        batch["frame_counts"] = torch.tensor(counts, dtype=torch.int64)
        return batch

    def _example(
        self,
        sample: Sample,
        pieces: list[Piece],
        *,
        world: bool = True,
        world_of: Sample | None = None,
        change: _Change | None = None,
        max_tokens: int | None = None,
    ) -> Example:
        pictures = [self._decode(data) for data in sample["images"]]
        seen = self.config.world if world else None
        frames = self._frames(sample, pictures, world_of) if seen else []
        tokens = (1 + (len(frames) - 1) // 4) * self.tokens_per_frame if frames else 0
        row = fuse(pieces, tokens, pad_id=self.chat.pad, max_tokens=max_tokens)
        side = self.config.world.image_size if self.config.world else 8
        return Example(row, _fit(pictures, self.image_size, change), _fit(frames, side, change))

    def _frames(self, sample: Sample, pictures: list[Tensor], world_of: Sample | None) -> list[Tensor]:
        """What the world encoder sees: the first frames of the clip when there are world steps, else the first picture."""
        assert self.config.world is not None
        source = world_of or sample
        clip = source.get("frames") or []
        kept = frames_kept(len(clip), self.config.world.steps)
        if kept > 1 or not source["images"]:
            return [self._decode(data) for data in clip[:kept]]
        return pictures[:1] if source is sample else [self._decode(source["images"][0])]

    def _decode(self, data: bytes) -> Tensor:
        largest = max(self.image_size, self.config.world.image_size if self.config.world else 0)
        return images.decode(data, at_least=(largest, largest))


def _fit(pictures: Sequence[Tensor], side: int, change: _Change | None) -> Tensor:
    """Pictures squeezed to squares, as Gemma's own processor does, then changed: (n, 3, side, side) uint8."""
    if not pictures:
        return torch.empty(0, 3, side, side, dtype=torch.uint8)
    squares = images.resize_all(pictures, side, side, mode="bilinear")
    return squares if change is None else _changed(squares, change)


def _draw(config: Config, key: int) -> _Change | None:
    augment = config.augment
    if not augment.flip and not augment.shift:
        return None
    random = rng(key, "augment")
    flip, down, right = random.random(3)
    return _Change(bool(augment.flip and flip < 0.5), augment.shift * (2 * down - 1), augment.shift * (2 * right - 1))


def _changed(squares: Tensor, change: _Change) -> Tensor:
    side = squares.shape[-1]
    down, right = round(change.down * side), round(change.right * side)
    reach = max(abs(down), abs(right))
    if reach:
        padded = F.pad(squares.float(), (reach,) * 4, mode="replicate").to(torch.uint8)
        squares = padded[..., reach - down : reach - down + side, reach - right : reach - right + side]
    return squares.flip(-1) if change.flip else squares.contiguous()


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """What the model sees of one example: the pictures of both towers (uint8, H x W x 3), the text in runs, and counts."""
    shown = [picture.permute(1, 2, 0).numpy() for picture in (*example.pixels, *example.frames)]
    names = {Kind.IMAGE: "image", Kind.WORLD: "world", Kind.WORLD_START: "start of world", Kind.WORLD_END: "end of world"}
    runs: list[tuple[str, bool]] = []
    kinds, supervised = example.row.kinds, example.row.labels != IGNORED
    change = torch.ones(len(kinds), dtype=torch.bool)
    change[1:] = (kinds[1:] != kinds[:-1]) | (supervised[1:] != supervised[:-1])
    starts = [*change.nonzero()[:, 0].tolist(), len(kinds)]
    for start, stop in pairwise(starts):
        kind = Kind(int(kinds[start]))
        text = inputs.chat.decode(example.row.ids[start:stop].tolist(), special=True) if kind == Kind.TEXT else None
        times = f" x {stop - start}" if kind in (Kind.IMAGE, Kind.WORLD) else ""
        runs.append((text if text is not None else f"[{names[kind]}{times}]", bool(supervised[start])))
    notes = {
        "tokens": len(example.row),
        "supervised": int(supervised.sum()),
        "image tokens": int((kinds == Kind.IMAGE).sum()),
        "world tokens": example.world_tokens,
        "world frames": len(example.frames),
        "pictures": f"{len(example.pixels)} for vision, then {len(example.frames)} for the world encoder",
    }
    return {"images": shown, "text": runs, "notes": notes}
