"""What `plait export` does: write a checkpoint as a directory that other software loads.

The layouts (formats such as `hf`, for transformers) are those of the model family (`families/<name>/export.py`).
"""

import difflib
import inspect
import logging
from pathlib import Path

from plait.assembly import exported, saved
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
    if publisher is None:
        raise PlaitError(
            f"family {family!r} has no layout that other software reads; `plait ckpt consolidate` writes its weights as safetensors"
        )
    to = next(iter(publisher.exports)) if to is None else to
    if to not in publisher.exports:
        near = difflib.get_close_matches(to, publisher.exports, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(publisher.exports)}"
        raise PlaitError(f"--to {to!r} is no layout of family {family!r}: {hint}")
    with distributed.join() as ranks:
        bundle = saved.open_checkpoint(located, ranks, averaged=averaged, length=length)
        if ranks.first:
            write = publisher.exports[to]
            more = {"run": saved.settings(config)} if "run" in inspect.signature(write).parameters else {}
            for line in write(bundle.model, bundle.section, bundle.assets, out, **more):
                log.info(line)
            told = exported.settings(out, bundle, config, set(checkpoint.manifest["state"]["trained"]))
            saved.write_model_settings(out, told)
            if told["left_out"]:
                log.warning(f"{to} leaves out what the run trained of {', '.join(told['left_out'])}: another layout may hold it")
            which = "averaged weights" if averaged and checkpoint.tensors("ema") else "last weights"
            which = which if length is None else f"weights averaged over a length of {length}"
            log.info(f"{checkpoint.folder}, {which}, as {to}: written to {out}")
