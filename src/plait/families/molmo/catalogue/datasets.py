"""The datasets that family molmo knows by name, opened from their authors' files, or from the Hub where `hub: true` is set.

In training, rows (records) about one image are one sample or several, as the dataset's or its entry's `packing` says, with at most
MAX_ANNOTATIONS annotations (conversations), drawn anew each time; in every other split each question is a separate sample. How rows are
read is in academic.py, diagrams.py, pixmo.py, benchmarks.py and gui_grounding.py. A bench scores generated answers by a rule of the same
name, such as `vqa`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from plait.config.schema import SourceEntry
from plait.data import image_files, text
from plait.data.paths import read_regular
from plait.data.sources.contract import Absent, Source
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue.academic import ACADEMIC
from plait.families.molmo.catalogue.benchmarks import BENCHMARKS
from plait.families.molmo.catalogue.pixmo import ESTIMATE, PICTURES_OF, PIXMO, POINTS_EVAL, fetch_commands
from plait.families.named_datasets import NamedDatasets
from plait.families.published_rows import PICTURES, PIXMO_IMAGES, DatasetFiles, Rows, Spec, root_of, url_hash
from plait.files import expanded
from plait.keys import key, rng

log = logging.getLogger(__name__)

DATA_DIR = "MOLMO_DATA_DIR"
"""The environment variable that names the folder of all datasets if `data.root` is not set, as in the Molmo guide."""

_NAMES = ("question_id", "questionId", "id", "pid", "img_id")
"""Fields that name a row, the first that it has."""
PACKINGS = ("all", "half", "one")
"""Values of the option `packing`: which rows with the same picture are one training sample."""
MAX_ANNOTATIONS = 24
"""Most annotations (conversations) of one picture in one sample."""
DATASETS: dict[str, Spec] = {**ACADEMIC, **PIXMO, **BENCHMARKS}
"""All datasets by name."""
ALIASES = {
    "ai2_diagram_v2_mix_transparent": "ai2d",
    "chart_qa_weighted": "chart_qa",
    "cockatoo_712k_sept6": "pixmo_cap",
    "cockatoo_and_transcript_712k_sept6": "pixmo_cap_with_transcripts",
    "coco_2014_vqa": "vqa2",
    "coco_2014_vqa_multi": "vqa2",
    "count_qa": "countbench_qa",
    "countbench": "countbench_qa",
    "docqa": "doc_qa",
    "fast_flickr_count_qa_point_count": "pixmo_count_counting",
    "fast_flickr_count_qa_pointing": "pixmo_count",
    "infoqa": "info_qa",
    "math_vista_v2": "math_vista",
    "mathvista": "math_vista",
    "mmmu_test": "mmmu",
    "pixmo_pointing_explanations": "pixmo_point_explanations",
    "point_count": "pixmo_points_counting",
    "point_count_high_freq": "pixmo_points_high_freq_counting",
    "point_qa": "pixmo_point_explanations",
    "pointing": "pixmo_points",
    "pointing_eval": POINTS_EVAL,
    "pointing_high_freq": "pixmo_points_high_freq",
    "real_world_qa_no_instruction": "real_world_qa",
    "science_qa_img": "science_qa",
    "scifi_charts_qa": "pixmo_docs_charts",
    "scifi_diagram_qa": "pixmo_docs_diagrams",
    "scifi_document_qa": "pixmo_docs_other",
    "scifi_table_qa": "pixmo_docs_tables",
    "synthetic_qa_v3_as_user_qa": "pixmo_cap_qa",
    "tabwmp_da": "tabwmp",
    "textvqa": "text_vqa",
    "user_qa": "pixmo_ask_model_anything",
}
"""Other names, from the published training guide and other tools: {alias: name}."""
_KNOWN = NamedDatasets(DATASETS, ALIASES)
spec_of, rule_of, scored = _KNOWN.spec_of, _KNOWN.rule_of, _KNOWN.scored
evaluation_split, split_of = _KNOWN.evaluation_split, _KNOWN.split_of


def open_dataset(entry: SourceEntry, split: str, *, root: Path | None, cache: Path | None) -> "NamedDataset":
    """Open `split` of the dataset that `entry`, an item of `data.train` or `data.validation`, names.

    Its files are below `root`, by default $MOLMO_DATA_DIR or ./data; `cache`: folder of index files, by default the user's. Raises
    PlaitError for an unknown name, split or option, and Absent, which says how to get them, if files are missing.
    """
    name = str(entry.name)
    spec, root = spec_of(name), root or expanded(os.environ.get(DATA_DIR) or "data")
    split_of(name, split)
    spec = _with_options(name, spec, entry.options)
    files = DatasetFiles(root_of(entry.path, spec.folder, root), root, str(cache) if cache else None, bool(entry.options.get("hub", False)))
    try:
        rows = spec.rows(split, files)
    except Absent as error:
        hint = f"set its `path`, data.root or $MOLMO_DATA_DIR; {_hub_hint(spec)}"
        fetch = fetch_commands(spec.folder, root) if spec.folder in PICTURES_OF else ()
        told = f": {'; '.join(fetch)} ({ESTIMATE})" if fetch else ""
        raise Absent(f"dataset {name} ({split}) is not there: {error}. Get {spec.get}{told}; {hint}", fetch, ESTIMATE) from error
    return NamedDataset(name, spec, files, rows, split, entry.limit)


def _with_options(name: str, spec: Spec, options: Mapping[str, Any]) -> Spec:
    """Return the description with the entry's option `packing`. Raises PlaitError for an option that there is not, or a wrong value."""
    unknown = next((option for option in options if option not in ("hub", "packing")), None)
    if unknown is not None:
        raise PlaitError(f"dataset {name!r} has no option {unknown!r}; it takes hub, packing")
    packing = options.get("packing", spec.packing)
    if packing not in PACKINGS:
        raise PlaitError(f"dataset {name!r}: packing is {packing!r}; it is one of {', '.join(PACKINGS)}")
    if "packing" in options and spec.group is None:
        raise PlaitError(f"dataset {name!r} has no rows that share a picture, so packing changes nothing: leave it out")
    return replace(spec, packing=packing)


