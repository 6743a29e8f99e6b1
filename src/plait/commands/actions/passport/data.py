"""Open the data of a run again, and compare its fingerprints with those that a passport claims."""

from collections.abc import Iterator
from pathlib import Path

from plait.assembly.data import open_training
from plait.assembly.run_configuration import open_of_checkpoint
from plait.commands.actions.passport import seal
from plait.commands.actions.passport.claims import Claims, short_names
from plait.errors import PlaitError


def faults(claims: Claims, run: Path) -> Iterator[str]:
    """Yield a line for each source of a stage that is another now, or is not there. `run`: whose settings say where the data is."""
    assert claims.checkpoint.folder is not None, "looked at before"
    resolved = open_of_checkpoint(run, run / claims.checkpoint.folder)
    opened: list[tuple[object, dict[str, str] | PlaitError]] = []
    for stage in claims.stages:
        if stage.data is None:
            continue
        if stage.number > len(resolved.stages):
            yield f"stage {stage.number} is not in the settings of {run}"
            continue
        config = resolved.stages[stage.number - 1].config
        now = next((told for data, told in opened if data == config.data), None)
        if now is None:
            try:
                now = short_names(open_training(config).fingerprints())
            except PlaitError as error:
                now = error
            opened.append((config.data, now))
        if isinstance(now, PlaitError):
            yield f"the data of stage {stage.name} cannot be opened: {now}"
        else:
            yield from seal.differences(stage.data, now, f"data of stage {stage.name}:")
