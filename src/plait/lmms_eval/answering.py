"""Answer questions with pictures with a checkpoint, as lmms-eval asks them. This file does not need lmms-eval; model.py does.

A visual is what a task of lmms-eval shows: a Pillow picture or the path of one. Settings are a task's `generation_kwargs`.
"""

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from plait.assembly import exported, sample_losses
from plait.config.messages import one_line
from plait.data.image_files import size
from plait.engine.parallel import distributed
from plait.engine.precision import autocast
from plait.errors import PlaitError
from plait.families.idle_options import of_draw

log = logging.getLogger(__name__)

IMAGE_MARKS = ("<image>",)
"""Marks of pictures in a task's text. They are taken out: pictures stand before the text."""
_NEEDED = ("prompt", "image", "max_new_tokens")  # options of a family's generation
_MOST_TOKENS = 1024  # of an answer whose task sets no limit
_PASSED_ON = ("temperature", "top_p")
_UNDERSTOOD = ("do_sample", "num_beams", "until", "max_new_tokens", "use_cache", *_PASSED_ON)
_PARAGRAPH = "\n\n"  # the stop of tasks that name none; lmms-eval's own models do not stop at it
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class Answering:
    """A checkpoint's model that answers one question at a time.

    `spec`: RUN, RUN@STEP, RUN/STAGE@best, a step folder or the folder of an export. `averaged`: with its EMA weights, if any. `options`:
    further options of the family's generation, such as {"style": "vqa2"}. Raises PlaitError for a checkpoint that is not there, and for a
    family that cannot answer questions about pictures.
    """

    def __init__(self, spec: str, *, averaged: bool = True, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        with ExitStack() as joined:
            ranks = joined.enter_context(distributed.join())
            if ranks.size > 1:
                raise PlaitError("the model plait answers in one process: start lmms-eval without accelerate or torchrun")
            self.device = ranks.device
            self.bundle, self.config, self.moment, step = exported.open_named(spec, ranks, averaged=averaged)
        self.name, self.family = str(spec) if step is None else f"{spec}@{step}", self.bundle.family
        kind = self.family.GenerateOptions
        if self.family.generate is None or kind is None or (lacking := [name for name in _NEEDED if name not in kind.model_fields]):
            raise PlaitError(f"family {self.family.name!r} answers no questions about pictures" + (f": no {lacking[0]}" if kind else ""))
        self.kind, self.generate = kind, self.family.generate
        self.inputs = self.bundle.inputs(self.config, train=False)
        self._unheeded: set[str] = set()
        self._checked({"prompt": ""})

    def answer(self, context: str, visuals: Sequence[Any], settings: Mapping[str, Any]) -> str:
        """Return the answer to a question, up to the first of the texts in the setting `until`.

        `settings`: also `max_new_tokens`, `temperature`, `top_p` and `do_sample`; others are told once and have no effect. Raises
        PlaitError for visuals that are no pictures, and BadSample for a question that is too long for the model.
        """
        self._tell_unheeded(settings)
        given: dict[str, Any] = {name: settings[name] for name in _PASSED_ON if settings.get(name) is not None}
        sampled = settings.get("do_sample", given.get("temperature", 0) > 0) and given.get("temperature", 1) > 0
        given = {"temperature": 1.0, **given} if sampled else {}
        given["max_new_tokens"] = int(settings.get("max_new_tokens") or _MOST_TOKENS)
        answer = self._generate(context, visuals, given).strip()
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answer = answer.split(stop)[0] if stop and stop != _PARAGRAPH else answer
        return answer.strip()

    def log_likelihood(self, context: str, continuation: str, visuals: Sequence[Any]) -> tuple[float, bool]:
        """Return the log-probability of an answer with the end of its turn, and whether the model would give it.

        Raises PlaitError for a family whose loss weighs tokens, and for a question that cannot be encoded.
        """
        wanted = continuation.strip()
        messages = [{"role": "user", "content": _plain(context)}, {"role": "assistant", "content": wanted}]
        sample = {"id": "request", "images": [_encoded(visual) for visual in visuals], "messages": messages, "fields": {}}
        loss = self.bundle.loss()
        with autocast(self.config.train.precision, self.device):
            (row,) = sample_losses.bench(loss).predict(self.bundle.model, [sample], self.inputs, batch=1, moment="")
        if "bad" in row:
            raise PlaitError(f"a question cannot be encoded: {row['bad']}")
        if not row["weights"].get("loss", 0.5).is_integer():  # its tokens have weights of their own, or there is no such term
            raise PlaitError(f"the loss of family {self.family.name!r} is no log-likelihood of the text alone")
        greedy = self._generate(context, visuals, {"max_new_tokens": len(wanted) + 1})  # a token has a letter at least
        return -row["sums"]["loss"], greedy == wanted

    def _generate(self, context: str, visuals: Sequence[Any], given: Mapping[str, Any]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.png" for number in range(len(visuals))]
            for path, visual in zip(paths, visuals, strict=True):
                path.write_bytes(_encoded(visual))
            options = self._checked({"prompt": _plain(context), "image": paths, **given})
            with autocast(self.config.train.precision, self.device):
                return "\n".join(self.generate(self.bundle.model, self.inputs, options, None, self.moment))

    def _checked(self, given: Mapping[str, Any]) -> Any:
        """Return the family's options of generation, without those of a draw for a task that draws nothing.

        Raises PlaitError for an option that it has not, or a wrong value.
        """
        try:
            whole = self.kind.model_validate({**self.options, **given})
            kept = whole.model_fields_set - set(of_draw(whole))
            return self.kind.model_validate({name: value for name, value in {**self.options, **given}.items() if name in kept})
        except ValidationError as error:
            first = error.errors()[0]
            name, known = ".".join(map(str, first["loc"])), ", ".join(name for name in self.kind.model_fields if name not in _NEEDED)
            raise PlaitError(f"model_args: {name}: {one_line(first['msg'])}; options of family {self.family.name}: {known}") from error

    def _tell_unheeded(self, settings: Mapping[str, Any]) -> None:
        """Log the settings that have no effect here, each once."""
        beams = settings.get("num_beams")
        names = {name for name, value in settings.items() if name not in _UNDERSTOOD and value is not None}
        for name in sorted((names | ({"num_beams"} if beams not in (None, 1) else set())) - self._unheeded):
            log.warning(f"generation_kwargs: {name} has no effect on the model plait")
            self._unheeded.add(name)


def _plain(context: str) -> str:
    for mark in IMAGE_MARKS:
        context = context.replace(mark, "")
    return context.strip()


def _encoded(visual: Any) -> bytes:
    """Return a visual as an encoded picture. Raises PlaitError for a video, a sound, or anything else that is no picture."""
    if isinstance(visual, Image.Image):
        buffer = io.BytesIO()
        (visual if visual.mode in _PNG_MODES else visual.convert("RGB")).save(buffer, "PNG")
        return buffer.getvalue()
    if isinstance(visual, str | Path) and Path(visual).is_file():
        data = Path(visual).read_bytes()
        size(data)
        return data
    raise PlaitError(f"the model plait is shown pictures only, not {visual if isinstance(visual, str) else type(visual).__name__}")