def _hub_hint(spec: Spec) -> str:
    return "options {hub: true} reads it from the Hub" if "parquet" in spec.get else "its files lie in a folder as they are published"


class NamedDataset(Source):
    """Samples of one split of a named dataset, at most `limit` (None: all); raises PlaitError for a split without rows.

    `spec`: the dataset's description; `rows`: its records; `files`: where its images are. `source[i]` is the same every time; `draw`
    chooses by a seed.
    """

    def __init__(self, name: str, spec: Spec, files: DatasetFiles, rows: Rows, split: str, limit: int | None) -> None:
        self.name, self.spec, self.files, self.rows, self.train = name, spec, files, rows, split == "train"
        column = rows.column(spec.group) if spec.group is not None and (self.train or spec.held_out or spec.by_url) else None
        chosen = self._rows_of_split(split, column)
        if not chosen:
            raise PlaitError(f"dataset {name} has no row in split {split}")
        if spec.by_url and column is not None:
            chosen = self._downloaded(chosen, column)
        packing = spec.packing if self.train and column is not None else "one"
        self.members = ([[i] for i in chosen] if packing == "one" else _grouped(chosen, column or (), halves=packing == "half"))[:limit]
        self.fingerprint = xxhash.xxh3_64(f"{name} {split} {rows.digest} {len(rows)} {len(self.members)}".encode()).hexdigest()

    def _rows_of_split(self, split: str, column: Sequence[Any] | None) -> list[int]:
        """Return the rows of the split: without the held-out images, or only them.

        Training never sees images of the pointing benchmark.
        """
        chosen = list(range(len(self.rows)))
        if column is None:
            return chosen
        if self.spec.held_out:
            chosen = [i for i in chosen if (key("held-out", str(column[i])) % 100 == 0) == (split == "validation")]
        excluded = _pointing_benchmark_urls(self.files) if self.train and self.spec.folder == "pixmo-points" else frozenset()
        return [i for i in chosen if column[i] not in excluded]

    def _downloaded(self, chosen: list[int], urls: Sequence[Any]) -> list[int]:
        """Return the rows whose picture has been downloaded, and say how many others there are. Raises Absent when none has been."""
        there = self.files.downloaded()
        kept = [i for i in chosen if url_hash(str(urls[i])) in there]
        pictures = [len({urls[i] for i in rows}) for rows in (kept, chosen)]
        if not kept:
            fetch = fetch_commands(self.spec.folder, self.files.root)[1:]
            where = self.files.root / PIXMO_IMAGES
            raise Absent(
                f"none of the {pictures[1]:,} pictures of dataset {self.name} is in {where}: download them: {fetch[0]} ({ESTIMATE})",
                fetch,
                ESTIMATE,
            )
        if pictures[0] < pictures[1]:
            log.warning(
                f"{self.name}: {pictures[0]:,} of {pictures[1]:,} pictures have been downloaded; the rows of the others are left out"
            )
        return kept

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.draw(i, key("as asked", i))

    def draw(self, i: int, sample_key: int) -> dict[str, Any]:
        """Return sample `i`: a dict with `id`, `images` (encoded files), `messages`, `weight`, `fields`.

        If several conversations are about its image, they are `annotations`, and `messages` the first of them. `sample_key`: seed that
        chooses conversations and answers. Raises BadSample if its image is missing or its text is malformed.
        """
        random = rng(sample_key, "draw")
        members = self.members[i]
        if len(members) > MAX_ANNOTATIONS:
            members = [members[k] for k in random.choice(len(members), MAX_ANNOTATIONS, replace=False)]
        rows = [self.rows[member] for member in members]
        pictures = self._pictures(rows[0])
        conversations = [c for row in rows for c in self.spec.convert(row, random, lambda: image_files.size(pictures[0]))]
        for conversation in conversations:  # answers of test splits are not published
            text.check(conversation.messages, len(pictures), allow_blank=not self.train)
        first = conversations[0]
        name = str(next((rows[0][field] for field in _NAMES if field in rows[0]), members[0]))
        sample = {"id": f"{self.name}/{name}", "images": pictures, "messages": first.messages, "weight": first.weight}
        if len(conversations) > 1:
            annotations = [{"messages": c.messages, "style": c.style, "weight": c.weight} for c in conversations]
            return {**sample, "fields": {"dataset": self.name}, "annotations": annotations}
        return {**sample, "fields": {"dataset": self.name, "style": first.style, **first.gold}}

    def _pictures(self, row: dict[str, Any]) -> list[bytes]:
        if PICTURES in row:
            pictures: list[bytes] = row[PICTURES]
            return pictures
        path = self.spec.picture(self.files, row) if self.spec.picture is not None else None
        if path is None:
            raise BadSample(f"{self.name}: a row without a picture")
        return [read_regular(path)]


def _grouped(chosen: Sequence[int], values: Sequence[Any], *, halves: bool) -> list[list[int]]:
    """Group rows with the same value, in the order of their first; with `halves`, two groups of each of several rows."""
    groups: dict[Any, list[int]] = {}
    for i in chosen:
        groups.setdefault(i if values[i] is None else values[i], []).append(i)
    if not halves:
        return list(groups.values())
    return [half for rows in groups.values() for half in (rows[: -(-len(rows) // 2)], rows[-(-len(rows) // 2) :]) if half]


def _pointing_benchmark_urls(files: DatasetFiles) -> frozenset[str]:
    """Return the image URLs of PixMo's pointing benchmark; none where its files are missing."""
    spec = DATASETS[POINTS_EVAL]
    try:
        rows = spec.rows("test", DatasetFiles(files.root / spec.folder, files.root, files.cache))
    except Absent:
        return frozenset()
    return frozenset(rows.column("image_url") or ())
