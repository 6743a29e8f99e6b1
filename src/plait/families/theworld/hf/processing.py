"""Prompts with pictures and clips as the inputs of a whole exported model, encoded by the code that training uses (`Inputs`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import logging

from plait.data.text import IMAGE_MARK
from plait.errors import PlaitError
from plait.families.theworld import tiny
from plait.families.theworld.config import Config
from plait.families.theworld.hf import pictures
from plait.families.theworld.hf.configuration import AUTO_MAP
from plait.families.theworld.inputs import WORLD_OF, Example, Inputs, Parts, Sample
from plait.families.theworld.pretrained.encoder import Grid
from plait.families.theworld.sequence import Kind, Span
from plait.nn import trust

log = logging.get_logger(__name__)

_MARK = "<start_of_image>"
_CLIP = ("video", "clip")
_CHAT_OPTIONS = {"add_generation_prompt", "continue_final_message", "return_tensors", "padding"}


class TheWorldProcessor(ProcessorMixin):
    """Encodes prompts with pictures and clips, pads them on the left, and decodes answers.

    `section`: the model's `model:` section; `sizes`: {"image_size", "image_tokens", "positions", "grid"}. Call it with texts as
    a chat template makes them, or a conversation through `apply_chat_template`; it returns the inputs of the model's `forward`.
    """

    def __init__(self, tokenizer: Any = None, section: Any = None, sizes: Any = None, chat_template: str | None = None):
        super().__init__(tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.section, self.sizes, self.auto_map = dict(section or {}), dict(sizes or {}), AUTO_MAP
        self._inputs: Inputs | None = None

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers would copy the file of this class into what it saves."""

    @classmethod
    def _load_tokenizer_from_pretrained(cls, kind: Any, name: Any, subfolder: Any = "", **kwargs: Any) -> Any:  # type: ignore[override]
        """Read tokenizer.json as it is: the class that Gemma's settings name builds another of its words."""
        own = {key: value for key, value in kwargs.items() if key not in trust.CONFIG}
        return PreTrainedTokenizerFast.from_pretrained(name, subfolder=subfolder, **own, **trust.CONFIG)

    @property
    def inputs(self) -> Inputs:
        """What encodes samples; it has a copy of the tokenizer, as it encodes special tokens in a user's text as plain text.

        Raises PlaitError where processor_config.json was missing.
        """
        if self._inputs is None:
            if not self.sizes:
                raise PlaitError("this processor has no settings of a theworld model: processor_config.json is missing from its folder")
            grid = Grid(**self.sizes["grid"]) if self.sizes["grid"] else None
            own = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
            self._inputs = Inputs(Config.model_validate(self.section), Path(), parts=Parts(own, **{**self.sizes, "grid": grid}))
        return self._inputs

    @property
    def model_input_names(self) -> list[str]:
        """The inputs of `forward` that a call returns."""
        return ["input_ids", "attention_mask", "kinds", "pixels", "pixel_counts", "frames", "frame_counts"]

    def to_dict(self) -> dict[str, Any]:
        """Return what processor_config.json holds."""
        kept, self._inputs = self._inputs, None
        try:
            settings: dict[str, Any] = super().to_dict()
        finally:
            self._inputs = kept
        return settings

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        world: bool = True,
        padding: bool | str | None = True,
        return_tensors: str | None = "pt",
        audio: None = None,
        **unknown: Any,
    ) -> BatchFeature:
        """Return the model's inputs for prompts as a chat template makes them, with pictures at `<start_of_image>`, or first.

        `images`: of one text a picture or a list of them, of several a list of lists, or a list with a picture for each. `videos`: clips
        for the world encoder, of one text one, of several a list; without, it sees a text's first picture. `world` off: leave it out.
        `unknown`, such as options of `generate` that the pipeline passes on, are told and ignored, as transformers' own processors do.
        Raises ValueError where texts and pictures do not match, BadSample for a picture that cannot be used.
        """
        _warn(unknown)
        if padding not in (True, None, "longest") or return_tensors not in ("pt", None) or audio:
            given = f"padding {padding!r}, return_tensors {return_tensors!r}" + (", audio" if audio else "")
            raise ValueError(f"a batch is text, pictures and clips, padded to the longest, as PyTorch tensors; asked for: {given}")
        texts = [text] if isinstance(text, str) else list(text or [""])
        clips = list(videos) if isinstance(videos, list | tuple) and not isinstance(text, str) else [videos] * len(texts)
        rows = _by_text(images, texts)
        if len(clips) != len(texts):
            raise ValueError(f"{len(clips)} clips for {len(texts)} texts: give one for each")
        samples = [sample(row, clip, world=world) for row, clip in zip(rows, clips, strict=True)]
        return self.batch(self._examples(samples, texts))

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Return the prompt of a chat as text, or with `tokenize` its ids, and with `return_dict` the model's inputs.

        `conversation`: messages of `role` and `content`, text or a list of {"type": "text", "image" or "video", ...}; or a list of such.
        With `add_generation_prompt` a prompt has the ids that training gives it; a whole conversation, or an answer to go on with, those
        of the template's text. `world` as of a call. Raises ValueError or BadSample as a call does.
        """
        several = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = [self._with_system(chat) for chat in (conversation if several else [conversation])]
        tokenize, whole = kwargs.pop("tokenize", False), kwargs.pop("return_dict", False)
        options = {**(kwargs.pop("processor_kwargs", None) or {}), "world": kwargs.pop("world", True)}
        text: Any = None
        if not (tokenize and kwargs.get("add_generation_prompt") and chat_template is None and not args):
            shown: Any = [_shown(chat) for chat in chats]
            text = super().apply_chat_template(shown if several else shown[0], chat_template, *args, **kwargs)
            if not tokenize:
                return text
        else:
            _warn({name: kwargs[name] for name in kwargs.keys() - _CHAT_OPTIONS})
        world = options.pop("world")
        samples = [_chat_sample(chat, world=world) for chat in chats]
        _warn({name: options[name] for name in options.keys() - {"padding", "return_tensors"}})
        if text is None:
            inputs = self.batch([self.inputs.prompt(each) for each in samples])
        else:
            inputs = self.batch(self._examples(samples, text if several else [text]))
        return inputs if whole else inputs["input_ids"]

    def batch(self, examples: Sequence[Example]) -> BatchFeature:
        """Collate encoded prompts: `input_ids`, `attention_mask`, `kinds` (B, L), and by row what there is of pictures and frames."""
        batch = self.inputs.collate(examples, left=True)
        data = {"input_ids": batch["ids"], "attention_mask": batch["attention_mask"], "kinds": batch["kinds"]}
        for name, several in (("pixels", [each.pixels for each in examples]), ("frames", [each.frames for each in examples])):
            if any(len(part) for part in several):
                data |= {name: _rows(several), f"{name[:-1]}_counts": torch.tensor([len(part) for part in several])}
        return BatchFeature(data)

    def _with_system(self, chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages with the model's own system text where they have none."""
        messages = [dict(message) for message in chat]
        system = self.inputs.config.system
        if system and not (messages and messages[0]["role"] == "system"):
            messages.insert(0, {"role": "system", "content": system})
        return messages

    def _examples(self, samples: Sequence[Sample], texts: Sequence[str]) -> list[Example]:
        return [self.inputs.example(each, self._spans(text, len(each["images"]))) for each, text in zip(samples, texts, strict=True)]

    def _spans(self, text: str, images: int) -> list[Span]:
        """Return the spans of a text that a chat template made. Raises ValueError for other pictures than it has marks."""
        chat, marks = self.inputs.chat, text.count(_MARK)
        if marks not in (0, images):
            raise ValueError(f"the text has {marks} {_MARK} marks, and {images} pictures are given with it: give one for each")
        ends = {"<bos>": chat.bos, "<start_of_turn>": chat.start_turn, "<end_of_turn>": chat.end_turn}
        body = text.removeprefix("<bos>")
        if not marks:
            at = body.find("\n") + 1 if body.startswith("<start_of_turn>user\n") else 0
            body = body[:at] + _MARK * images + body[at:]
        spans, waiting = [Span([chat.bos])], ""
        for part in re.split("(" + "|".join(map(re.escape, [_MARK, *ends])) + ")", body):
            if part == _MARK:
                spans += [Span([*chat.text_ids(waiting + "\n\n"), chat.start_image]), Span([chat.image] * chat.image_tokens, Kind.IMAGE)]
                spans.append(Span([chat.end_image]))
                waiting = "\n\n"
            elif part in ends:
                spans.append(Span([*chat.text_ids(waiting), ends[part]]))
                waiting = ""
            else:
                waiting += part
        return [*spans, Span(chat.text_ids(waiting))]


