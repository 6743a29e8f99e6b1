"""What `plait export` does: write a checkpoint as a directory that other software loads.

The layouts (formats such as `hf`, for transformers) are those of the model family (`families/<name>/export.py`).
"""

import difflib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path

from plait.assembly import exported, saved
from plait.assembly.adapters import peft_directory
from plait.assembly.model import ModelBundle
from plait.config.schema import RunConfig
from plait.config.sections.adapters import LAYOUT
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from plait.families import offers

log = logging.getLogger(__name__)


def export(spec: str | Path, out: Path, to: str | None = None, *, averaged: bool = True, length: float | None = None) -> None:
    """Write the checkpoint that `spec` names (RUN, RUN@STEP, ...) into the new directory `out`, in the layout `to`, such as "hf".

    `to` None: the family's first. `averaged`: use the EMA weights if there are any; `length`: use a post-hoc average of this length (a
    share of the run) instead. Raises PlaitError for a family without that layout, if `out` exists, and if there is
    no such checkpoint.
    """
    if out.exists():
        raise PlaitError(f"{out} exists already: export to a new directory, or remove it")
    located = saved.locate(spec)
    config, checkpoint = located.config, located.checkpoint
    family = config.family
    publisher = offers.publisher(family)
    if to == LAYOUT and not config.adapters:
        raise PlaitError(f"--to {LAYOUT}: the run has no adapters: {checkpoint.folder}")
    if publisher is None and to != LAYOUT:
        raise PlaitError(
            f"family {family!r} has no layout that other software reads; `plait ckpt consolidate` writes its weights as safetensors"
        )
    known = [*(publisher.exports if publisher is not None else ()), *([LAYOUT] if config.adapters else [])]
    to = known[0] if to is None else to
    if to not in known:
        near = difflib.get_close_matches(to, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise PlaitError(f"--to {to!r} is no layout of family {family!r}: {hint}")
    with distributed.join() as ranks:
        bundle = saved.open_checkpoint(located, ranks, averaged=averaged, length=length)
        if ranks.first:
            for line in _write(bundle, config, set(checkpoint.manifest["state"]["trained"]), to, out):
                log.info(line)
            which = "averaged weights" if averaged and checkpoint.tensors("ema") else "last weights"
            which = which if length is None else f"weights averaged over a length of {length}"
            log.info(f"{checkpoint.folder}, {which}, as {to}: written to {out}")


def _write(bundle: ModelBundle, config: RunConfig, trained: set[str], to: str, out: Path) -> Iterator[str]:
    """Write a model in the layout `to`, and plait.json beside it; yield lines on it. `trained`: names of the parameters that ever were."""
    left_out: list[str] = []
    if to == LAYOUT and bundle.adapters is not None:
        yield from peft_directory.write(bundle.adapters, trained, bundle.family.base(bundle.section), out)
        left_out = [name for name, own in bundle.component_names.items() if trained.intersection(own) - bundle.adapters.names]
    else:
        bundle, config, trained = exported.merged(bundle, config, trained)
        publisher = offers.publisher(config.family)
        assert publisher is not None, "looked at before"
        write = publisher.exports[to]
        more = {"run": saved.settings(config)} if "run" in inspect.signature(write).parameters else {}
        yield from write(bundle.model, bundle.section, bundle.assets, out, **more)
        told = exported.settings(out, bundle, config, trained)
        saved.write_model_settings(out, told)
        left_out = told["left_out"]
    if left_out:
        log.warning(f"{to} leaves out what the run trained of {', '.join(left_out)}: another layout may hold it")
