"""Encode samples (raw items of data) as crops of images and token sequences with labels and weights. Runs in data workers.

A row is one sample's sequence of tokens; an annotation, one conversation about its image, of which a row may hold several. A style is a
task's name, such as vqa2 or long_caption, that may begin a prompt. Weights are loss weights of tokens, 0 where nothing is learned.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedConfig

from plait.data import images
from plait.data.field_names import no_answer
from plait.data.memory import tensors
from plait.errors import BadSample, PlaitError
from plait.families import limits
from plait.families.molmo import styles, towers
from plait.families.molmo.config import Config
from plait.families.molmo.hf.sizes import IMAGE_PROMPT, IMAGE_TOKENS
from plait.families.molmo.hf.tiling import TiledImage, tile
from plait.families.molmo.packing.documents import documents_of
from plait.families.molmo.packing.sequence import Annotation, Row, batch_rows, build_row, places_of
from plait.families.molmo.styles import Conversation, TextSpan
from plait.keys import rng
from plait.nn.documents import LONGEST_MASK

Sample = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One encoded sample: its row and its tiled images, in the order of their tokens in the row."""

    row: Row
    tiles: list[TiledImage]


class TextTokenizer:
    """A tokenizer with the ids of begin and end of text (`bos`, `eos`, `stops`) and the first id of image tokens (`image_start`).

    `positions`: longest sequence of the language model, or None. Raises PlaitError if its configuration, `language`, has no eos_token_id.
    """

    def __init__(self, tokenizer: Tokenizer, language: PreTrainedConfig):
        sizes = language.get_text_config()
        self.tokenizer = tokenizer
        self.image_start: int = sizes.vocab_size
        ends = sizes.eos_token_id if isinstance(sizes.eos_token_id, list) else [sizes.eos_token_id]
        if ends[0] is None:
            raise PlaitError("model.language: its configuration names no eos_token_id, so answers could never end: name one there")
        self.eos: int = ends[0]
        self.bos: int = self.eos if sizes.bos_token_id is None else sizes.bos_token_id
        self.stops, self.positions = frozenset(ends), limits.language_positions(language)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without begin or end. The text of a special token in it is encoded as plain text."""
        self.tokenizer.encode_special_tokens = True  # lost when a tokenizer travels to another process
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids, without special and image tokens, or with `special` with their names, such as `<im_patch>`."""
        if not special:
            return self.tokenizer.decode([i for i in ids if i < self.image_start], skip_special_tokens=True)
        names = {self.image_start + i: name for i, name in enumerate(IMAGE_TOKENS)}
        return "".join(names[i] if i in names else self.tokenizer.decode([i], skip_special_tokens=False) for i in ids)