def processor(section: Config, assets: Path, tokenizer: Any) -> TheWorldProcessor:
    """Return the processor of a model. `assets`: the folder of a tiny model's files; `tokenizer`: transformers' own of the same."""
    inputs = Inputs(section, assets)
    sizes = {name: getattr(inputs, name) for name in Parts._fields if name != "tokenizer"}
    sizes["grid"] = inputs.grid and asdict(inputs.grid)
    template = tokenizer.chat_template or tiny.CHAT_TEMPLATE
    return TheWorldProcessor(tokenizer, section.model_dump(mode="json"), sizes, chat_template=template)


def _warn(unknown: Mapping[str, Any]) -> None:
    if unknown:
        log.warning(f"the processor has no argument {', '.join(sorted(unknown))}: ignored (for `generate`: generate_kwargs={{...}})")


def sample(images: Sequence[Any], clip: Any, *, world: bool, messages: Sequence[dict[str, str]] = ()) -> Sample:
    """Return pictures and a clip of any kind that Python code has, and messages, as a sample. `world` off: no world encoder's tokens."""
    given = {"images": [pictures.encoded(image) for image in images], "frames": pictures.frames(clip)}
    return {"id": "prompt", "messages": list(messages), "fields": {}, **given, **({} if world else {WORLD_OF: None})}


