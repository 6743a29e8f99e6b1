"""Tiny copies of published datasets, in the files and fields of their authors: two or three records each, with drawn pictures."""

import csv
import hashlib
import json
import struct
import unicodedata
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from plait.families.molmo.catalogue.benchmarks import MMMU_SUBJECTS
from tests.families.molmo.conftest import photo

URLS = [f"https://pictures.example/{n}.jpg" for n in range(300)]


def put(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def picture(path: Path, number: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo(number))


def parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def cell(number: int) -> dict:
    return {"bytes": photo(number), "path": None}


def vqa(root: Path, folder: str, prefix: str = "") -> None:
    for file in ("train2014", "val2014"):
        questions = [{"question_id": 10 + n, "image_id": 1 + n // 2, "question": f"What is {n}?"} for n in range(3)]
        answers = [
            {"answer": text, **({} if prefix else {"raw_answer": f"{text}s"}), "answer_confidence": "yes", "answer_id": k}
            for k, text in enumerate(["red", "red", "blue"])
        ]
        annotations = [
            {"question_id": question["question_id"], "image_id": question["image_id"], "answers": answers} for question in questions
        ]
        put(root / folder / f"{prefix}OpenEnded_mscoco_{file}_questions.json", {"questions": questions})
        put(root / folder / f"{prefix}mscoco_{file}_annotations.json", {"annotations": annotations})
        for n in (1, 2):
            picture(root / "coco" / file / f"COCO_{file}_{n:012d}.jpg", n)


def text_vqa(root: Path) -> None:
    for split in ("train", "val"):
        rows = [
            {"question_id": n, "image_id": f"img{n // 2}", "question": "what does it say?", "answers": ["stop"] * 9 + ["go"]}
            for n in range(3)
        ]
        put(root / "text_vqa" / f"TextVQA_0.5.1_{split}.json", {"data": rows})
    for n in (0, 1):
        picture(root / "text_vqa" / "train_images" / f"img{n}.jpg", n)


def chart_qa(root: Path) -> None:
    for part in ("train", "val", "test"):
        for kind in ("human", "augmented"):
            rows = [{"imgname": f"{n}.png", "query": f"How much in 200{n}?", "label": str(n)} for n in range(2)]
            put(root / "chart_qa" / part / f"{part}_{kind}.json", rows)
        for n in range(2):
            picture(root / "chart_qa" / part / "png" / f"{n}.png", n)


def documents(root: Path) -> None:
    for split in ("train", "val"):
        rows = [{"questionId": n, "question": "date?", "image": f"documents/page_{n}.png", "answers": ["May 1", "1 May"]} for n in range(2)]
        put(root / "doc_qa" / f"{split}_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
        rows = [{"questionId": n, "question": "share?", "image_local_name": f"{n}.jpeg", "answers": ["10%"]} for n in range(2)]
        put(root / "info_qa" / f"infographicsVQA_{split}_v1.0_withQT.json", {"data": rows})
    for n in range(2):
        picture(root / "doc_qa" / "spdocvqa_images" / f"page_{n}.png", n)
        picture(root / "info_qa" / "infographicsvqa_images" / f"{n}.jpeg", n)
    rows = [{"question_id": n, "question": "sign?", "file_path": f"coco-text/{n}.jpg", "answers": ["exit"]} for n in range(300)]
    put(root / "st_qa" / "train_task_3.json", {"data": rows})
    for n in range(300):
        picture(root / "st_qa" / "coco-text" / f"{n}.jpg", n % 3)


def diagrams(root: Path) -> None:
    home = root / "ai2d"
    labels = {
        "T0": {"rectangle": [[8, 8], [40, 24]], "replacementText": "A"},
        "T1": {"rectangle": [[8, 30], [40, 40]], "replacementText": "F"},
    }
    for n in range(6):
        lettered = n == 1
        answers = ["a", "{}", "f", "none"] if lettered else ["sun", "moon", "sun", "frog"]
        question = {"abcLabel": lettered, "answerTexts": answers, "correctAnswer": 2 if lettered else 3, "questionId": f"{n}.png-0"}
        asked = {"What eats flies?": question}
        if lettered:  # too few of its options are letters, so each has a line with a letter of its own
            asked["Which is it?"] = {**question, "answerTexts": ["a", "a frog", "a fly"], "questionId": f"{n}.png-1"}
        put(home / "questions" / f"{n}.png.json", {"imageName": f"{n}.png", "questions": asked})
        put(home / "annotations" / f"{n}.png.json", {"text": labels if lettered else {}})
        picture(home / "images" / f"{n}.png", n)
    with open(home / "ai2d_test_ids.csv", "w", newline="") as file:
        csv.writer(file).writerow(["2"])


def okvqa_choices(root: Path) -> None:
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        row = {"split": split, "image_id": 5, "question": "Why?", "choices": ["a", "b", "c", "d"], "correct_choice_idx": 2}
        more = {"direct_answers": ["rain"] * 10, "rationales": []}
        hard = {**row, **more, "question_id": "y", "difficult_direct_answer": True}
        put(root / "a_okvqa" / f"aokvqa_v1p0_{split}.json", [{**row, **more, "question_id": "x", "difficult_direct_answer": False}, hard])
        picture(root / "coco" / folder / f"{5:012d}.jpg", 5)


def science(root: Path) -> None:
    for split in ("train", "validation", "test"):
        row = {"question": "Which is a mammal?", "choices": ["frog", "cat"], "answer": 1, "hint": "Mammals have hair."}
        parquet(root / "science_qa" / "data" / f"{split}-00000-of-00001.parquet", [{**row, "image": cell(1)}, {**row, "image": None}])


def tables(root: Path) -> None:
    row = {"question": "How many red?", "choices": None, "answer": "1,200", "unit": "kg", "table": "", "ques_type": "free_text"}
    for split in ("train", "dev", "test"):
        put(root / "tabwmp" / f"problems_{split}.json", {"7": row})
    picture(root / "tabwmp" / "tables" / "7.png", 7)


def counting_sets(root: Path) -> None:
    rows = [{"image": "VG_100K_2/9.jpg", "answer": 3, "question": f"how many {n}?", "image_id": 9, "question_id": n} for n in range(2)]
    for split in ("train", "test"):
        put(root / "tally_qa" / f"{split}.json", rows)
    picture(root / "visual_genome" / "VG_100K_2" / "9.jpg", 9)
    row = {"image": cell(3), "text": "three cats", "question": "How many cats are there in the image?", "number": 3}
    parquet(root / "countbench" / "data" / "test-00000-of-00001.parquet", [row])


def plots(root: Path) -> None:
    for split in ("train", "val_easy", "val_hard"):
        rows = [{"question": f"bar {n}?", "answer": "12", "image": "bar_1.png", "question_id": str(n)} for n in range(2)]
        put(root / "dv_qa" / f"{split}_qa.json", rows)
    picture(root / "dv_qa" / "images" / "bar_1.png", 1)
    for folder in ("train1", "validation1"):
        rows = [{"question_string": "Is red the minimum?", "image_index": 0, "answer": n} for n in range(2)]
        put(root / "figure_qa" / folder / "qa_pairs.json", {"qa_pairs": rows})
        picture(root / "figure_qa" / folder / "png" / "0.png", 1)
    for folder in ("train", "val", "test"):
        rows = [{"question_string": f"value {n}?", "image_index": 0, "answer": 12.5, "qid": n} for n in range(30)]
        put(root / "plot_qa" / folder / "qa_pairs_V2.json", {"qa_pairs": rows})
        picture(root / "plot_qa" / folder / "png" / "0.png", 1)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def example(features: dict) -> bytes:
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], int):
            kind = message(3, message(1, b"".join(map(varint, values))))
        else:
            kind = message(1, b"".join(message(1, value) for value in values))
        entries += message(1, message(1, name.encode()) + message(2, kind))
    return message(1, entries)


def record(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + bytes(4) + body + bytes(4)


def android_control(root: Path) -> None:
    actions = [{"action_type": "click", "x": 32, "y": 12}, {"action_type": "input_text", "text": "frogs"}, {"action_type": "navigate_back"}]
    body = b""
    for episode in (4, 5, 6):
        features = {
            "episode_id": [episode],
            "goal": [b"Find frogs"],
            "screenshots": [photo(n) for n in range(4)],
            "actions": [json.dumps(action).encode() for action in actions],
            "step_instructions": [b"Tap search", b"Type it", b"Go back"],
        }
        body += record(example(features))
    (root / "android_control").mkdir(parents=True)
    (root / "android_control" / "android_control-00000-of-00001").write_bytes(body)
    put(root / "android_control" / "splits.json", {"train": [4], "validation": [5], "test": [6]})


def pixmo(root: Path) -> None:
    points = [{"x": 10.0, "y": 20.0}, {"x": 50.04, "y": 60.0}]
    whole = {
        "pixmo-cap": {"caption": " A long caption. ", "transcripts": ["So here we", " a frog sits. "]},
        "pixmo-cap-qa": {"question": "[USER] How many? [ASSISTANT]", "answer": "Two.", "messages": ["How many?", "Two.", "Why?", "So."]},
        "pixmo-ask-model-anything": {"question": "Who?", "answer": "A frog."},
        "pixmo-point-explanations": {
            "question": "Where is the frog?",
            "response": "raw",
            "parsed_response": "It sits <|POINT|>.",
            "alt_text": ["frog"],
            "inline_text": ["here"],
            "points": [points[:1]],
        },
    }
    for name, row in whole.items():
        parquet(root / name / "data" / "train-00000-of-00001.parquet", [{"image_url": url, **row} for url in URLS])
    rows = [
        {"image_url": url, "image_sha256": "", "points": points, "count": 2, "label": f"frogs {method}", "collection_method": method}
        for url in URLS
        for method in ("pointing", "counting")
    ]
    parquet(root / "pixmo-points" / "data" / "train-00000-of-00001.parquet", rows)
    pixels = {"x": [32.0], "y": [12.0]}  # of a picture of 64 x 48
    for split in ("train", "validation", "test"):
        row = {"image_url": URLS[0], "count": 1, "label": "people", "points": pixels if split == "train" else {"x": [], "y": []}}
        parquet(root / "pixmo-count" / "data" / f"{split}-00000-of-00001.parquet", [row])
    masks = [[[True, False], [False, False]], [[False, False], [False, True]]]
    row = {"image_url": URLS[1], "image_sha256": "", "points": points, "masks": masks, "label": "frogs"}
    parquet(root / "pixmo-points-eval" / "data" / "test-00000-of-00001.parquet", [row])
    for number, url in enumerate(URLS):
        picture(root / "pixmo_images" / hashlib.sha256(url.encode()).hexdigest(), number % 3)
    for kind in ("charts", "tables", "diagrams", "other"):
        questions = {"question": ["a?", "b?"], "answer": ["1", "2"]}
        for split in ("train", "validation"):
            row = {"image": cell(1), "image_id": "x", "questions": questions}
            parquet(root / "pixmo-docs" / kind / f"{split}-00000-of-00001.parquet", [row])


def typed_parquet(path: Path, rows: list[dict], **types) -> None:
    """Write parquet with the types that the Hub's files declare, so that a column of nulls has one; texts where none is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": datasets.Image(), "texts": datasets.List(datasets.Value("string"))}
    features = {name: kinds.get(types.get(name)) or datasets.Value(types.get(name, "string")) for name in rows[0]}
    pq.write_table(datasets.Dataset.from_list(rows, features=datasets.Features(features)).data.table, path)


def mmmu_row(split: str, number: int, pictures: int = 1, **fields) -> dict:
    """A row of MMMU about Accounting; its answers in the test split are "?"."""
    row = {"id": f"{split}_Accounting_{number}", "question": "Which is it? <image 1>", "options": "['$6', 'it\\'s 7', 'none', '<image 2>']"}
    row |= {"explanation": ""} | {f"image_{n}": cell(n) if n <= pictures else None for n in range(1, 8)}
    row |= {"img_type": "['Tables']", "answer": "B", "topic_difficulty": "Easy", "question_type": "multiple-choice", "subfield": "Costs"}
    return {**row, **fields, **({"answer": "?"} if split == "test" else {})}


def exams(root: Path) -> None:
    """MMMU, MathVista, RealWorldQA and the clocks: what models are evaluated on and not trained on."""
    for split in ("dev", "validation", "test"):
        first = [
            mmmu_row(split, 1),
            mmmu_row(split, 2, 2, question="Are <image 1> and <image 2> the same?"),
            mmmu_row(split, 3, options="[]", answer="['0.26', '26%']", question_type="open"),
        ]
        pictures = dict.fromkeys([f"image_{n}" for n in range(1, 8)], "image")
        for subject in MMMU_SUBJECTS:
            rows = first if subject == "Accounting" else [mmmu_row(split, 1, id=f"{split}_{subject}_1", options="['yes', 'no']")]
            typed_parquet(root / "mmmu" / subject / f"{split}-00000-of-00001.parquet", rows, **pictures)
    maths = [
        {"question_type": "multi_choice", "answer_type": "text", "choices": ["145°", "35°"], "answer": "35°", "precision": None},
        {"question_type": "free_form", "answer_type": "float", "choices": None, "answer": "1.2", "precision": 1.0},
    ]
    for split in ("testmini", "test"):
        rows = [
            {
                "pid": str(n),
                "question": "How large?",
                "image": f"images/{n}.jpg",
                "decoded_image": cell(n),
                "unit": None,
                "query": "Hint: ...",
            }
            | row
            | ({"answer": ""} if split == "test" else {})
            for n, row in enumerate(maths, 1)
        ]
        file = root / "math_vista" / "data" / f"{split}-00000-of-00001-725687bf7a18d64b.parquet"
        typed_parquet(file, rows, decoded_image="image", choices="texts", precision="float64")
    asked = [
        ("Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option and nothing else.", "B"),
        ("How many lanes?\nPlease answer directly with a single word or number.", "2"),
    ]
    rows = [{"image": cell(n), "question": question, "answer": answer} for n, (question, answer) in enumerate(asked)]
    typed_parquet(root / "real_world_qa" / "data" / "test-00000-of-00002.parquet", rows, image="image")
    clocks = {
        "coco": ("trainval_images", "000000000064.jpg"),
        "openimg": ("data", "0a0d.jpg"),
        "movies": ("ClockMovies/images", "Amélie 12.09.png"),
    }
    for split, (folder, name) in clocks.items():
        home = root / "clock_bench"
        picture(home / folder / unicodedata.normalize("NFD", name))
        with open(home / f"{split}_final.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [["img_id", "file_name", "hour", "minute", "bbox_det"], ["64", name, "12", "9", "[1.5, 2.0, 3.0, 4.0]"]]
            )


def write_all(root: Path) -> Path:
    """Every dataset that the family knows."""
    vqa(root, "vqa2", "v2_")
    vqa(root, "okvqa")
    for write in (
        text_vqa,
        chart_qa,
        documents,
        diagrams,
        okvqa_choices,
        science,
        tables,
        counting_sets,
        plots,
        android_control,
        pixmo,
        exams,
    ):
        write(root)
    return root
