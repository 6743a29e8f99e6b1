"""Tiny copies of published benchmarks, in the files and fields of their authors: a few records each, with drawn pictures."""

import io
import json
from pathlib import Path

import datasets

from plait.families.theworld.catalogue.choices import BLINK_TASKS

from .conftest import photo


def lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path, number: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo(number))


def table(rows: list[dict], *pictures: str) -> bytes:
    """A parquet file as the package `datasets` writes it, with these columns of pictures."""
    known = datasets.Dataset.from_list([{name: value for name, value in row.items() if name not in pictures} for row in rows])
    features = datasets.Features({**known.features, **{name: datasets.Image() for name in pictures}})
    body = io.BytesIO()
    datasets.Dataset.from_list(rows, features=features).to_parquet(body)
    return body.getvalue()


IMAGES = tuple(f"image_{n}" for n in range(1, 5))


def blink_row(task: str, split: str, number: int, pictures: int, answer: str) -> dict:
    """A row of BLINK; it has columns for four pictures, of which so many are filled."""
    options = ["the second image", "the third image"]
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip("AB", options, strict=True))
    cells = {name: {"bytes": photo(10 * number + n), "path": None} if n < pictures else None for n, name in enumerate(IMAGES)}
    return {
        "idx": f"{split}_{task}_{number}", "question": "Which shares its style?", "sub_task": task, **cells, "choices": options,
        "answer": answer, "prompt": f"Which image shares its style?\nSelect from the following choices.\n{listed}\n",
        "explanation": None,
    }  # fmt: skip


def blink_files() -> dict[str, bytes]:
    """The parquet files of BLINK by path: two questions of `val` and one of `test` for each of the 14 tasks."""
    files = {}
    for place, task in enumerate(BLINK_TASKS):
        val = [blink_row(task, "val", 2 * place + n + 1, pictures=n + 1, answer="(AB)"[n + 1].join("()")) for n in range(2)]
        files[f"{task}/val-00000-of-00001.parquet"] = table(val, *IMAGES)
        files[f"{task}/test-00000-of-00001.parquet"] = table([blink_row(task, "test", place + 1, pictures=4, answer="hidden")], *IMAGES)
    return files


def blink(root: Path) -> Path:
    for name, body in blink_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return root


VSR = [
    {
        "image": "000000000001.jpg",
        "caption": "The bench is at the right side of the train.",
        "label": 0,
        "relation": "at the right side of",
    },
    {"image": "000000000002.jpg", "caption": "The train contains the laptop.", "label": 1, "relation": "contains"},
    {"image": "000000000003.jpg", "caption": "The cat is congruent the dog.", "label": 1, "relation": "congruent"},
]


def vsr(folder: Path, pictures: Path) -> Path:
    """The files of VSR's Hub repositories, and pictures in the folder of COCO."""
    for name in ("train", "dev", "test"):
        lines(folder / f"{name}.jsonl", [{**row, "image_link": f"http://images.example/{row['image']}"} for row in VSR])
    for number, row in enumerate(VSR):
        picture(pictures / row["image"], number)
    return folder


def nlvr(root: Path) -> Path:
    """Two examples of a split of NLVR with six pictures each."""
    rows = [
        {"sentence": "There is a box with a black item.", "label": label, "identifier": f"{n}-0", "directory": "0", "structured_rep": [[]]}
        for n, label in enumerate(["true", "false"], 1)
    ]
    for split in ("dev", "test"):
        lines(root / "nlvr" / split / f"{split}.json", rows)
        for row in rows:
            for order in range(6):
                picture(root / "nlvr" / split / "images" / "0" / f"{split}-{row['identifier']}-{order}.png", order)
    return root
