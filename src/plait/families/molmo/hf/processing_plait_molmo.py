"""Prompts with pictures as the inputs of an exported model, encoded as training encodes them. Needs neither plait nor torchvision."""

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from plait.families.molmo.hf.sizes import IMAGE_PROMPT, IMAGE_TOKENS
from plait.families.molmo.hf.tiling import TiledImage

log = logging.get_logger(__name__)

_SEAM = "\ufdd0"
"""A noncharacter between two texts of a chat that are encoded each by itself, as in training."""
_QUOTE = "\ufdd1"
"""A noncharacter after the first letter of what a message writes like begin or end of text, and which is encoded as plain text."""


class PlaitMolmoProcessor(ProcessorMixin):
    """Encodes prompts with pictures, pads them on the left, and decodes answers. Pictures stand at `<|image|>`, or without marks first.

    Call it with `text`, one or a list, and `images`, those of one text or a list of them for each; it returns the inputs of the model's
    `forward`: `input_ids`, `attention_mask`, `crops`, `marks` and `pools`.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str | None = True,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        videos: None = None,
        audio: None = None,
        **unknown: Any,
    ) -> BatchFeature:
        """Return `input_ids`, `attention_mask` (B, L) and the images of prompts as they stand; chats go through `apply_chat_template`.

        `images`: of one text a picture or a list of them, of several a list of lists, or a list with a picture for each mark or text.
        `unknown`, such as options of `generate` that the pipeline passes on, are told and ignored, as transformers' own processors do.
        Raises ValueError where texts and pictures do not match, or a prompt is longer than the model's positions.
        """
        if unknown:
            log.warning(f"the processor has no argument {', '.join(sorted(unknown))}: ignored (for `generate`: generate_kwargs={{...}})")
        if padding not in (True, None, "longest") or return_tensors not in ("pt", None) or videos or audio:
            given = f"padding {padding!r}, return_tensors {return_tensors!r}" + (", videos or audio" if videos or audio else "")
            raise ValueError(f"a batch is text and pictures, padded to the longest, as PyTorch tensors; asked for: {given}")
        texts = [text] if isinstance(text, str) else list(text or [""])
        rows = [[self.image_processor.tiled(image) for image in row] for row in _by_text(images, texts)]
        ids = [self._encode(*row, begin=add_special_tokens) for row in zip(texts, rows, strict=True)]
        longest = max(map(len, ids))
        padded = [[self.tokenizer.pad_token_id] * (longest - len(row)) + row for row in ids]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        tokens = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        return BatchFeature({**tokens, **self.image_processor.batch(rows)})

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """Return the prompt of a chat, or with `tokenize` and `return_dict` the model's inputs. `style`: the task's name, such as vqa2."""
        if tokenize:
            conversation = self._quoted(conversation)
            if "seam" in str(kwargs.get("chat_template") or self.chat_template):
                kwargs.setdefault("seam", _SEAM)
        return super().apply_chat_template(conversation, *args, **{**kwargs, "tokenize": tokenize})

    def _quoted(self, value: Any, key: str = "") -> Any:
        """Return a conversation in which begin and end of text, where a message writes them, are marked as plain text.

        Raises ValueError for a message with the noncharacters that mark them.
        """
        if isinstance(value, str) and key in ("text", "content"):
            if _SEAM in value or _QUOTE in value:
                raise ValueError("a message holds U+FDD0 or U+FDD1, which are no characters: take them out of it")
            for token in self._ends():
                value = value.replace(token, token[0] + _QUOTE + token[1:])
            return value
        if isinstance(value, Mapping):
            return {name: self._quoted(inner, name) for name, inner in value.items()}
        return [self._quoted(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _ends(self) -> dict[str, int]:
        return {self.tokenizer.bos_token: self.tokenizer.bos_token_id, self.tokenizer.eos_token: self.tokenizer.eos_token_id}

    def _encode(self, text: str, tiles: Sequence[TiledImage], *, begin: bool) -> list[int]:
        """Return the ids of a prompt with its pictures. Raises ValueError as a call does."""
        first = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKENS[0])
        images = iter([(tiled.tokens + first).tolist() for tiled in tiles])
        marks = text.count(IMAGE_PROMPT)
        if marks and marks != len(tiles):
            raise ValueError(f"the text has {marks} {IMAGE_PROMPT} marks, and {len(tiles)} pictures are given with it: give one for each")
        ends = self._ends()
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, [IMAGE_PROMPT, _SEAM, *ends])) + ")", text):
            if part == IMAGE_PROMPT:
                ids += next(images)
            elif part in ends:
                ids.append(ends[part])
            elif part and part != _SEAM:
                ids += self._plain(part)
        if begin and ids[:1] != [self.tokenizer.bos_token_id]:
            ids.insert(0, self.tokenizer.bos_token_id)
        at = 1 if ids[:1] == [self.tokenizer.bos_token_id] else 0
        ids[at:at] = [i for image in images for i in image]  # those without a mark
        if len(ids) > self.tokenizer.model_max_length:
            raise ValueError(f"{len(ids)} tokens, and the model has {self.tokenizer.model_max_length} positions: shorten the prompt")
        return ids

    def _plain(self, text: str) -> list[int]:
        for token in self._ends():
            text = text.replace(token[0] + _QUOTE + token[1:], token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return ids


def _by_text(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """Return the pictures of each text. Raises ValueError where that cannot be told."""
    if images is None or (isinstance(images, list | tuple) and not images):
        return [[] for _ in texts]
    listed = list(images) if isinstance(images, list | tuple) else [images]
    if any(isinstance(row, list | tuple) for row in listed):
        rows = [list(row or []) for row in listed]
    elif len(texts) == 1:
        rows = [listed]
    else:
        counts = [text.count(IMAGE_PROMPT) for text in texts]
        each, given = (counts if any(counts) else [1] * len(texts)), iter(listed)
        rows = [list(islice(given, count)) for count in each] if sum(each) == len(listed) else []
    if len(rows) != len(texts):
        raise ValueError(f"{len(listed)} pictures for {len(texts)} texts: give a list of lists of pictures, one for each text")
    return rows
