"""The file of `plait data dedup`: which samples of which data are copies of others. A filter reads it: `filter: {dedup: FILE}`.

JSON lines: the first says of what data it is and how copies were found, each other one is a copy and what it is a copy of.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plait.data import paths
from plait.errors import PlaitError, command
from plait.files import write_whole

FORMAT = 1


def write(path: Path, header: Mapping[str, Any], copies: Sequence[Mapping[str, Any]]) -> None:
    """Write the file, whole or not at all. `header`: its `sources`, each with `name`, `fingerprint` and `samples`; and settings.

    `copies`: each with `source` and `index`, numbers of its source and sample, and the same below `of`.
    """
    lines = [json.dumps({"plait_dedup": FORMAT, **header}, ensure_ascii=False), *(json.dumps(row, ensure_ascii=False) for row in copies)]
    write_whole(path, "\n".join(lines) + "\n")


def is_one(path: Path) -> bool:
    """Return whether there is a file of `plait data dedup` at `path`, of any format."""
    try:
        with path.open(encoding="utf-8") as file:
            return "plait_dedup" in json.loads(file.readline())
    except (OSError, ValueError, TypeError):
        return False


def copied(file: str, fingerprint: str) -> np.ndarray:
    """Return the indices of the copies in the source with this fingerprint. Raises PlaitError for a file that is none, or of other data."""
    path = paths.local(file)
    advice = f"make it with `{command('data', 'dedup', 'CONFIG', path)}`"
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        header, *rows = (json.loads(line) for line in lines)
        if header["plait_dedup"] != FORMAT:
            raise PlaitError(f"filter.dedup: {path} is of format {header['plait_dedup']}, not {FORMAT}: {advice}")
        known = [source["fingerprint"] for source in header["sources"]]
        numbers = [number for number, other in enumerate(known) if other == fingerprint]
        found = np.array([row["index"] for row in rows if row["source"] in numbers], np.int64)
        names = ", ".join(str(source["name"]) for source in header["sources"])
    except OSError as error:
        raise PlaitError(f"filter.dedup: cannot read {path}: {error.strerror}; {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"filter.dedup: {path} is no file of `plait data dedup` ({type(error).__name__}: {error}); {advice}") from error
    if not numbers:
        raise PlaitError(f"filter.dedup: {path} is of other data ({names}), or its limit, template or columns were others: {advice}")
    return found
