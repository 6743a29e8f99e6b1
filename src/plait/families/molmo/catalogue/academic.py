"""Academic sets in the files their authors publish: questions about photos, charts, documents, diagrams, tables and screens.

Each entry of ACADEMIC says where the files are, what a row asks and which rule judges the answer. Several gold answers: training says one
of the most frequent. Multiple choice: options follow the question as "A. ...", and the answer is the letter.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from plait.families.molmo.catalogue.gui_grounding import action, diagrams, screens
from plait.families.molmo.catalogue.rows import (
    COCO,
    Ask,
    Asked,
    Opener,
    Place,
    Random,
    Row,
    Size,
    Spec,
    concatenated,
    either,
    in_json,
    in_parquet,
    joined,
)
from plait.families.molmo.scoring.metrics import LETTERS

_HUMAN, _AUGMENTED = 7_398, 20_901  # questions of ChartQA's training set; both kinds shall weigh the same


def usual(answers: Sequence[str], random: Random) -> str:
    """One of the most frequent answers."""
    counts = Counter(answers)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return best[int(random.integers(len(best)))] if best else ""


def _answers(row: Row) -> list[str]:
    """The gold answers of a row, however it writes them."""
    found: Any = next((row[name] for name in ("answers", "direct_answers", "label", "answer") if row.get(name) is not None), [])
    listed = found if isinstance(found, list | tuple) else [found]
    return [str(one["answer"] if isinstance(one, dict) else one) for one in listed]


def short(style: str, *, field: str = "question") -> Ask:
    """A question with a short answer."""

    def ask(row: Row, random: Random, size: Size) -> list[Asked]:
        golds = _answers(row)
        return [Asked(str(row[field]), usual(golds, random), style, {"answers": golds})]

    return ask


def choice(style: str, options: str, right: Callable[[Row], int], *, before: Callable[[Row], str] = lambda row: "") -> Ask:
    """A question with lettered options."""

    def ask(row: Row, random: Random, size: Size) -> list[Asked]:
        texts, index = [str(one) for one in row[options]], right(row)
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
        asked = "\n".join(part for part in (before(row), str(row["question"]), listed) if part)
        gold = {"options": texts, "answer_idx": index, "answers": [LETTERS[index]]}
        return [Asked(asked, LETTERS[index], style, gold)]

    return ask


def _chart(row: Row, random: Random, size: Size) -> list[Asked]:
    human = row.get("human_or_machine") in (0, "human")
    total = _HUMAN + _AUGMENTED
    weight = total / (2 * (_HUMAN if human else _AUGMENTED))
    return [Asked(str(row["query"]), usual(_answers(row), random), "chart_qa", {"answers": _answers(row)}, weight)]


def _diagram(row: Row, random: Random, size: Size) -> list[Asked]:
    """AI2D: where the options are the letters in the picture, they are the answer as they stand."""
    if not row.get("abcLabel"):
        return choice("ai2_diagram", "options", lambda row: int(row["answer"]))(row, random, size)
    texts, index = [str(one) for one in row["options"]], int(row["answer"])
    asked = "\n".join([str(row["question"]), *texts])
    return [Asked(asked, texts[index], "ai2_diagram_no_letter", {"options": texts, "answer_idx": index, "answers": [texts[index]]})]


def _table(row: Row, random: Random, size: Size) -> list[Asked]:
    unit = f" (unit: {row['unit']})" if row.get("unit") else ""
    return [Asked(f"{row['question']}{unit}", str(row["answer"]), "tabwmp_da", {"answers": [str(row["answer"])]})]


def _count(row: Row, random: Random, size: Size) -> list[Asked]:
    return [Asked(str(row["question"]), str(row["answer"]), "tally_qa", {"answers": [str(row["answer"])], "count": int(row["answer"])})]


def _countbench(row: Row, random: Random, size: Size) -> list[Asked]:
    count = int(row["number"])
    return [Asked(str(row["question"]), str(count), "point_count", {"count": count})]


def _yes_or_no(row: Row, random: Random, size: Size) -> list[Asked]:
    said = ("no", "yes")[int(row["answer"])]
    return [Asked(str(row["question_string"]), said, "figure_qa", {"answers": [said]})]


def _screen(row: Row, random: Random, size: Size) -> list[Asked]:
    """AndroidControl: the next action from the goal, the step, or both (drawn)."""
    goal, step = f"high_level: {row['goal']}", f"low_level: {row['instruction']}"
    asked = (step, f"{goal} {step}", goal)[int(random.integers(3))]
    said = action(row["action"], size())
    return [Asked(asked, said, "android_control", {"answers": [said]})]


def _coco(split: str, row: Row) -> tuple[str, ...]:
    """COCO's file, with the names of 2014 and 2017, in the dataset's folder, or in the shared one."""
    number = int(row["image_id"])
    names = [f"{split}2014/COCO_{split}2014_{number:012d}.jpg", f"{split}2017/{number:012d}.jpg"]
    return tuple(f"{start}{name}" for name in names for start in ("", f"{COCO}/", "images/"))


def _coco_picture(place: Place, row: Row) -> Any:
    return place.picture(*(name for split in ("train", "val") for name in _coco(split, row)))


def _named(*patterns: str) -> Callable[[Place, Row], Any]:
    """The picture whose path a pattern spells from the row's fields."""
    return lambda place, row: place.picture(*(pattern.format_map(row) for pattern in patterns))


