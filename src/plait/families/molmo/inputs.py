"""Samples to what the model takes: crops of the images, and a sequence of tokens with labels and weights. Runs in data workers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig

from plait.data import images
from plait.errors import BadSample, PlaitError
from plait.families.molmo import styles, towers
from plait.families.molmo.config import IMAGE_MARK, IMAGE_TOKENS, Config
from plait.families.molmo.sequence import Annotation, Row, arrange, batch_rows, unsupervised
from plait.families.molmo.styles import Words
from plait.families.molmo.tiling import PATCH, Tiled, tile
from plait.keys import rng

Sample = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One sample as the model takes it: its row and its images, in the order in which their tokens stand."""

    row: Row
    tiles: list[Tiled]


class Words2Ids:
    """A tokenizer, its end-of-text id, and where the ids of image tokens begin."""

    def __init__(self, tokenizer: Tokenizer, language: PreTrainedConfig):
        sizes = language.get_text_config()
        self.tokenizer = tokenizer
        self.image_start: int = sizes.vocab_size
        ends = sizes.eos_token_id if isinstance(sizes.eos_token_id, list) else [sizes.eos_token_id]
        if ends[0] is None:
            raise PlaitError("model.language: its configuration names no eos_token_id, so answers could never end: name one there")
        self.eos: int = ends[0]
        self.bos: int = self.eos if sizes.bos_token_id is None else sizes.bos_token_id
        self.stops = frozenset(ends)

    def ids(self, text: str) -> list[int]:
        """Tokens of plain text; no special token is read out of it."""
        self.tokenizer.encode_special_tokens = True  # lost when a tokenizer travels to another process
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of tokens; image tokens are left out, or, with `special`, named."""
        if not special:
            return self.tokenizer.decode([i for i in ids if i < self.image_start], skip_special_tokens=True)
        names = {self.image_start + place: name for place, name in enumerate(IMAGE_TOKENS)}
        return "".join(names[i] if i in names else self.tokenizer.decode([i], skip_special_tokens=False) for i in ids)


class Inputs:
    """`encode` and `collate` for training and held-out loss; `prompt` for generation."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        max_tokens: int | None = None,
        pad: str = "longest",
        train: bool = False,
        words: Words2Ids | None = None,
    ):
        self.config, self.max_tokens, self.pad, self.train = config, max_tokens, pad, train
        self.words = words or Words2Ids(towers.load_tokenizer(config, directory), towers.language_config(config))

    def encode(self, sample: Sample, key: int) -> Example:
        """All annotations of the sample with their labels. In training, `key` draws styles, lengths and the annotations' order."""
        listed = styles.conversations(sample, self.config.default_style)
        random = rng(key, "text") if self.train else None
        if random is not None and len(listed) > 1:
            listed = [listed[place] for place in random.permutation(len(listed))]
        count = sum(any(message["role"] == "assistant" for message in messages) for messages, _, _ in listed)
        if count < len(listed):
            raise BadSample("no assistant turn: there is nothing to learn from this sample")
        tiles = self._tiles(sample)
        prefix, listed = self._prefix(tiles, listed)
        annotations = []
        for messages, style, weight in listed:
            found = self._annotation(styles.written(self.config, messages, style, random), tiles)
            scale = weight * _annotation_weight(self.config.weighting, sum(w > 0 for w in found.weights), len(listed))
            annotations.append(Annotation(found.ids, [w * scale for w in found.weights]))
        row = arrange(prefix, annotations, max_tokens=self.max_tokens, text_rows=self.words.image_start)
        return Example(row, tiles)

    def prompt(self, sample: Sample) -> Example:
        """The first annotation up to the answer of its last user turn, never cut."""
        messages, style, _ = styles.conversations(sample, self.config.default_style)[0]
        last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=None)
        asked = list(messages[: last + 1]) if last is not None else [{"role": "user", "content": ""}]
        tiles = self._tiles(sample)
        prefix, listed = self._prefix(tiles, [(asked, style, 1.0)])
        found = self._annotation(styles.written(self.config, listed[0][0], style, None), tiles)
        return Example(unsupervised(arrange(prefix, [found] if found.ids else [], text_rows=self.words.image_start)), tiles)

    def collate(self, examples: Sequence[Example], *, left: bool = False) -> dict[str, Tensor]:
        """One batch; crops of all images follow each other in the rows' order, and `pools` count patches over all of them."""
        pad = "longest" if left else self.pad
        batch = batch_rows([e.row for e in examples], pad_id=self.words.eos, pad=pad, max_tokens=self.max_tokens, left=left)
        tower = self.config.tower
        crops, real, pools = [torch.empty(0, 3, tower.image, tower.image, dtype=torch.uint8)], [torch.empty(0, tower.side**2)], []
        before = 0
        for tiled in (tiled for example in examples for tiled in example.tiles):
            crops.append(tiled.crops)
            real.append(tiled.real)
            pools.append(torch.where(tiled.pools >= 0, tiled.pools + before, tiled.pools))
            before += tiled.real.numel()
        batch |= {"crops": torch.cat(crops), "real": torch.cat(real)}
        batch["pools"] = torch.cat(pools) if pools else torch.empty(0, 4, dtype=torch.int64)
        batch["cut"] = torch.tensor([example.row.cut for example in examples])
        return batch

    def image_ids(self, tiled: Tiled) -> list[int]:
        """Token ids of one image."""
        return (tiled.tokens + self.words.image_start).tolist()

    def _tiles(self, sample: Sample) -> list[Tiled]:
        return [tile(images.decode(data), self.config) for data in sample["images"]]

    def _prefix(
        self, tiles: list[Tiled], listed: list[tuple[list[dict[str, str]], str, float]]
    ) -> tuple[list[int], list[tuple[list[dict[str, str]], str, float]]]:
        """BOS and the images that come first; and the annotations without the marks that say so. Later marks keep their places."""
        stripped = [(*styles.without_leading_marks(messages), style, weight) for messages, style, weight in listed]
        inside = [styles.marks(messages) for messages, _, _, _ in stripped]
        for led, later in zip((one[1] for one in stripped), inside, strict=True):
            if led + later and led + later != len(tiles):
                raise BadSample(f"the text has {led + later} {IMAGE_MARK} marks, the sample {len(tiles)} images")
        if any(inside) and len(listed) > 1:
            raise BadSample(f"{len(listed)} annotations share their images, so {IMAGE_MARK} may only stand at the start")
        first = tiles[: stripped[0][1]] if any(inside) else tiles
        ids = [self.words.bos, *(i for tiled in first for i in self.image_ids(tiled))]
        return ids, [(messages, style, weight) for messages, _, style, weight in stripped]

    def _annotation(self, runs: list[Words], tiles: list[Tiled]) -> Annotation:
        ids: list[int] = []
        weights: list[float] = []
        inside = iter(tiles[len(tiles) - sum(run.image for run in runs) :])
        for run in runs:
            new = self.image_ids(next(inside)) if run.image else self.words.ids(run.text)
            new = [*new, self.words.eos] if run.answer else new
            ids += new
            weights += [float(run.answer)] * len(new)
        return Annotation(ids, weights)


