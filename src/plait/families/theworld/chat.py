"""Conversations to pieces of tokens, in Gemma 3's chat format, equal to its own template and processor.

Text between two special tokens is tokenised as one string, an answer by itself, because that is how generation will continue it.
Special tokens written inside a user's text are plain text here.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from tokenizers import Tokenizer

from plait.errors import BadSample, PlaitError
from plait.families.theworld.sequence import Kind, Piece

IMAGE_MARK = "<image>"
Message = dict[str, str]


class Chat:
    """A tokenizer with Gemma's special tokens, and the system text used where a conversation has none."""

    def __init__(self, tokenizer: Tokenizer, *, image_tokens: int, system: str | None):
        self.tokenizer, self.image_tokens, self.system = tokenizer, image_tokens, system
        names = ("<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
        ids = [_id(tokenizer, name) for name in names]
        self.pad, self.bos, self.start_turn, self.end_turn, self.start_image, self.end_image, self.image = ids
        self.stops = frozenset(place for name in ("<eos>", "<end_of_turn>") if (place := tokenizer.token_to_id(name)) is not None)

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text; nothing is added, and no special token is read out of it."""
        self.tokenizer.encode_special_tokens = True  # lost when a tokenizer travels to another process
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text of tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)

    def pieces(self, messages: list[Message], images: int) -> list[Piece]:
        """The whole conversation. Each assistant text and its end of turn is supervised, and nothing else is."""
        return list(self._pieces(*_turns(messages, images, self.system)))

    def prompt(self, messages: list[Message], images: int) -> list[Piece]:
        """The conversation up to the answer to its last user turn, opened for the model to continue."""
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        system = [message for message in messages if message["role"] == "system"]
        asked = messages[: last + 1] if last is not None else [*system, {"role": "user", "content": ""}]
        opened = Piece([*self.text_ids("\n"), self.start_turn, *self.text_ids("model\n")])
        return [*self._pieces(*_turns(asked, images, self.system)), opened]

    def _pieces(self, turns: list[Message], prefix: str) -> Iterator[Piece]:
        yield Piece([self.bos])
        for place, turn in enumerate(turns):
            if place:
                yield Piece(self.text_ids("\n"))
            if turn["role"] == "assistant":
                yield Piece([self.start_turn, *self.text_ids("model\n")])
                yield Piece([*self.text_ids(turn["content"].strip()), self.end_turn], supervised=True)
            else:
                yield Piece([self.start_turn])
                yield from self._user(("user\n" if place else f"user\n{prefix}"), turn["content"])
                yield Piece([self.end_turn])

    def _user(self, before: str, content: str) -> Iterator[Piece]:
        parts = content.split(IMAGE_MARK)
        text = before + parts[0].strip()
        for part in parts[1:]:
            yield Piece([*self.text_ids(text + "\n\n"), self.start_image])
            yield Piece([self.image] * self.image_tokens, Kind.IMAGE)
            yield Piece([self.end_image])
            text = "\n\n" + part.strip()
        yield Piece(self.text_ids(text))


def _id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise PlaitError(f"the tokenizer of model.base has no token {name}: it is not a Gemma 3 tokenizer")
    return found


def _turns(messages: list[Message], images: int, system: str | None) -> tuple[list[Message], str]:
    """User and assistant turns that alternate, with an image mark per image, and the text that opens the first user turn."""
    turns = list(messages)
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
    if not turns or turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": ""})  # a caption without a question still has its picture in a user turn
    roles = [turn["role"] for turn in turns]
    if any(role not in ("user", "assistant") for role in roles) or any(a == b for a, b in pairwise(roles)):
        raise BadSample(f"roles must alternate user, assistant, user, ...; they are {', '.join(roles)}")
    marks = sum(len(re.findall(IMAGE_MARK, turn["content"])) for turn in turns if turn["role"] == "user")
    if marks == 0:
        turns[0] = {**turns[0], "content": IMAGE_MARK * images + turns[0]["content"]}
    elif marks != images:
        raise BadSample(f"the text has {marks} {IMAGE_MARK} marks, the sample {images} images")
    return turns, f"{system}\n\n" if system else ""
