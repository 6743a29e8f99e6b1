"""What `plait export` does: write a checkpoint as a directory that other software loads.

The layouts (formats such as `hf`, for transformers) are those of the model family (`families/<name>/export.py`).
"""

import difflib
import inspect
import logging
from pathlib import Path

from plait.assembly import exported, saved
from plait.assembly.adapters import peft_directory
from plait.assembly.model import ModelBundle
from plait.commands.actions.export_check import check
from plait.commands.actions.passport import write
from plait.config.schema import RunConfig
from plait.config.sections.adapters import LAYOUT
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from plait.families import offers
from plait.families.module_contracts import Check

log = logging.getLogger(__name__)


def export(
    spec: str | Path,
    out: Path,
    to: str | None = None,
    *,
    averaged: bool = True,
    length: float | None = None,
    library: str | None = None,
    trust: bool = False,
    kept: bool = True,
) -> None:
    """Write the checkpoint that `spec` names (RUN, RUN@STEP, ...) into the new directory `out`, in the layout `to`, such as "hf".

    `to` None: the family's first. `averaged`: use the EMA weights if there are any; `length`: use a post-hoc average of this length (a
    share of the run) instead. `library`: load the export with it in a process of its own, and compare; `out` has its name only where they
    are equal, and is not written again if it exists. `trust`: run the code in it, where its layout is loaded by that. `kept`: whether `out`
    stays, and is told. Raises PlaitError for a family without that layout, if `out` exists, if there is no such checkpoint, and for an
    export that is not the model.
    """
    if out.exists() and library is None:
        raise PlaitError(f"{out} exists already: export to a new directory, or remove it")
    if trust and library is None:
        raise PlaitError("--trust-remote-code goes with --check, which runs the code of an export: add that, or leave it out")
    located = saved.locate(spec)
    config, trained = located.config, set(located.checkpoint.manifest["state"]["trained"])
    to = _layout(located, to)
    wanted = None if library is None else _check_of(config.family, to, library, trust)
    folder = out if library is None or out.exists() else out.with_name(f"{out.name}.unchecked")
    if folder != out and folder.exists():
        raise PlaitError(f"{folder} exists already, an export that was not equal to its run: look at it, and remove it")
    with distributed.join() as ranks:
        bundle = saved.open_checkpoint(located, ranks, averaged=averaged, length=length)
        if not ranks.first:
            return
        if to != LAYOUT:
            bundle, config, trained = exported.merged(bundle, config, trained)
        which = "averaged weights" if averaged and located.checkpoint.tensors("ema") else "last weights"
        which = which if length is None else f"weights averaged over a length of {length}"
        if not folder.exists():
            write_model(bundle, config, trained, to, folder)
            digest = write.of_folder(located, folder, kind="export", layout=to, weights=which)
            log.info(f"passport {digest}")
        if library is not None:
            log.info(f"loading {folder} with {library}, in a process of its own")
            for line in _checked(bundle, config, trained, folder, wanted):
                log.info(line)
        if folder != out:
            folder.rename(out)
        verdict = "written to" if library is None or folder != out else "equal to"
        if kept:
            log.info(f"{located.checkpoint.folder}, {which}, as {to}: {verdict} {out}")


def _layout(located: saved.SavedModel, to: str | None) -> str:
    """Return the name of the layout asked for, None: the first that there is. Raises PlaitError where the run has no such layout."""
    family, adapters = located.config.family, located.config.adapters
    publisher = offers.publisher(family)
    if to == LAYOUT and not adapters:
        raise PlaitError(f"--to {LAYOUT}: the run has no adapters: {located.checkpoint.folder}")
    if publisher is None and to != LAYOUT:
        raise PlaitError(
            f"family {family!r} has no layout that other software reads; `plait ckpt consolidate` writes its weights as safetensors"
        )
    known = [*(publisher.exports if publisher is not None else ()), *([LAYOUT] if adapters else [])]
    to = known[0] if to is None else to
    if to not in known:
        near = difflib.get_close_matches(to, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise PlaitError(f"--to {to!r} is no layout of family {family!r}: {hint}")
    return to


def _checked(bundle: ModelBundle, config: RunConfig, trained: set[str], folder: Path, wanted: Check | None) -> list[str]:
    """Return lines on how equal an export is to the model; `wanted` None: of adapters alone. Raises PlaitError where it is not."""
    if wanted is not None:
        return check.check(bundle, config, folder, wanted)
    assert bundle.adapters is not None, "looked at before"
    return check.check_adapters(bundle.adapters, trained, folder)


def _check_of(family: str, to: str, library: str, trust: bool) -> Check | None:
    """Return how the layout `to` is checked, None for adapters alone.

    Raises PlaitError where `library` does not load it, or only with `trust` in its code.
    """
    if to == LAYOUT and library == "peft" and not trust:
        return None
    publisher = offers.publisher(family)
    checks = {} if publisher is None else offers.export_checks(publisher)
    if to not in checks or checks[to].library != library:
        fits = [f"--to {name} --check {check.library}" for name, check in checks.items()] + [f"--to {LAYOUT} --check peft"]
        reason = f"that is loaded by {checks[to].library}" if to in checks else "that no check loads"
        raise PlaitError(f"--check {library}: {to} is a layout of family {family!r} {reason}; known: {', '.join(fits)}")
    if checks[to].trust and not trust:
        raise PlaitError(f"--check {library}: an export --to {to} is loaded by the code in it: add --trust-remote-code to have that run")
    if trust and not checks[to].trust:
        raise PlaitError(f"--check {library}: an export --to {to} has no code: leave --trust-remote-code out")
    return checks[to]


def write_model(bundle: ModelBundle, config: RunConfig, trained: set[str], to: str, out: Path) -> None:
    """Write a model in the layout `to`, and plait.json beside it. `trained`: names of the parameters that ever were."""
    if to == LAYOUT and bundle.adapters is not None:
        lines = peft_directory.write(bundle.adapters, trained, bundle.family.base(bundle.section), out)
        left_out = [name for name, own in bundle.component_names.items() if trained.intersection(own) - bundle.adapters.names]
    else:
        publisher = offers.publisher(config.family)
        assert publisher is not None, "looked at before"
        write = publisher.exports[to]
        more = {"run": saved.settings(config)} if "run" in inspect.signature(write).parameters else {}
        lines = write(bundle.model, bundle.section, bundle.assets, out, **more)
        told = exported.settings(out, bundle, config, trained)
        saved.write_model_settings(out, told)
        left_out = told["left_out"]
    for line in lines:
        log.info(line)
    if left_out:
        log.warning(f"{to} leaves out what the run trained of {', '.join(left_out)}: another layout may hold it")