def _annotation_weight(weighting: str, tokens: int, annotations: int) -> float:
    """none: 1; root_subsegments: sqrt(1/n); root_subsegments_root_tokens: 2 / sqrt(supervised tokens) / sqrt(n)."""
    if weighting == "none":
        return 1.0
    shared = math.sqrt(1 / annotations)
    return shared if weighting == "root_subsegments" else 2 / math.sqrt(max(tokens, 1)) * shared


def inspect(inputs: Inputs, sample: Sample, example: Example) -> dict[str, Any]:
    """What the model sees of one example: its crops (uint8, H x W x 3), the text in runs with images shortened, and counts."""
    row = example.row
    starts = inputs.words.image_start
    said = torch.zeros(len(row), dtype=torch.bool)
    said[1:] = row.weights[:-1] > 0  # the weight of a position is that of the token after it
    runs: list[tuple[str, bool]] = []
    place = 0
    while place < len(row):
        image, supervised = bool(row.ids[place] >= starts), bool(said[place])
        stop = place + 1
        while stop < len(row) and bool(row.ids[stop] >= starts) == image and bool(said[stop]) == supervised:
            stop += 1
        ids = row.ids[place:stop].tolist()
        patches = sum(i == starts + PATCH for i in ids)
        runs.append((f"[image x {patches}]" if image else inputs.words.text(ids, special=True), supervised))
        place = stop
    notes = {
        "tokens": len(row),
        "supervised": int((row.weights > 0).sum()),
        "image tokens": int((row.ids >= starts).sum()),
        "crops": sum(len(tiled.crops) for tiled in example.tiles),
        "annotations": int(row.annotations.max()),
        "cut": row.cut,
    }
    shown = [crop.permute(1, 2, 0).numpy() for tiled in example.tiles for crop in tiled.crops]
    return {"images": shown, "text": runs, "notes": notes}