def _chat_sample(chat: Sequence[Mapping[str, Any]], *, world: bool) -> Sample:
    """Return a conversation as a sample. Raises ValueError for several clips."""
    images: list[Any] = []
    clips: list[Any] = []
    messages = []
    for message in chat:
        parts = message["content"]
        text = parts if isinstance(parts, str) else ""
        for part in () if isinstance(parts, str) else parts:
            if part["type"] == "text":
                text += part["text"]
            elif part["type"] in _CLIP:
                clips.append(_content(part))
            else:
                images.append(_content(part))
                text += IMAGE_MARK
        messages.append({"role": message["role"], "content": text})
    if len(clips) > 1:
        raise ValueError(f"the conversation has {len(clips)} clips, and the world encoder sees one")
    return sample(images, clips[0] if clips else None, world=world, messages=messages)


def _content(part: Mapping[str, Any]) -> Any:
    """Return the picture or clip of a part of a message. Raises ValueError for a part of another kind, or without any."""
    kind = part["type"]
    if kind not in (*_CLIP, "image", "image_url"):
        raise ValueError(f"a message has a part of type {kind!r}: known are text, image and video")
    found = next((part[name] for name in (kind, "url", "path", "base64") if part.get(name) is not None), None)
    if isinstance(found, Mapping):  # {"type": "image_url", "image_url": {"url": ...}}
        found = found.get("url")
    if found is None:
        raise ValueError(f"a part of type {kind!r} has no {kind!r}, url or path")
    return found


def _shown(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without clips, which have no place in the text."""
    shown = []
    for message in chat:
        parts = message["content"]
        shown.append({**message, "content": parts if isinstance(parts, str) else [part for part in parts if part["type"] not in _CLIP]})
    return shown


def _rows(several: Sequence[Tensor]) -> Tensor:
    """Return pictures (n, 3, S, S) of each row as one tensor (B, N, 3, S, S), with zeros at the ends."""
    longest = max(len(part) for part in several)
    rows = several[0].new_zeros(len(several), longest, *several[0].shape[1:])
    for row, part in zip(rows, several, strict=True):
        row[: len(part)] = part
    return rows


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
        rows = [[image] for image in listed]
    if len(rows) != len(texts):
        raise ValueError(f"{len(listed)} pictures for {len(texts)} texts: give a list of lists of pictures, one for each text")
    return rows
