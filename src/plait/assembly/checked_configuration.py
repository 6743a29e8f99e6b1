"""Read a configuration, or that of a run directory, for a command: with the mixtures that it names."""

from collections.abc import Sequence
from pathlib import Path

from plait.assembly.configuration import open_config
from plait.assembly.run_configuration import open_run_config
from plait.config import mixture
from plait.config.nodes import Node
from plait.config.resolved import Resolved
from plait.data.sources.open import KINDS
from plait.families import offers


def open_checked(path: Path | Node, overrides: Sequence[str] = (), *, words: Sequence[str] = (), compared: bool = False) -> Resolved:
    """Read a configuration, or that of the run directory `path`, and also check the mixtures (lists of weighted data sets) it names.

    `path`: a file, a run directory, or the mapping itself as a node, whose paths of data are relative to the working directory.
    `overrides`: settings that replace the file's, as "optim.lr=1e-4". `words`: arguments of another trainer's launch script, where `path`
    is one. `compared`: give no warning of a run's configuration that was edited, as a start compares it later. Opens no data. Raises
    PlaitError for any fault of the configuration or a mixture.
    """
    if isinstance(path, Node):
        resolved = open_config(path, overrides, data_base=Path.cwd(), trials=True)
    elif path.is_dir():
        resolved = open_run_config(path, [f"run={path}", *overrides], compared=compared)
    else:
        resolved = open_config(path, overrides, words=words, trials=True)
    for data in (view.config.data for view in resolved.stages):
        if data.mixture is not None:
            mixture.read(offers.mixture(resolved.config.family, data.mixture), data.without, KINDS)
    return resolved