def _document(place: Place, row: Row) -> Any:
    file = str(row["image"]).rpartition("/")[2]
    return place.picture(str(row["image"]), f"spdocvqa_images/{file}", f"train/{row['image']}", f"val/{row['image']}")


def _files(pattern: str, *keys: str, **files: str) -> dict[str, Opener]:
    """Split to the JSON file in whose pattern {} stands for `files[split]`; rows remember that as `part`."""
    return {split: in_json(pattern.format(file), *keys, mark={"part": file}) for split, file in files.items()}


def _vqa(questions: str, annotations: str) -> dict[str, Opener]:
    files = (("train", "train2014"), ("validation", "val2014"))
    return {split: joined(questions.format(file), annotations.format(file)) for split, file in files}


def _versions(*versions: dict[str, Opener]) -> dict[str, Opener]:
    """The first version that is there, for each split."""
    return {
        split: either(*(version[split] for version in versions if split in version))
        for split in dict.fromkeys(s for v in versions for s in v)
    }


def _parquet(hub: str, *splits: str, **settings: Any) -> dict[str, Opener]:
    return {split: in_parquet(hub, split, **settings) for split in splits}


def _direct(row: Row) -> bool:
    """A-OKVQA marks questions whose free answers vary too much to be judged."""
    return not row.get("difficult_direct_answer")


def _chart_files(part: str) -> Opener:
    kinds = ("human", "augmented")
    return concatenated(*(in_json(f"**/{part}/{part}_{kind}.json", mark={"human_or_machine": kind, "part": part}) for kind in kinds))


_RRC = "https://rrc.cvc.uab.es"
_CHART_HUB = "HuggingFaceM4/ChartQA"
_TRAIN_VAL = {"train": "train", "validation": "val"}
_TRAIN_VAL_TEST = _TRAIN_VAL | {"test": "test"}

