"""Two sets with layouts of their own: AI2D (a JSON file per diagram) and AndroidControl (episodes of screenshots in TFRecords)."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data.formats import index, tfrecords
from plait.data.sources.contract import Absent
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue.rows import PICTURES, Listed, Opener, Place, Row, Rows, read_json
from plait.families.molmo.points import percent


def diagrams(split: str) -> Opener:
    """AI2D: `questions/NAME.json`, `images/NAME` (`abc_images/NAME` where options are letters), ids of the test set in a CSV."""

    def opened(place: Place) -> Rows:
        (ids,) = place.files("ai2d_test_ids.csv")
        files = sorted((place.folder / "questions").glob("*.json"))
        if not files:
            raise Absent(f"no questions/*.json in {place.folder}")
        test = {row[0].strip() for row in csv.reader(ids.read_text(encoding="utf-8").splitlines()) if row}
        mine = [file for file in files if (file.name.partition(".")[0] in test) == (split == "test")]
        return Listed([row for file in mine for row in _of_diagram(place, read_json(file))], [ids])

    return opened


def _of_diagram(place: Place, found: dict[str, Any]) -> list[Row]:
    name = found["imageName"]
    rows = []
    for text, one in found["questions"].items():
        lettered = bool(one["abcLabel"])
        folder = "abc_images" if lettered and (place.folder / "abc_images").is_dir() else "images"
        told = {"question": text, "options": one["answerTexts"], "answer": one["correctAnswer"], "abcLabel": lettered}
        rows.append({"id": one["questionId"], "picture": f"{folder}/{name}", **told})
    return rows


def screens(split: str) -> Opener:
    """AndroidControl's steps: TFRecord files named `android_control-*`, and `splits.json` with the episode ids of each split."""

    def opened(place: Place) -> Rows:
        (splits,) = place.files("splits.json")
        files = [file for file in sorted(place.folder.glob("android_control-*")) if file.suffix != ".idx"]
        if not files:
            raise Absent(f"no android_control-* in {place.folder}")
        known = read_json(splits)
        name = split if split in known else "val"
        return Screens(files, set(known[name]), place.cache)

    return opened


class Screens:
    """Steps of episodes: the screen, the goal, the step's instruction, and the action that people took."""

    def __init__(self, files: Sequence[Path], episodes: set[int], cache: str | None) -> None:
        heads = [index.obtain(file, cache, lambda file=file: _scan(file))[0] for file in files]  # type: ignore[misc]
        self.places: list[tuple[Path, int, int, int]] = []
        for file, head in zip(files, heads, strict=True):
            arrays = index.map_arrays(head)
            for start, end, episode, steps in zip(*(arrays[name].tolist() for name in ("start", "end", "episode", "steps")), strict=True):
                self.places += [(file, start, end, step) for step in range(steps)] if episode in episodes else []
        if not self.places:
            raise PlaitError(f"no episode of this split is in {files[0].parent}")
        self.digest = xxhash.xxh3_64("".join(head.xxh3 for head in heads).encode() + str(len(self.places)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Row:
        file, start, end, step = self.places[i]
        with open(file, "rb") as opened:
            found: Any = tfrecords.read(opened, start, end)
        return {
            "id": f"{found['episode_id'][0]}-{step}",
            "goal": found["goal"][0].decode(),
            "instruction": found["step_instructions"][step].decode(),
            "action": json.loads(found["actions"][step]),
            PICTURES: [found["screenshots"][step]],
        }

    def column(self, name: str) -> list[Any]:
        """Screens are all different: there is nothing to group them by."""
        return list(range(len(self)))


def _scan(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with open(file, "rb") as opened:
        rows = [_episode(start, end, tfrecords.read(opened, start, end)) for start, end in tfrecords.spans(file)]
    names = ("start", "end", "episode", "steps")
    return {"samples": len(rows)}, {name: np.array([row[k] for row in rows], np.int64) for k, name in enumerate(names)}


def _episode(start: int, end: int, found: dict[str, Any]) -> tuple[int, int, int, int]:
    return start, end, found["episode_id"][0], len(found["actions"])


def action(told: dict[str, Any], size: tuple[int, int]) -> str:
    """An action as text: its name, then the place in percent or what is typed, opened or scrolled."""
    kind = told.get("action_type")
    if kind in ("click", "long_press"):
        x, y = percent(told["x"], told["y"], *size)
        return f"{kind} {min(max(x, 0.0), 100.0):.1f} {min(max(y, 0.0), 100.0):.1f}"
    for name in ("text", "app_name", "direction"):
        if name in told:
            return f"{kind} {told[name]}"
    if not isinstance(kind, str):
        raise BadSample(f"an action without a type: {str(told)[:60]}")
    return kind
