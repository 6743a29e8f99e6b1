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
from plait.data.download.outcomes import SAVED, Outcome, was_answered
from plait.data.download.picture_files import PictureFiles
from plait.data.formats import tar_writing
from plait.errors import PlaitError

REQUEST = "download.json"
WORK = ".download"
"""The folder of journals, below the folder of shards."""
FORMAT = 1


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
        try:
            told = json.loads(self.counts.read_bytes())
            start, stop = map(int, told["rows"])
            if sum(map(int, told["outcomes"].values())) != stop - start or int(told["bytes"]) < 0:
                raise ValueError("its numbers")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            cure = "delete it, and the same command fetches its rows anew"
            raise PlaitError(f"{self.counts} is damaged, or no file of `plait data download` ({type(error).__name__}): {cure}") from error
        if start != self.rows.start or stop > self.rows.stop:
            raise PlaitError(f"{self.counts} is of the rows {told['rows']}, not {[self.rows.start, self.rows.stop]}: give another folder")
        return dict(told)

    def told(self) -> list[Outcome]:
        """Return the outcomes of a finished shard. Raises PlaitError if its manifest is damaged."""
        try:
            rows = [Outcome.of_plain(json.loads(line)) for line in self.manifest.read_bytes().split(b"\n")[:-1]]
            if [outcome.row for outcome in rows] != list(range(self.rows.start, self.rows.start + len(rows))):
                raise ValueError("its rows")
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            cure = f"delete {self.counts.name}, and the same command fetches its rows anew"
            raise PlaitError(f"{self.manifest} is missing or damaged ({type(error).__name__}): {cure}") from error
        return rows

    def some_answered(self, most: int) -> list[str]:
        """Return the addresses of the last few rows of a finished shard that a server answered."""
        return [str(outcome.url) for outcome in self.told() if was_answered(outcome.status)][-most:]

    def seal(self, links: Sequence[Link], journal: Journal, pictures: PictureFiles | None) -> dict[str, Any]:
        """Write the shard of a journal that has all its rows, then manifest and counts, each whole, and delete the journal.

        `links`: its rows; `pictures`: writes them as files in place of a shard. Returns what 000012.json holds.
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
            "tar_bytes": self.tar.stat().st_size if saved and pictures is None else 0,
        }
        files.write_json(self.counts, counts)
        journal.close(remove=True)
        return counts


def _members(link: Link, journal: Journal) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of a row's files: picture, caption if it has one, and its columns with the picture's facts."""
    key, picture = f"{link.row:09d}", journal.outcomes[link.row].picture
    own = {"key": key, "url": link.url, **({"caption": link.caption} if link.caption else {}), **picture}
    others: dict[str, Any] = {}
    for name, value in link.fields.items():
        if name in own and value == own[name]:
            continue
        kept = f"list_{name}" if name in own or name == "caption" else name
        while kept != name and (kept in own or kept in link.fields or kept in others):
            kept = f"list_{kept}"
        others[kept] = value
    told = json.dumps({**own, **others}, ensure_ascii=False).encode(errors="backslashreplace")
    caption = [(f"{key}.txt", link.caption.encode(errors="backslashreplace"))] if link.caption else []
    return [(f"{key}.{picture['kind']}", journal.body(link.row)), *caption, (f"{key}.json", told)]


def begin(out: Path, request: Mapping[str, Any]) -> None:
    """Write down what is asked for. Raises PlaitError if the folder holds a download of another list, of more rows, or of other limits."""
    path = out / REQUEST
    wanted = json.loads(json.dumps({"format": FORMAT, **request}))
    if not path.is_file():
        foreign = min((there.name for there in out.iterdir() if not there.name.startswith(".")), default="") if out.is_dir() else ""
        if foreign:
            raise PlaitError(f"{out} holds {foreign!r} and no {REQUEST}, so it is no download: give a new folder, or an empty one")
        (out / WORK).mkdir(parents=True, exist_ok=True)
        files.write_json(path, wanted)
        return
    before = _begun(path)
    if before["list"].get("digest") == wanted["list"]["digest"]:  # one list may have several names, as ./a.csv and a.csv
        wanted["list"]["name"] = before["list"].get("name")
    (out / WORK).mkdir(exist_ok=True)
    if before == wanted:
        return
    held_list = before["list"]
    if held_list["rows"] < wanted["list"]["rows"]:  # more of the same list
        before["list"] = {**held_list, "rows": wanted["list"]["rows"]}
    other = next((name for name in wanted if before.get(name) != wanted[name]), None)
    if other is not None:
        held = held_list if other == "list" else before.get(other)
        raise PlaitError(f"{out} holds a download with {other} {held}, not {wanted[other]}: give the same, or another folder")
    files.write_json(path, wanted)


def _begun(path: Path) -> dict[str, Any]:
    """Return what download.json asks for. Raises PlaitError for one that is damaged or of another program."""
    try:
        before = json.loads(path.read_bytes())
        if not isinstance(before["list"]["rows"], int) or not isinstance(before["format"], int):
            raise TypeError("no number of rows")
    except (ValueError, KeyError, TypeError) as error:
        raise PlaitError(f"{path} is damaged, or no file of `plait data download` ({type(error).__name__}): give another folder") from error
    return dict(before)