class Inputs:
    """Encodes samples: `encode` for training and held-out loss, `prompt` for generation; `collate` makes batches of either.

    `assets`: RUN/assets, with a debug model's tokenizer. `max_tokens`: truncate longer rows; `pad`: "longest", "to_128" (a multiple),
    "to_max", or "none" (pack all rows into one); `train`: choose styles at random. `tokenizer`: None: the language model's is loaded.
    """

    def __init__(
        self,
        config: Config,
        assets: Path,
        *,
        max_tokens: int | None = None,
        pad: str = "longest",
        train: bool = False,
        tokenizer: TextTokenizer | None = None,
    ):
        self.config, self.max_tokens, self.pad, self.train = config, max_tokens, pad, train
        self.tokenizer = tokenizer or TextTokenizer(towers.load_tokenizer(config, assets), towers.language_config(config))

    def encode(self, sample: Sample, key: int) -> Example:
        """Encode all annotations with labels; in training `key` seeds styles, lengths, order. Raises BadSample: no answer, too long, ..."""
        conversations = styles.conversations(sample, self.config.default_style, wordings=self.config.wordings)
        random = rng(key, "text") if self.train else None
        if random is not None and len(conversations) > 1:
            conversations = [conversations[i] for i in random.permutation(len(conversations))]
        answered = sum(any(message["role"] == "assistant" for message in messages) for messages, _, _ in conversations)
        if answered < len(conversations):
            raise BadSample(no_answer(sample))
        tiles = self._tiles(sample)
        prefix, conversations = self._prefix(tiles, conversations)
        annotations = []
        for messages, style, weight in conversations:
            annotation = self._annotation(styles.conversation_spans(self.config, messages, style, random), tiles)
            supervised = sum(w > 0 for w in annotation.loss_weights)
            scale = weight * _annotation_weight(self.config.weighting, supervised, len(conversations))
            annotations.append(Annotation(annotation.ids, [w * scale for w in annotation.loss_weights]))
        return self._example(build_row(prefix, annotations, max_tokens=self.max_tokens, text_rows=self.tokenizer.image_start), tiles)

    def prompt(self, sample: Sample) -> Example:
        """Encode the first annotation up to its last user turn, for generation, untruncated. Raises BadSample: bad image, too long, ..."""
        messages, style, _ = styles.conversations(sample, self.config.default_style, wordings=self.config.wordings)[0]
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        system = [message for message in messages[:1] if message["role"] == "system"]
        question = list(messages[: last + 1]) if last is not None else system or [{"role": "user", "content": ""}]
        tiles = self._tiles(sample)
        prefix, ((messages, _, _),) = self._prefix(tiles, [(question, style, 1.0)])
        annotation = self._annotation(styles.conversation_spans(self.config, messages, style, None), tiles)
        row = build_row(prefix, [annotation] if annotation.ids else [], text_rows=self.tokenizer.image_start)
        return self._example(replace(row, loss_weights=torch.zeros_like(row.loss_weights)), tiles)

    def _example(self, row: Row, tiles: list[TiledImage]) -> Example:
        limits.check_length(int(row.positions.max()) + 1, self.tokenizer.positions)
        return Example(row, tiles)

    def collate(self, examples: Sequence[Example], *, left: bool = False) -> dict[str, Any]:
        """Collate examples to a batch: `ids`, `labels`, `loss_weights`, `positions` (B, L) and `segments` (B, L, 2), as of `batch_rows`.

        Of n crops: `crops` (n, 3, S, S), `real` (n, P), image share of each patch (-1: partly padded), and `pools` (T, 4), the patches of
        each image token, as indices into `real`; -1: none. `cut` (B,): answer tokens cut off. `places`: of `places_of`. `left`: pad there.
        """
        pad = "longest" if left else self.pad
        batch = batch_rows([example.row for example in examples], pad_id=self.tokenizer.eos, pad=pad, max_tokens=self.max_tokens, left=left)
        tower = self.config.tower
        crops, real, pools = [torch.empty(0, 3, tower.image, tower.image, dtype=torch.uint8)], [torch.empty(0, tower.side**2)], []
        before = 0
        for tiled in (tiled for example in examples for tiled in example.tiles):
            crops.append(tiled.crops)
            real.append(tiled.real)
            pools.append(torch.where(tiled.pools >= 0, tiled.pools + before, tiled.pools))
            before += tiled.real.numel()
        batch |= {"crops": tensors.cat(crops), "real": torch.cat(real)}
        batch["pools"] = torch.cat(pools) if pools else torch.empty(0, 4, dtype=torch.int64)
        batch["cut"] = torch.tensor([example.row.cut for example in examples])
        prompts = bool(self.config.residual_dropout)
        places: dict[str, Any] = dict(places_of(batch, self.tokenizer.image_start, prompts=prompts))
        length = None if pad == "none" else batch["ids"].shape[1]
        if length is None or length > LONGEST_MASK:
            places["documents"] = documents_of([example.row for example in examples], length, left=left)
        return {**batch, "places": places}

    def image_ids(self, tiled: TiledImage) -> list[int]:
        """Return the token ids of one tiled image: start, patches, ends of rows, and end."""
        ids: list[int] = (tiled.tokens + self.tokenizer.image_start).tolist()
        return ids

    def _tiles(self, sample: Sample) -> list[TiledImage]:
        return [tile(images.decode(data), self.config.tiling) for data in sample["images"]]

    def _prefix(self, tiles: list[TiledImage], conversations: list[Conversation]) -> tuple[list[int], list[Conversation]]:
        """Return BOS and the images that come first, and the conversations without their leading image marks."""
        stripped = [(*styles.strip_leading_image_marks(messages), style, weight) for messages, style, weight in conversations]
        inner_marks = [styles.count_image_marks(messages) for messages, _, _, _ in stripped]
        for (_, leading, _, _), inner in zip(stripped, inner_marks, strict=True):
            if leading + inner and leading + inner != len(tiles):
                raise BadSample(f"the text has {leading + inner} {IMAGE_PROMPT} marks, the sample {len(tiles)} images")
        if any(inner_marks) and len(conversations) > 1:
            raise BadSample(f"{len(conversations)} annotations share their images, so {IMAGE_PROMPT} may only stand at the start")
        first = tiles[: stripped[0][1]] if any(inner_marks) else tiles
        ids = [self.tokenizer.bos, *(i for tiled in first for i in self.image_ids(tiled))]
        return ids, [(messages, style, weight) for messages, _, style, weight in stripped]

    def _annotation(self, spans: list[TextSpan], tiles: list[TiledImage]) -> Annotation:
        ids: list[int] = []
        loss_weights: list[float] = []
        inner_tiles = iter(tiles[len(tiles) - sum(span.image for span in spans) :])
        for span in spans:
            span_ids = self.image_ids(next(inner_tiles)) if span.image else self.tokenizer.encode(span.text)
            span_ids = [*span_ids, self.tokenizer.eos] if span.answer else span_ids
            ids += span_ids
            loss_weights += [float(span.answer)] * len(span_ids)
        return Annotation(ids, loss_weights)


def _annotation_weight(weighting: str, tokens: int, annotations: int) -> float:
    """Return each annotation's weight by `weighting`: 1, sqrt(1 / annotations), or that times 2 / sqrt(supervised `tokens`).

    Of several annotations, the last end of text does not count among the tokens (as in allenai/molmo2).
    """
    if weighting == "none":
        return 1.0
    shared = math.sqrt(1 / annotations)
    return shared if weighting == "root_subsegments" else 2 / math.sqrt(max(tokens - (annotations > 1), 1)) * shared
