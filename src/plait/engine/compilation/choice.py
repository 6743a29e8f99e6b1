"""The choice of `distributed.compile: auto`: whether the blocks of a stage (part of a run) are compiled on this machine."""

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.engine.parallel.distributed import Ranks

log = logging.getLogger(__name__)

_OLDEST_GPU = (7, 0)
"""The compute capability from which Triton makes kernels."""


def decide(view: StageView, ranks: Ranks, saved: Mapping[str, Any] | None) -> StageView:
    """Return the stage `view` with `distributed.compile` true or false in place of auto, which is logged; else as it is.

    The same on all ranks, which all call it: none compiles where one cannot. `saved`: the manifest of the checkpoint that the run continues
    from, or None; where the stage changes between compiled and not in its course, that is logged too.
    """
    if view.config.distributed.compile != "auto":
        return view
    reasons = [reason for reason in ranks.gather(why_not(view.config, ranks.device)) if reason is not None]
    compiled = not reasons
    told = "blocks are compiled" if compiled else f"blocks are not compiled, as {reasons[0]}"
    log.info(f"distributed.compile is auto: {told}")
    of_this_stage = saved is not None and saved["state"]["stage"] == view.index and saved["state"]["stage_done"] is None
    if saved is not None and of_this_stage and saved.get("compiled", compiled) != compiled:
        then, now = ("plain", "compiled") if compiled else ("compiled", "plain")
        log.warning(
            f"blocks were {then} up to step {saved['state']['step']} and are {now} from here on: figures differ in their last digits; "
            f"distributed.compile={str(not compiled).lower()} goes on as before"
        )
    return replace(view, config=with_compile(view.config, compiled))


def with_compile(config: RunConfig, compiled: bool) -> RunConfig:
    """Return the settings with `distributed.compile` set."""
    return config.model_copy(update={"distributed": config.distributed.model_copy(update={"compile": compiled})})


def why_not(config: RunConfig, device: torch.device) -> str | None:
    """Return why the blocks of a stage with these settings are better not compiled on `device`; None if they are to be."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_GPU:
        return f"the GPU has compute capability {'.'.join(map(str, capability))}, and Triton needs 7.0"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    compiler = os.environ.get("CC") or "gcc"
    if not any(map(shutil.which, [compiler] if "CC" in os.environ else ["gcc", "clang"])):
        return f"there is no C compiler: {compiler} is not found (install gcc, or set CC)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        return f"Triton needs {header} to compile, which is not there (install python{sysconfig.get_python_version()}-dev)"
    return None
