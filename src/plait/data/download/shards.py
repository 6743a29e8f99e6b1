"""The files of a download: tar shards of fixed ranges of rows, manifests beside them, and what was asked for.

    000012.tar     rows 120,000 to 129,999 of the list (of 10,000 each): NAME.jpg, NAME.txt (the caption), NAME.json (all columns), in the
                   order of the list, NAME being the row's number in nine digits; no file where none of them gave a picture
    000012.jsonl   one outcome per row
    000012.json    counts; written last: a shard without it is not finished
    download.json  the list and the limits, which later commands must share

So a set of shards is a function of the list and of what the servers answered; which rows were fetched before a kill makes no difference.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait import files
from plait.data.download.journal import Journal
from plait.data.download.listing import Link
from plait.data.download.outcomes import SAVED, was_answered
from plait.data.download.picture_files import PictureFiles
from plait.data.formats import tar_writing
from plait.errors import PlaitError

REQUEST = "download.json"
WORK = ".download"
"""The folder of journals, below the folder of shards."""
FORMAT = 1
_TAIL_BYTES = 1 << 16


class ShardFiles:
    """The paths of shard `number` in folder `out`. `rows`: the range of its rows in the list."""

    def __init__(self, out: Path, number: int, rows: range) -> None:
        self.number, self.rows = number, rows
        self.tar, self.manifest, self.counts = (out / f"{number:06d}{ending}" for ending in (".tar", ".jsonl", ".json"))
        self.journal = out / WORK / f"{number:06d}.journal"

    def finished(self) -> dict[str, Any] | None:
        """Return what 000012.json holds; None if the shard is not finished. It may be of fewer rows, where a list was read less far.

        Raises PlaitError where its rows are others.
        """
        if not self.counts.is_file():
            return None
        told: dict[str, Any] = json.loads(self.counts.read_bytes())
        if told["rows"][0] != self.rows.start or told["rows"][1] > self.rows.stop:
            raise PlaitError(f"{self.counts} is of the rows {told['rows']}, not {[self.rows.start, self.rows.stop]}: give another folder")
        return told

    def some_answered(self, most: int) -> list[str]:
        """Return the addresses of the last few rows of a finished shard that a server answered."""
        size = self.manifest.stat().st_size
        with self.manifest.open("rb") as file:
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[size > _TAIL_BYTES :]
            rows = [row["url"] for row in map(json.loads, filter(None, lines)) if was_answered(row["status"])]
            if not rows and size > _TAIL_BYTES:
                file.seek(0)
                rows = [row["url"] for row in map(json.loads, file) if was_answered(row["status"])]
        return rows[-most:]

    def seal(self, links: Sequence[Link], journal: Journal, pictures: PictureFiles | None) -> dict[str, Any]:
        """Write the shard of a journal that has all its rows, then manifest and counts, each whole, and delete the journal.

        `links`: its rows; `pictures`: writes them as files in place of a shard. Returns the counts: shard, rows, outcomes, bytes, xxh3.
        Raises OSError where a file cannot be written.
        """
        saved = [link for link in links if journal.outcomes[link.row].status == SAVED]
        if pictures is not None:
            for link in saved:
                if body := journal.body(link.row):  # else it was there already
                    pictures.keep(str(link.url), body)
            pictures.sync()
        elif saved:
            tar_writing.write(self.tar, (member for link in saved for member in _members(link, journal)))
        told = [journal.outcomes[link.row].plain() for link in links]
        files.write_whole(self.manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told))
        counts = {
            "shard": self.number,
            "rows": [self.rows.start, self.rows.stop],
            "outcomes": dict(sorted(Counter(row["status"] for row in told).items())),
            "bytes": sum(row.get("bytes", 0) for row in told),
            "xxh3": files.xxh3(self.tar) if saved and pictures is None else "",
        }
        files.write_json(self.counts, counts)
        journal.close(remove=True)
        return counts


def _members(link: Link, journal: Journal) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of a row's files: picture, caption if it has one, and its columns with the picture's facts."""
    key, picture = f"{link.row:09d}", journal.outcomes[link.row].picture
    own = {"key": key, "url": link.url, **({"caption": link.caption} if link.caption else {}), **picture}
    others = {name: value for name, value in link.fields.items() if value != own.get(name, ...)}
    others = {f"list_{name}" if name in own else name: value for name, value in others.items()}
    told = json.dumps({**own, **others}, ensure_ascii=False).encode(errors="backslashreplace")
    caption = [(f"{key}.txt", link.caption.encode(errors="backslashreplace"))] if link.caption else []
    return [(f"{key}.{picture['kind']}", journal.body(link.row)), *caption, (f"{key}.json", told)]


def begin(out: Path, request: Mapping[str, Any]) -> None:
    """Write down what is asked for. Raises PlaitError if the folder holds a download of another list, of more rows, or of other limits."""
    path = out / REQUEST
    wanted = json.loads(json.dumps({"format": FORMAT, **request}))
    if not path.is_file():
        (out / WORK).mkdir(parents=True, exist_ok=True)
        files.write_json(path, wanted)
        return
    before = json.loads(path.read_bytes())
    (out / WORK).mkdir(exist_ok=True)
    if before == wanted:
        return
    if before.get("list", {}).get("rows", 0) < wanted["list"]["rows"]:  # more of the same list
        before["list"]["rows"] = wanted["list"]["rows"]
    other = next((name for name in wanted if before.get(name) != wanted[name]), None)
    if other is not None:
        held = json.loads(path.read_bytes()).get(other)
        raise PlaitError(f"{out} holds a download with {other} {held}, not {wanted[other]}: give the same, or another folder")
    files.write_json(path, wanted)
