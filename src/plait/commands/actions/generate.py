"""Generate text or pictures with a checkpoint: what `plait generate` does. The model family (its kind) defines options and output."""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from plait.assembly import exported
from plait.assembly.model import ModelBundle
from plait.config.messages import flag, one_line
from plait.config.schema import RunConfig
from plait.engine.parallel import distributed
from plait.engine.precision import autocast
from plait.errors import PlaitError, command
from plait.families.contract import Family

log = logging.getLogger(__name__)

_QUESTION = ("prompt", "image")
"""Options of a family of which the user should give at least one."""


def generate(spec: str | Path, options: Sequence[str], *, averaged: bool, out: Path | None, length: float | None = None) -> None:
    """Generate with the checkpoint that `spec` names (RUN, RUN@STEP, ...), or an export, and print the answers, or names of files written.

    `options`: the family's own, such as "prompt=a cat". `averaged`: use the EMA weights; `length`: use a post-hoc average of this length
    (a share of the run) instead. `out`: folder for files; None: the family's default. Raises PlaitError for an option that is unknown or
    wrong, and for a family that generates nothing.
    """
    with distributed.join() as ranks:
        bundle, config, moment, _ = exported.open_named(spec, ranks, averaged=averaged, length=length)
        given = generate_options(options_class(bundle.family, spec), options)
        if not ranks.first:  # one question has one answer, however many ranks there are
            return
        for line in answers(bundle, config, given, moment=moment, out=out, device=ranks.device):
            log.info(line)


def options_class(family: Family, spec: str | Path) -> Any:
    """Return the pydantic class of a family's options. Raises PlaitError if it generates nothing; `spec` names the checkpoint."""
    if family.generate is None or family.GenerateOptions is None:
        raise PlaitError(f"family {family.name!r} generates nothing; `{command('eval', spec)}` measures it")
    return family.GenerateOptions


def answers(bundle: ModelBundle, config: RunConfig, given: Any, *, moment: str, out: Path | None, device: torch.device) -> Iterator[str]:
    """Yield what an opened model generates for the family's options `given`: answers, or lines with the names of files written.

    `config`: of its run; `moment`: the name of its step; `device`: where it is. `out`: folder for files; None: the family's default.
    """
    assert bundle.family.generate is not None, "options_class has refused it"
    asked = [name for name in _QUESTION if name in type(given).model_fields]
    if asked and given.model_fields_set.isdisjoint(asked):
        log.warning(f"given neither {' nor '.join(map(flag, asked))}: this is what the model makes of nothing")
    with autocast(config.train.precision, device):
        yield from bundle.family.generate(bundle.model, bundle.inputs(config, train=False), given, out, moment)


def generate_options(kind: Any, options: Sequence[str]) -> Any:
    """Return an instance of the pydantic class `kind` made from texts such as "prompt=a cat"; a repeated name gives a list.

    Raises PlaitError for an unknown name or a wrong value.
    """
    given: dict[str, Any] = {}
    for item in options:
        name, _, value = item.partition("=")
        name = name.replace("-", "_")
        if name in given:
            given[name] = [*given[name], value] if isinstance(given[name], list) else [given[name], value]
        else:
            given[name] = value
    return checked_options(kind, given)


def checked_options(kind: Any, given: Mapping[str, Any]) -> Any:
    """Return an instance of the pydantic class `kind` made from options by name. Raises PlaitError for an unknown name or wrong value."""
    for name in given:
        if name not in kind.model_fields:
            raise PlaitError(_unknown_option(kind, name))
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise PlaitError(_wrong_option(error.errors()[0])) from error


def _unknown_option(kind: Any, name: str) -> str:
    """Return the line for an option that the family does not have, with the nearest one that it has."""
    known = [flag(field) for field in kind.model_fields]
    near = difflib.get_close_matches(flag(name), known, 1)
    return f"generate has no option {flag(name)}: " + (f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}")


def _wrong_option(first: Any) -> str:
    """Return the line for the first of pydantic's errors: a missing option, or what a value must be."""
    option = flag(str(first["loc"][0] if first["loc"] else ""))
    if first["type"] == "missing":
        return f"generate needs {option}=..."
    wanted = one_line(first["msg"]).replace("Input should be ", "").replace("Value error, ", "")
    return f"generate: {option} must be {wanted}, got {first['input']!r}"
