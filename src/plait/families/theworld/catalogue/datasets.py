"""The public benchmarks that family theworld knows by name, opened from their authors' files.

Where the option `hub: true` is set, they are read from the Hub. A row (record) is one sample. How rows are read is in choices.py,
statements.py, regions.py and captions.py; a bench of theworld scores the answers.
"""

from pathlib import Path
from typing import Any

import xxhash

from plait.config.schema import SourceEntry
from plait.data import image_files, text
from plait.data.paths import read_regular
from plait.data.sources.contract import Absent, Source
from plait.errors import BadSample, PlaitError
from plait.families.named_datasets import NamedDatasets
from plait.families.published_rows import PICTURES, DatasetFiles, Row, Rows, Spec, root_of
from plait.families.theworld.catalogue.captions import CAPTIONS
from plait.families.theworld.catalogue.choices import CHOICES
from plait.families.theworld.catalogue.regions import SPATIAL
from plait.families.theworld.catalogue.statements import STATEMENTS
from plait.files import expanded
from plait.keys import rng

DATASETS: dict[str, Spec] = {**CHOICES, **STATEMENTS, **SPATIAL, **CAPTIONS}
"""All datasets by name."""
ALIASES = {
    "vsr": "vsr_random",
    "BLINK": "blink",
    "NLVR": "nlvr",
    "spatial_rgpt_bench": "spatial_rgpt",
    "SpatialRGPT-Bench": "spatial_rgpt",
    "coco": "coco_captions",
}
"""Other names: {alias: name}."""
_KNOWN = NamedDatasets(DATASETS, ALIASES)
rule_of, scored = _KNOWN.rule_of, _KNOWN.scored
evaluation_split, split_of = _KNOWN.evaluation_split, _KNOWN.split_of
_NAMES = ("idx", "question_id", "id")
"""Fields that name a row, the first that it has."""


def open_dataset(entry: SourceEntry, split: str, *, root: Path | None, cache: Path | None) -> "NamedDataset":
    """Open `split` of the dataset that `entry`, an item of `data.train` or `data.validation`, names.

    Its files are below `root`, by default ./data; `cache`: folder of the package `datasets`, by default the user's. Raises PlaitError for
    an unknown name, split or option, and Absent, which says how to get them, if files are missing.
    """
    name = str(entry.name)
    spec, root = _KNOWN.spec_of(name), root or expanded("data")
    split_of(name, split)
    unknown = next((option for option in entry.options if option != "hub"), None)
    if unknown is not None:
        raise PlaitError(f"dataset {name!r} has no option {unknown!r}; it takes hub")
    files = DatasetFiles(root_of(entry.path, spec.folder, root), root, str(cache) if cache else None, bool(entry.options.get("hub", False)))
    try:
        rows = spec.rows(split, files)
    except Absent as error:
        hint = "name their folder (`path`, plait eval --data, or data.root)"
        raise Absent(f"dataset {name} ({split}) is not there: {error}. Get {spec.get}; {hint}") from error
    return NamedDataset(name, spec, files, rows, split, entry.limit)


class NamedDataset(Source):
    """Samples of one split of a named dataset, at most `limit` (None: all). Raises PlaitError for a split without rows.

    `spec`: the dataset's description; `rows`: its records; `files`: where its images are.
    """

    def __init__(self, name: str, spec: Spec, files: DatasetFiles, rows: Rows, split: str, limit: int | None) -> None:
        self.name, self.spec, self.files, self.rows, self.train = name, spec, files, rows, split == "train"
        if not len(rows):
            raise PlaitError(f"dataset {name} has no row in split {split}")
        self.may_wait = files.hub
        self._length = len(rows) if limit is None else min(limit, len(rows))
        self.fingerprint = xxhash.xxh3_64(f"{name} {split} {rows.digest} {self._length}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Return sample `i`: `id`, `images` (encoded files), `messages`, `fields`. Raises BadSample for a missing image or wrong record."""
        row = self.rows[i]
        pictures = self._pictures(row)
        (conversation,) = self.spec.convert(row, rng(i, "as asked"), lambda: image_files.size(pictures[0]))
        text.check(conversation.messages, len(pictures), allow_blank=not self.train)  # answers of test splits are not published
        name = str(next((row[field] for field in _NAMES if row.get(field) is not None), i))
        fields = {"dataset": self.name, **conversation.gold}
        return {"id": f"{self.name}/{name}", "images": pictures, "messages": conversation.messages, "fields": fields}

    def _pictures(self, row: Row) -> list[bytes]:
        path = self.spec.picture(self.files, row) if self.spec.picture is not None else None
        if path is not None:
            return [read_regular(path)]
        if not row.get(PICTURES):
            raise BadSample(f"{self.name}: a row without a picture")
        return list(row[PICTURES])
