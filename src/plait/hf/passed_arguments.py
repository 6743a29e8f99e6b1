"""Check arguments that are passed on to transformers, which would take wrong ones and fail later, or with a traceback."""

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import trainer_log_levels

from plait import files
from plait.config.messages import NUMBER, PLACE, SWITCH, TEXT, WHOLE, Wanted, check_arguments, optional, with_type
from plait.config.sections.places import on_disk
from plait.errors import PlaitError

_WANTED = {bool: SWITCH, int: WHOLE, float: NUMBER, str: TEXT}
_ABOVE_0 = {
    "per_device_eval_batch_size": "",
    "logging_steps": ': logging_strategy="no" logs none',
    "save_steps": ': save_strategy="no" saves none',
    "eval_steps": ': eval_strategy="no" measures none',
}
"""Arguments that are to be above 0, with what to say in place of 0."""
_REPORTS = ("all", "none")


def check(args: Mapping[str, Any]) -> None:
    """Raise PlaitError for the first of `args` that has another type than its field of TrainingArguments, or a value out of range."""
    wanted = {field.name: _wanted(field) for field in dataclasses.fields(TrainingArguments)}
    for name, value in args.items():
        if (kinds := wanted[name]) is not None:
            check_arguments("args", **{name: (value, kinds)})
        if name in _ABOVE_0 and value is not None and value <= 0:
            raise PlaitError(f"args: {name} is to be above 0, and is {value}{_ABOVE_0[name]}")
        if name in ("log_level", "log_level_replica") and value not in trainer_log_levels:
            raise PlaitError(f"args: {name} {value!r} is unknown: known: {', '.join(trainer_log_levels)}")
    if "report_to" in args:
        _check_reports(args["report_to"])


def _wanted(field: "dataclasses.Field[Any]") -> Wanted | None:
    """Return what a field wants, by its type; None where that is no plain one."""
    if field.name == "output_dir":
        return optional(PLACE)
    kinds = typing.get_args(field.type) or (field.type,)
    plain = [kind for kind in kinds if kind is not type(None)]
    if len(plain) != 1 or plain[0] not in _WANTED:
        return None
    found = _WANTED[plain[0]]
    return found if len(plain) == len(kinds) else optional(found)


def _check_reports(given: Any) -> None:
    """Raise PlaitError for a place of logs that transformers does not know, or whose package is missing."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise PlaitError(f'args: report_to is to be a name, a list of names, "all" or "none", and is {with_type(given)}')
    known, alone = tuple(INTEGRATION_TO_CALLBACK), isinstance(given, str) or len(names) == 1
    for name in names:
        if name in _REPORTS and alone:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise PlaitError(f"args: report_to {name!r} is unknown: {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(known)}")
        if name not in get_available_reporting_integrations():
            try:
                INTEGRATION_TO_CALLBACK[name]()
            except (RuntimeError, ImportError) as error:
                raise PlaitError(f"args: report_to: {(str(error).splitlines() or [name])[0]}") from error


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise PlaitError for the first that is neither a TrainerCallback of transformers nor a class of such."""
    for callback in callbacks:
        if not isinstance(callback, TrainerCallback) and not (isinstance(callback, type) and issubclass(callback, TrainerCallback)):
            raise PlaitError(
                f"plait.hf.trainer: `callbacks` are to be TrainerCallbacks of transformers, and one of them is {with_type(callback)}"
            )


def output_folder(given: Any) -> Path:
    """Return `output_dir`, made if it is not there. Raises PlaitError for an address, for what is no folder, and where none can be made."""
    try:
        folder = files.expanded(on_disk(str(given)))
    except ValueError as error:
        raise PlaitError(f"args: output_dir: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlaitError(f"args: output_dir {given} cannot be made a folder ({error.strerror}): give another one") from error
    if not os.access(folder, os.W_OK):
        raise PlaitError(f"args: output_dir {given} cannot be written to: give another folder, or change its permissions")
    return folder
