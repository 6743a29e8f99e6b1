"""The datasets that family molmo knows by name: opened from the files their authors publish, or from the Hub where that is asked for.

In training, rows about one picture are one sample with several annotations of it, at most MOST of them, drawn anew each time; in every
other split each question is a sample of its own. What a row means is in academic.py and pixmo.py.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from plait.config.schema import Source as Entry
from plait.data import images
from plait.data.sources.open import Absent
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue.academic import ACADEMIC
from plait.families.molmo.catalogue.pixmo import PIXMO, POINTS_EVAL
from plait.families.molmo.catalogue.rows import PICTURES, Place, Rows, Spec, root_of
from plait.keys import key, rng

DATA_DIR = "MOLMO_DATA_DIR"
"""The environment variable that names the folder of datasets where `data.root` does not: the one the Molmo guide sets."""

MOST = 24  # annotations of one picture in one sample
DATASETS: dict[str, Spec] = {**ACADEMIC, **PIXMO}
ALIASES = {
    "ai2_diagram_v2_mix_transparent": "ai2d",
    "chart_qa_weighted": "chart_qa",
    "coco_2014_vqa": "vqa2",
    "coco_2014_vqa_multi": "vqa2",
    "countbench": "countbench_qa",
    "docqa": "doc_qa",
    "infoqa": "info_qa",
    "pixmo_pointing_explanations": "pixmo_point_explanations",
    "pointing_eval": POINTS_EVAL,
    "science_qa_img": "science_qa",
    "tabwmp_da": "tabwmp",
    "textvqa": "text_vqa",
}
"""Names that the training guide and other tools use."""


def spec_of(name: str) -> Spec:
    """The dataset of a name. Raises PlaitError with the nearest one."""
    found = DATASETS.get(ALIASES.get(name, name))
    if found is None:
        near = difflib.get_close_matches(name, [*DATASETS, *ALIASES], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DATASETS)}"
        raise PlaitError(f"dataset {name!r} is unknown: {hint} (your own is named as module:Class or file.py:Class)")
    return found


def rule_of(name: str) -> str:
    """The bench that judges answers of a dataset."""
    rule = spec_of(name).rule
    if rule is None:
        raise PlaitError(f"dataset {name!r} has free answers that no rule judges; use bench `loss` on it, or one of {', '.join(judged())}")
    return rule


def judged() -> list[str]:
    """The datasets whose answers a rule judges."""
    return [name for name, spec in DATASETS.items() if spec.rule is not None]


def exam_split(name: str) -> str:
    """The split a dataset is judged on where none is named: validation, else test."""
    known = spec_of(name).splits
    return next((split for split in ("validation", "test") if split in known), "train")


def split_of(name: str, split: str) -> str:
    """`split` when the dataset has it. Raises PlaitError with those it has."""
    known = spec_of(name).splits
    if split not in known:
        near = difflib.get_close_matches(split, known, 1)
        raise PlaitError(
            f"dataset {name!r} has no split {split!r}: " + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}")
        )
    return split


def open_dataset(entry: Entry, split: str, *, root: Path | None, cache: Path | None) -> "Known":
    """Open the entry's dataset below `root`, else below $MOLMO_DATA_DIR or ./data.

    Raises Absent when its files are not there, with where they were looked for and how to get them.
    """
    name = str(entry.name)
    spec, root = spec_of(name), root or Path(os.environ.get(DATA_DIR) or "data").expanduser()
    split_of(name, split)
    unknown = next((option for option in entry.options if option != "hub"), None)
    if unknown is not None:
        raise PlaitError(f"dataset {name!r} has no option {unknown!r}; it takes hub")
    place = Place(root_of(entry.path, spec.folder, root), root, str(cache) if cache else None, bool(entry.options.get("hub", False)))
    try:
        rows = spec.splits[split](place)
    except Absent as error:
        hint = f"set its `path`, data.root or $MOLMO_DATA_DIR; {_hub_hint(spec)}"
        raise Absent(f"dataset {name} ({split}) is not there: {error}. Get {spec.get}; {hint}") from error
    return Known(name, spec, place, rows, split, entry.limit)


def _hub_hint(spec: Spec) -> str:
    return "options {hub: true} reads it from the Hub" if "parquet" in spec.get else "its files lie in a folder as they are published"


class Known:
    """Samples of one split. `source[i]` is as asked outside training; `draw` takes its randomness from a key."""

    def __init__(self, name: str, spec: Spec, place: Place, rows: Rows, split: str, limit: int | None) -> None:
        self.name, self.spec, self.place, self.rows, self.train = name, spec, place, rows, split == "train"
        column = rows.column(spec.group) if spec.group is not None and (self.train or spec.held_out) else None
        chosen = self._chosen(split, column)
        if not chosen:
            raise PlaitError(f"dataset {name} has no row in split {split}")
        self.members = (_grouped(chosen, column) if self.train and column is not None else [[i] for i in chosen])[:limit]
        self.fingerprint = xxhash.xxh3_64(f"{name} {split} {rows.digest} {len(rows)} {len(self.members)}".encode()).hexdigest()

    def _chosen(self, split: str, column: Sequence[Any] | None) -> list[int]:
        """The rows of the split: without the held-out pictures, or only them; never those of the pointing exam in training."""
        chosen = list(range(len(self.rows)))
        if column is None:
            return chosen
        if self.spec.held_out:
            chosen = [i for i in chosen if (key("held-out", str(column[i])) % 100 == 0) == (split == "validation")]
        exam = _exam(self.place) if self.train and self.spec.folder == "pixmo-points" else frozenset()
        return [i for i in chosen if column[i] not in exam]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.draw(i, key("as asked", i))

    def draw(self, i: int, sample_key: int) -> dict[str, Any]:
        """Sample `i`: its picture, and what is asked about it. BadSample when the picture is not there."""
        random = rng(sample_key, "draw")
        members = self.members[i]
        if len(members) > MOST:
            members = [members[place] for place in random.choice(len(members), MOST, replace=False)]
        rows = [self.rows[member] for member in members]
        pictures = self._pictures(rows[0])
        asked = [one for row in rows for one in self.spec.ask(row, random, lambda: images.size(pictures[0]))]
        first = asked[0]
        name = str(rows[0].get("question_id", rows[0].get("questionId", rows[0].get("id", members[0]))))
        sample = {"id": f"{self.name}/{name}", "images": pictures, "messages": first.messages, "weight": first.weight}
        if len(asked) > 1:
            fields = {"dataset": self.name}
            told = [{"messages": one.messages, "style": one.style, "weight": one.weight} for one in asked]
            return {**sample, "fields": fields, "annotations": told}
        return {**sample, "fields": {"dataset": self.name, "style": first.style, **first.gold}}

    def _pictures(self, row: dict[str, Any]) -> list[bytes]:
        if PICTURES in row:
            return row[PICTURES]
        if self.spec.picture is None:
            raise BadSample(f"{self.name}: a row without a picture")
        return [self.spec.picture(self.place, row).read_bytes()]


def _grouped(chosen: Sequence[int], values: Sequence[Any]) -> list[list[int]]:
    """Rows with the same value together, in the order of their first."""
    found: dict[Any, list[int]] = {}
    for i in chosen:
        found.setdefault(i if values[i] is None else values[i], []).append(i)
    return list(found.values())


def _exam(place: Place) -> frozenset[str]:
    """Addresses of the pictures of PixMo's pointing exam, which training must not see; none where the exam is not at hand."""
    spec = DATASETS[POINTS_EVAL]
    try:
        rows = spec.splits["test"](Place(place.root / spec.folder, place.root, place.cache))
    except Absent:
        return frozenset()
    return frozenset(rows.column("image_url") or ())
