"""Convert conversations to spans in Gemma 3's chat format, with the same tokens as its own processor.

A span is a run of tokens of one kind. Text between two special tokens is tokenised as one string, and an answer separately, because
generation continues a prompt so. Special tokens spelled out in a user's text are tokenised as plain text. `messages` are [{"role": "user",
"content": "..."}, ...]; `images` is the number of images, and `<image>` in a user's text marks the place of one; without marks they come
first.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from tokenizers import Tokenizer

from plait.data.text import IMAGE_MARK
from plait.errors import BadSample, PlaitError
from plait.families.theworld.sequence import Kind, Span

Message = dict[str, str]
"""A turn, {"role", "content"}."""


def stops(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the tokens that end an answer: <eos> and <end_of_turn>, as far as the tokenizer has them."""
    return frozenset(i for name in ("<eos>", "<end_of_turn>") if (i := tokenizer.token_to_id(name)) is not None)


class Chat:
    """The chat format with one tokenizer. `image_tokens`: positions per image; `system`: system text for conversations without, or None.

    Raises PlaitError for a tokenizer without Gemma 3's special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, image_tokens: int, system: str | None):
        self.tokenizer, self.image_tokens, self.system = tokenizer, image_tokens, system
        special = ("<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
        ids = [_token_id(tokenizer, name) for name in special]
        self.pad, self.bos, self.start_turn, self.end_turn, self.start_image, self.end_image, self.image = ids
        self.stops = stops(tokenizer)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of plain text. No BOS is added, and a special token spelled out in it is encoded as plain text."""
        self.tokenizer.encode_special_tokens = True  # lost when a tokenizer travels to another process
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Return the text of token ids; special tokens are left out unless `special` is True."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)

    def spans(self, messages: list[Message], images: int) -> list[Span]:
        """Return the spans of a whole conversation; only assistant texts and the ends of their turns are supervised.

        `messages`: [{"role", "content"}, ...]; `images`: how many images the sample has. Raises BadSample if roles do not alternate, or if
        there are `<image>` marks, but not as many.
        """
        return list(self._spans(*_turns(messages, images, self.system)))

    def prompt(self, messages: list[Message], images: int) -> list[Span]:
        """Return the spans of a prompt: up to the last user turn and the start of the model's turn. Arguments and errors: as of `spans`."""
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
        system = [message for message in messages if message["role"] == "system"]
        question = messages[: last + 1] if last is not None else [*system, {"role": "user", "content": ""}]
        opening = Span([*self.text_ids("\n"), self.start_turn, *self.text_ids("model\n")])
        return [*self._spans(*_turns(question, images, self.system)), opening]

    def _spans(self, turns: list[Message], prefix: str) -> Iterator[Span]:
        yield Span([self.bos])
        for number, turn in enumerate(turns):
            if number:
                yield Span(self.text_ids("\n"))
            if turn["role"] == "assistant":
                yield Span([self.start_turn, *self.text_ids("model\n")])
                yield Span([*self.text_ids(turn["content"].strip()), self.end_turn], supervised=True)
            else:
                yield Span([self.start_turn])
                yield from self._user_spans(("user\n" if number else f"user\n{prefix}"), turn["content"])
                yield Span([self.end_turn])

    def _user_spans(self, before: str, content: str) -> Iterator[Span]:
        first, *others = content.split(IMAGE_MARK)
        text = before + first.strip()
        for other in others:
            yield Span([*self.text_ids(text + "\n\n"), self.start_image])
            yield Span([self.image] * self.image_tokens, Kind.IMAGE)
            yield Span([self.end_image])
            text = "\n\n" + other.strip()
        yield Span(self.text_ids(text))


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    token_id = tokenizer.token_to_id(name)
    if token_id is None:
        raise PlaitError(f"the tokenizer of model.base has no token {name}: it is not a Gemma 3 tokenizer")
    return token_id


def _turns(messages: list[Message], images: int, system: str | None) -> tuple[list[Message], str]:
    """Return alternating user and assistant turns with one mark per image, and the system text that opens the first user turn."""
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