# fmt: off
ACADEMIC: dict[str, Spec] = {
    "vqa2": Spec("vqa2", _vqa("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"), short("vqa2"),
        "questions, annotations and COCO 2014 images from https://visualqa.org/download.html", "vqa", _coco_picture, "image_id"),
    "okvqa": Spec("okvqa", _vqa("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"), short("okvqa"),
        "questions and annotations from https://okvqa.allenai.org, images of COCO 2014", "vqa", _coco_picture, "image_id"),
    "text_vqa": Spec("text_vqa",
        _versions(_files("TextVQA_*_{}.json", "data", **_TRAIN_VAL), _parquet("facebook/textvqa", "train", "validation")),
        short("text_vqa"), "https://textvqa.org/dataset, or the parquet files of facebook/textvqa", "vqa",
        _named("train_images/{image_id}.jpg", "train_val_images/train_images/{image_id}.jpg"), "image_id"),
    "chart_qa": Spec("chart_qa",
        {split: either(_chart_files(part), in_parquet(_CHART_HUB, part)) for split, part in _TRAIN_VAL_TEST.items()},
        _chart, f"https://github.com/vis-nlp/ChartQA, or the parquet files of {_CHART_HUB}", "relaxed_accuracy",
        _named("{part}/png/{imgname}", "ChartQA Dataset/{part}/png/{imgname}"), "imgname"),
    "doc_qa": Spec("doc_qa", _versions(*(_files(name, "data", **_TRAIN_VAL) for name in ("{}_v1.0_withQT.json", "{}_v1.0.json")),
                                       _parquet("lmms-lab/DocVQA", "validation", config="DocVQA")),
        short("doc_qa"), f"Single Document VQA from {_RRC}/?ch=17; validation: parquet of lmms-lab/DocVQA", "anls", _document, "image"),
    "info_qa": Spec("info_qa",
        _versions(*(_files(f"infographicsVQA_{{}}_{name}.json", "data", **_TRAIN_VAL) for name in ("v1.0_withQT", "v1.0")),
                  _parquet("lmms-lab/DocVQA", "validation", config="InfographicVQA")),
        short("info_qa"), f"Infographics VQA from {_RRC}/?ch=17; validation: parquet of lmms-lab/DocVQA", "anls",
        _named("infographicsvqa_images/{image_local_name}", "images/{image_local_name}"), "image_local_name"),
    "st_qa": Spec("st_qa", _files("train_task_3.json", "data", train="", validation=""), short("st_qa"), f"task 3 of {_RRC}/?ch=11", "anls",
        _named("{file_path}", "images/{file_path}"), "file_path", held_out=True),
    "ai2d": Spec("ai2d", _versions({"train": diagrams("train"), "test": diagrams("test")}, _parquet("lmms-lab/ai2d", "test")), _diagram,
        "https://prior.allenai.org/projects/diagram-understanding with ai2d_test_ids.csv; test: parquet of lmms-lab/ai2d",
        "multiple_choice", _named("{picture}"), "picture"),
    "a_okvqa_mc": Spec("a_okvqa", _files("aokvqa_v1p0_{}.json", **_TRAIN_VAL),
        choice("a_okvqa_mc", "choices", lambda row: int(row["correct_choice_idx"])),
        "https://github.com/allenai/aokvqa, images of COCO 2017", "multiple_choice", _coco_picture, "image_id"),
    "a_okvqa_da": Spec("a_okvqa", {split: in_json(f"aokvqa_v1p0_{file}.json", wanted=_direct) for split, file in _TRAIN_VAL.items()},
        short("a_okvqa_da"), "https://github.com/allenai/aokvqa, images of COCO 2017", "vqa", _coco_picture, "image_id"),
    "science_qa": Spec("science_qa", _parquet("derek-thomas/ScienceQA", "train", "validation", "test", keep=("image", None)),
        choice("science_qa", "choices", lambda row: int(row["answer"]), before=lambda row: str(row.get("hint") or "")),
        "the parquet files of derek-thomas/ScienceQA", "multiple_choice"),
    "tabwmp": Spec("tabwmp", _files("problems_{}.json", train="train", validation="dev", test="test"), _table,
        "data/tabmwp of https://github.com/lupantech/PromptPG", "exact_match", _named("tables/{id}.png", "{id}.png")),
    "tally_qa": Spec("tally_qa", _files("{}.json", train="train", test="test"), _count,
        "https://github.com/manoja328/TallyQA_dataset, images of COCO 2014 and Visual Genome", "counting",
        _named("{image}", f"{COCO}/{{image}}", "visual_genome/{image}", "images/{image}"), "image"),
    "dv_qa": Spec("dv_qa", _files("{}_qa.json", train="train", validation="val_easy", test="val_hard"), short("dv_qa"),
        "https://github.com/kushalkafle/DVQA_dataset", "exact_match", _named("images/{image}"), "image"),
    "figure_qa": Spec("figure_qa", _files("{}/qa_pairs.json", "qa_pairs", train="train1", validation="validation1"), _yes_or_no,
        "https://www.microsoft.com/en-us/research/project/figureqa-dataset", "exact_match",
        _named("{part}/png/{image_index}.png"), "image_index"),
    "plot_qa": Spec("plot_qa",
        _versions(*(_files(f"{{}}/{name}.json", "qa_pairs", **_TRAIN_VAL_TEST) for name in ("qa_pairs_V2", "qa_pairs_V1", "qa_pairs"))),
        short("plot_qa", field="question_string"), "https://github.com/NiteshMethani/PlotQA", "relaxed_accuracy",
        _named("{part}/png/{image_index}.png"), "image_index"),
    "android_control": Spec("android_control", {split: screens(split) for split in ("train", "validation", "test")}, _screen,
        "the TFRecord files and splits.json of gs://gresearch/android_control, unpacked", "exact_match"),
    "countbench_qa": Spec("countbench", _parquet("vikhyatk/CountBenchQA", "test"), _countbench,
        "the parquet files of vikhyatk/CountBenchQA", "counting"),
}
# fmt: on
