"""What `plait export` does: write a checkpoint as a directory that other software loads.

The layouts (formats such as `hf`, for transformers) are those of the model family (`families/<name>/export.py`).
"""

import difflib
import logging
from pathlib import Path

from plait.assembly import exported, saved
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from plait.families import offers

log = logging.getLogger(__name__)


def export(spec: str | Path, out: Path, to: str, *, averaged: bool = True) -> None:
    """Write the checkpoint that `spec` names (RUN, RUN@STEP, ...) into the new directory `out`, in the layout `to`, such as "hf".

    `averaged`: use the EMA weights if there are any. Raises PlaitError for a family without that layout, if `out` exists, and if there is
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
    if to not in publisher.exports:
        near = difflib.get_close_matches(to, publisher.exports, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(publisher.exports)}"
        raise PlaitError(f"--to {to!r} is no layout of family {family!r}: {hint}")
    with distributed.join() as ranks:
        bundle = saved.open_checkpoint(located, ranks, averaged=averaged)
        if ranks.first:
            for line in publisher.exports[to](bundle.model, bundle.section, bundle.assets, out):
                log.info(line)
            told = exported.settings(out, bundle, config, set(checkpoint.manifest["state"]["trained"]))
            saved.write_model_settings(out, told)
            if told["left_out"]:
                log.warning(f"{to} leaves out what the run trained of {', '.join(told['left_out'])}: another layout may hold it")
            which = "averaged" if averaged and checkpoint.tensors("ema") else "last"
            log.info(f"{checkpoint.folder}, {which} weights, as {to}: written to {out}")
