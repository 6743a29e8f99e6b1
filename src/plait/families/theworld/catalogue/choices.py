"""BLINK (Fu et al. 2024, arXiv:2404.12390): 14 tasks of visual perception, multiple choice, with one to four pictures a question.

The question is the published prompt, which lists the options as "(A) ...". The answers of the split `test` are not published: its
conversations have none, and the model's answers are written, and not scored.
"""

from collections.abc import Sequence
from typing import Any

from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import BadSample
from plait.families.published_rows import ChainedRows, Conversation, DatasetFiles, Opener, ParquetRows, Random, Row, Rows, Size, Spec
from plait.families.theworld.benchmarks.choices import letter
from plait.families.theworld.benchmarks.judge import CHOICES as LETTERED
from plait.families.theworld.benchmarks.judge import UNPUBLISHED

BLINK_HUB = "BLINK-Benchmark/BLINK"
BLINK_TASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
"""The configurations of BLINK's repository, each a folder of it."""
_HIDDEN = ("hidden", "")  # stand for the answers of the test split


def _blink(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of BLINK. Raises BadSample for a row without options, or whose answer is none of them."""
    choices = [str(choice) for choice in row["choices"] or ()]
    if not choices:
        raise BadSample("a question without `choices`")
    gold: dict[str, Any] = {"task": str(row["sub_task"]), LETTERED: choices}
    answer = str(row["answer"] or "").strip()
    if answer.lower() in _HIDDEN:
        return [Conversation(str(row["prompt"]), None, "blink", {**gold, UNPUBLISHED: True})]
    named = letter(answer)
    if named is None or ord(named) - ord("A") >= len(choices):
        raise BadSample(f"the answer {answer!r} is no letter of {len(choices)} choices")
    return [Conversation(str(row["prompt"]), f"({named})", "blink", gold)]


def _rows(split: str, tasks: Sequence[str]) -> Opener:
    """Return an opener of a split of BLINK's `tasks`, a folder of parquet files for each. It raises Absent where one is missing."""

    def opened(files: DatasetFiles) -> Rows:
        missing = [task for task in tasks if not any((files.folder / task).glob(f"{split}-*.parquet"))]
        if not missing:
            tables = [Table(str(files.folder / task / f"{split}-*.parquet"), None, split, {}, files.cache, {}) for task in tasks]
        elif files.hub:
            tables = [Table(None, BLINK_HUB, split, {"config": task}, files.cache, {}) for task in tasks]
        else:
            told = f" ({len(missing)} of {len(tasks)} tasks are missing)" if len(tasks) > 1 else ""
            raise Absent(f"no {split}-*.parquet in {files.folder / missing[0]}{told}")
        return ChainedRows([ParquetRows(table) for table in tables])

    return opened


def _spec(tasks: Sequence[str]) -> Spec:
    splits = {split: _rows("val" if split == "validation" else split, tasks) for split in ("validation", "val", "test")}
    get = f"the parquet files of {BLINK_HUB}, a folder for each task, or read them from the Hub (options {{hub: true}}, --data=hub)"
    return Spec("blink", splits, _blink, get, "accuracy")


CHOICES: dict[str, Spec] = {
    "blink": _spec(BLINK_TASKS),
    **{f"blink_{task.lower().replace('-', '_')}": _spec([task]) for task in BLINK_TASKS},
}
"""BLINK as a whole, and each of its tasks."""
