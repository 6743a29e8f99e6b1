"""Predict futures of samples, for `plait data rollout`: what a family's optional module `futures.py` is asked for, and what it returns."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from plait.config import plugins
from plait.errors import PlaitError
from plait.families import registry

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """How futures are to be made. `predictor`: "copy", "scenes", or a video world model's folder or Hub name, of `revision`.

    `steps`: latent frames after the first, None: as the model's section says; `dtype`: of a video world model, such as "bfloat16", and
    `prompt`, `inference_steps`, `guidance` of its sampler; `device`: where it and the encoder compute; `options`: of the data's source.
    """

    predictor: str
    steps: int | None
    dtype: str
    prompt: str
    inference_steps: int
    guidance: float
    revision: str | None
    device: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Futures:
    """What makes futures. `predict(samples, indices)` returns the latents (T, C, h, w) of each by index, or why one has none.

    `steps`: latent frames after the first; `encoder`: the pin of the encoder whose latents they are; `made_by`: predictor and settings;
    `seed`: that of `open_futures`, where the encoder is drawn from it, else None; `lines`: what is to be told before.
    """

    predict: Callable[[Sequence[Sample], Sequence[int]], dict[int, Tensor | str]]
    steps: int
    encoder: Mapping[str, Any]
    made_by: Mapping[str, Any]
    seed: int | None
    lines: Sequence[str] = ()


_CALL = "open_futures(config, request, *, seed)"


def opener(family: str) -> Callable[..., Futures] | None:
    """Return `open_futures(config, request, *, seed)` of a family's module `futures`; None if it has no such module.

    `seed`: what the family's `build` is given for the run.
    Raises PlaitError for an unknown family, and where the function is missing or has another signature.
    """
    registry.model_config(family)
    name = f"{registry.packages()[family]}.futures"
    if importlib.util.find_spec(name) is None:
        return None
    members = vars(importlib.import_module(name))
    if faults := plugins.function_faults(members, {"open_futures": _CALL}):
        raise PlaitError(f"family {family!r} ({name}) does not fulfil the contract: {'; '.join(faults)}")
    return cast("Callable[..., Futures]", members["open_futures"])
