"""The GUI grounding data of AndroidControl: episodes (one task on a phone) of screenshots and actions, in TFRecords.

Rows are dicts, one per step. An opener is a function that reads the rows of one split; it raises Absent where the files are missing.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data.formats import index, tfrecords
from plait.data.sources.contract import Absent
from plait.errors import BadSample, PlaitError
from plait.families.molmo.points import percent
from plait.families.published_openers import read_json
from plait.families.published_rows import PICTURES, DatasetFiles, Opener, Row, Rows


def android_control(split: str) -> Opener:
    """Return an opener (DatasetFiles -> Rows) of a split of AndroidControl: TFRecord files `android_control-*`, ids in `splits.json`.

    `split`: a key of that file, whose episodes are read; for any other name those of "val". The opener raises Absent if there are no such
    files.
    """

    def opened(files: DatasetFiles) -> Rows:
        (splits,) = files.find("splits.json")
        records = [file for file in sorted(files.folder.glob("android_control-*")) if file.suffix != ".idx"]
        if not records:
            raise Absent(f"no android_control-* in {files.folder}")
        known = read_json(splits)
        name = split if split in known else "val"
        return AndroidControlSteps(records, set(known[name]), files.cache)

    return opened


class AndroidControlSteps:
    """Rows of AndroidControl, one per step: `id`, `goal`, the step's `instruction`, the `action` that people took, and the screenshot.

    An action is a dict with `action_type`. `files`: TFRecords; `episodes`: ids of those to read. Raises PlaitError if there is none of
    them. `cache`: folder of index files; None: the user's.
    """

    def __init__(self, files: Sequence[Path], episodes: set[int], cache: str | None) -> None:
        heads = [index.obtain(file, cache, lambda file=file: _scan(file))[0] for file in files]  # type: ignore[misc]
        self.steps: list[tuple[Path, int, int, int]] = []
        for file, head in zip(files, heads, strict=True):
            arrays = index.map_arrays(head)
            for start, end, episode, steps in zip(*(arrays[name].tolist() for name in ("start", "end", "episode", "steps")), strict=True):
                self.steps += [(file, start, end, step) for step in range(steps)] if episode in episodes else []
        if not self.steps:
            raise PlaitError(f"no episode of this split is in {files[0].parent}")
        self.digest = xxhash.xxh3_64("".join(head.xxh3 for head in heads).encode() + str(len(self.steps)).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, i: int) -> Row:
        file, start, end, step = self.steps[i]
        with file.open("rb") as opened:
            episode: Any = tfrecords.read(opened, start, end)
        return {
            "id": f"{episode['episode_id'][0]}-{step}",
            "goal": episode["goal"][0].decode(),
            "instruction": episode["step_instructions"][step].decode(),
            "action": json.loads(episode["actions"][step]),
            PICTURES: [episode["screenshots"][step]],
        }

    def column(self, name: str) -> list[Any]:
        """Return a different number for every row, for any `name`, because rows are grouped by image and no two share a screenshot."""
        return list(range(len(self)))


def _scan(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with file.open("rb") as opened:
        rows = [_episode(start, end, tfrecords.read(opened, start, end)) for start, end in tfrecords.spans(file)]
    names = ("start", "end", "episode", "steps")
    return {"samples": len(rows)}, {name: np.array([row[k] for row in rows], np.int64) for k, name in enumerate(names)}


def _episode(start: int, end: int, features: dict[str, Any]) -> tuple[int, int, int, int]:
    return start, end, features["episode_id"][0], len(features["actions"])


def action_text(action: dict[str, Any], size: tuple[int, int]) -> str:
    """Return an action as text, such as "click 50.0 12.5" (percent of the screen), "input_text hello" or "scroll down".

    `action`: a dict as the dataset has it, {"action_type": "click", "x": 10, "y": 20}. `size`: width and height of the screen in
    pixels. Raises BadSample for an action without a type.
    """
    kind = action.get("action_type")
    if kind in ("click", "long_press"):
        x, y = percent(action["x"], action["y"], *size)
        return f"{kind} {min(max(x, 0.0), 100.0):.1f} {min(max(y, 0.0), 100.0):.1f}"
    for name in ("text", "app_name", "direction"):
        if name in action:
            return f"{kind} {action[name]}"
    if not isinstance(kind, str):
        raise BadSample(f"an action without a type: {str(action)[:60]}")
    return kind
