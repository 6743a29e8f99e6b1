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


def spatial_rows() -> list[tuple[int, dict]]:
    """Rows of SpatialRGPT-Bench with the numbers of their pictures; the last one's answer gives no length."""
    asked = [
        ("qualitative", "left_predicate", "Is Region [0] to the left of Region [1]?", "In fact, Region [0] is to the right of Region [1]."),
        ("qualitative", "tall_choice", "Who is taller, Region [0] or Region [1]?", "Standing taller between the two is Region [1]."),
        ("quantitative", "width_data", "What is the width of Region [0]?", "Region [0] is 2.0 meters wide."),
        (
            "quantitative",
            "direction",
            "If you are at Region [0], where is Region [1]?",
            "Region [1] is roughly at 12 o'clock from Region [0].",
        ),
        (
            "quantitative",
            "vertical_distance_data",
            "How far is Region [0] from Region [1] vertically?",
            "They overlap, so it is hard to tell.",
        ),
    ]
    return [
        (number, {
            "id": f"q{number}", "image_info": {"file_path": f"kitti/{number}.png", "width": 40, "height": 28}, "text_q": question,
            "qa_info": {"type": kind, "category": category}, "bbox": [[2.0, 2.0, 12.0, 20.0], [20.0, 4.0, 36.0, 24.0]],
            "conversations": [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}],
        })
        for number, (kind, category, question, answer) in enumerate(asked)
    ]  # fmt: skip


def spatial_table() -> bytes:
    """The parquet file of SpatialRGPT-Bench, in which all that is no text or picture is spelled as Python does."""
    rows = [
        {
            **{name: value if isinstance(value, str) else repr(value) for name, value in row.items()},
            "image": {"bytes": photo(n), "path": None},
        }
        for n, row in spatial_rows()
    ]
    return table(rows, "image")


CAPTIONS = [["A cat sits on a mat.", "There is a cat on the mat."], ["Two dogs run.", "Dogs running in grass.", "two dogs run fast"]]


def coco(root: Path) -> Path:
    """COCO's annotations of val2017, Karpathy's splits of its pictures and of Flickr30k's, and the pictures."""
    images = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (1, 2)]
    annotations = [
        {"image_id": n, "id": 10 * n + k, "caption": text} for n, texts in enumerate(CAPTIONS, 1) for k, text in enumerate(texts)
    ]
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/annotations/captions_val2017.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    sentences = [[{"raw": text, "tokens": text.split()} for text in texts] for texts in CAPTIONS]
    by_split = [
        {"filepath": "val2014", "filename": f"COCO_val2014_{n:012d}.jpg", "cocoid": n, "imgid": n - 1, "split": split, "sentences": told}
        for n, split, told in zip((1, 2), ("test", "val"), sentences, strict=True)
    ]
    (root / "coco/dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": by_split}))
    flickr = [{"filename": f"{n}.jpg", "imgid": n, "split": "test", "sentences": told} for n, told in enumerate(sentences)]
    (root / "flickr30k").mkdir()
    (root / "flickr30k/dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": flickr}))
    for n in (1, 2):
        picture(root / f"coco/val2017/{n:012d}.jpg", n)
        picture(root / f"coco/val2014/COCO_val2014_{n:012d}.jpg", n)
        picture(root / f"flickr30k/flickr30k-images/{n - 1}.jpg", n)
    return root
