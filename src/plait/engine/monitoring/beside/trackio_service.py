"""A session of a run in Trackio: a database on this machine, or a Space of the Hub, for tracker_process.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.engine.monitoring.beside.shown import Table, markdown


class Session:
    """A run of Trackio. `start`: arguments of `trackio.init`, whose `name` is that of the run and tells it from all others."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import trackio

        self.trackio = trackio
        trackio.init(**start, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        space = start["space_id"]
        self.where = f"Trackio: https://huggingface.co/spaces/{space}" if space else f"Trackio: trackio show --project {start['project']}"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Send the numbers of a row."""
        self.trackio.log(dict(numbers), step=step)

    def pictures(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Send picture files by name."""
        self.trackio.log({name: self.trackio.Image(str(path)) for name, path in pictures.items()}, step=step)

    def table(self, step: int, name: str, table: Table) -> None:
        """Send a table, as Markdown."""
        self.trackio.log({name: self.trackio.Markdown(markdown(table))}, step=step)

    def finish(self) -> None:
        """Wait until everything is sent."""
        self.trackio.finish()
