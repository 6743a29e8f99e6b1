"""Academic datasets in their authors' files: questions about photos, charts, documents, diagrams, tables and GUI screenshots.

Each entry of ACADEMIC says where the files are, how a row becomes a question and which bench scores the answer. A converter is the function
that turns a row (a record of the files) into conversations; a style, the task's name. Of several gold answers, training takes one of the
most frequent. Multiple choice: options follow the question as lines "A: ...", and the answer is the letter.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from plait.families.molmo.catalogue.diagrams import diagrams
from plait.families.molmo.catalogue.gui_grounding import action_text, android_control
from plait.families.molmo.scoring.metrics import LETTERS
from plait.families.published_openers import concatenated, either, in_json, in_parquet, joined
from plait.families.published_rows import COCO, Conversation, Converter, DatasetFiles, Opener, Random, Row, Size, Spec

_HUMAN, _AUGMENTED = 7_398, 20_901  # questions of ChartQA's training set; both kinds get the same total weight, 2 n1 n2 / (n1 + n2)


def most_frequent(answers: Sequence[str], random: Random) -> str:
    """Return one of the answers given most often, drawn at random, as the one to train on; "" if `answers` is empty."""
    counts = Counter(answers)
    best = [answer for answer, count in counts.items() if count == max(counts.values())]
    return best[int(random.integers(len(best)))] if best else ""


def _answers(row: Row) -> list[str]:
    """Return the gold answers of a row, in whichever field they are; OK-VQA's as people wrote them, and not their stems."""
    value: Any = next((row[name] for name in ("answers", "direct_answers", "label", "answer") if row.get(name) is not None), [])
    listed = value if isinstance(value, list | tuple) else [value]
    return [str(answer.get("raw_answer", answer["answer"]) if isinstance(answer, dict) else answer) for answer in listed]


def short(style: str, *, field: str = "question") -> Converter:
    """Return a converter (row, random, size) -> conversations for short answers. `style`: task name; `field`: that with the question.

    The gold answers are in the first of the fields `answers`, `direct_answers`, `label` and `answer` that is not null. One of the most
    frequent, drawn by `random`, is trained on; all are kept as `answers` for scoring.
    """

    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        golds = _answers(row)
        return [Conversation(str(row[field]), most_frequent(golds, random), style, {"answers": golds})]

    return convert


def with_options(question: str, options: Sequence[str]) -> str:
    """Return the text of a multiple-choice question: `question`, then the `options` as lines "A: ...", each with a line break."""
    listed = [f"{letter}: {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([*([question] if question else []), *listed, ""])


def choice(style: str, options: str, right: Callable[[Row], int], *, before: Callable[[Row], str] = lambda row: "") -> Converter:
    """Return a converter (row, random, size) -> conversations for multiple choice. `style`: the task's name.

    The question is the field `question` with the options below it; the answer is the right one's letter. `options`: name of the field with
    the options' texts; `right(row)`: index of the right one, from 0; `before(row)`: text before the question.
    """

    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        texts, index = [str(option) for option in row[options]], right(row)
        question = "\n".join(part for part in (before(row), with_options(str(row["question"]), texts)) if part)
        gold = {"options": texts, "answer_idx": index, "answers": [LETTERS[index]]}
        return [Conversation(question, LETTERS[index], style, gold)]

    return convert


def _chart(row: Row, random: Random, size: Size) -> list[Conversation]:
    human = row.get("human_or_machine") in (0, "human")
    weight = 2 * (_AUGMENTED if human else _HUMAN) / (_HUMAN + _AUGMENTED)
    return [Conversation(str(row["query"]), most_frequent(_answers(row), random), "chart_qa", {"answers": _answers(row)}, weight)]


def _diagram(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of AI2D; where options are letters in the image, the answer is one of them as it stands."""
    (asked,) = choice("ai2_diagram", "options", lambda row: int(row["answer"]))(row, random, size)
    gold = asked.gold | ({"task": row["task"]} if "task" in row else {})
    if not row.get("as_they_stand"):
        return [replace(asked, gold=gold)]
    texts, right = gold["options"], gold["options"][gold["answer_idx"]]
    return [Conversation("\n".join([str(row["question"]), *texts, ""]), right, "ai2_diagram_no_letter", gold | {"answers": [right]})]


def _table(row: Row, random: Random, size: Size) -> list[Conversation]:
    return [Conversation(str(row["question"]), str(row["answer"]), "tabwmp_da", {"answers": [str(row["answer"])]})]


def _count(row: Row, random: Random, size: Size) -> list[Conversation]:
    return [
        Conversation(str(row["question"]), str(row["answer"]), "tally_qa", {"answers": [str(row["answer"])], "count": int(row["answer"])})
    ]


def _countbench(row: Row, random: Random, size: Size) -> list[Conversation]:
    count = int(row["number"])
    return [Conversation(str(row["question"]), str(count), "point_count", {"count": count})]


def _next_action(*forms: str) -> Converter:
    """Return a converter of AndroidControl that asks for the next action by `forms`: ll, hl_ll, hl or hl_cot.

    They give the instruction of the step, the goal and the instruction, the goal, or ask for the instruction before the action.
    """

    def convert(row: Row, random: Random, size: Size) -> list[Conversation]:
        goal, step, action = f"high_level: {row['goal']}", f"low_level: {row['instruction']}", action_text(row["action"], size())
        planned = (f"high_level_cot: {row['goal']}", f"Plan: {row['instruction']} Action: {action}")
        asked = {"ll": (step, action), "hl_ll": (f"{goal} {step}", action), "hl": (goal, action), "hl_cot": planned}
        return [Conversation(*asked[form], "android_control", {"answers": [action]}) for form in forms]

    return convert


def _coco(split: str, row: Row) -> tuple[str, ...]:
    """Return the file of a COCO image, by the names of 2014 and 2017, in the dataset's folder or the shared one."""
    number = int(row["image_id"])
    names = [f"{split}2014/COCO_{split}2014_{number:012d}.jpg", f"{split}2017/{number:012d}.jpg"]
    return tuple(f"{start}{name}" for name in names for start in ("", f"{COCO}/", "images/"))


def _coco_image(files: DatasetFiles, row: Row) -> Any:
    return files.image(*(name for split in ("train", "val") for name in _coco(split, row)))


def _named(*patterns: str) -> Callable[[DatasetFiles, Row], Any]:
    """Return a function to the image whose path a pattern spells from the row's fields."""
    return lambda files, row: files.image(*(pattern.format_map(row) for pattern in patterns))


def _document(files: DatasetFiles, row: Row) -> Any:
    file = str(row["image"]).rpartition("/")[2]
    return files.image(str(row["image"]), f"spdocvqa_images/{file}", f"train/{row['image']}", f"val/{row['image']}")


def _files(pattern: str, *keys: str, **files: str) -> dict[str, Opener]:
    """Return openers of JSON files, named by the pattern with {} replaced by `files[split]`; rows keep that as `part`."""
    return {split: in_json(pattern.format(file), *keys, mark={"part": file}) for split, file in files.items()}


def _vqa(questions: str, annotations: str) -> dict[str, Opener]:
    files = (("train", "train2014"), ("validation", "val2014"))
    return {split: joined(questions.format(file), annotations.format(file)) for split, file in files}


def _versions(*versions: dict[str, Opener]) -> dict[str, Opener]:
    """Return openers of the first version that exists, for each split."""
    return {
        split: either(*(version[split] for version in versions if split in version))
        for split in dict.fromkeys(split for version in versions for split in version)
    }


def _parquet(hub: str, *splits: str, **settings: Any) -> dict[str, Opener]:
    return {split: in_parquet(hub, split, **settings) for split in splits}


def _scorable(row: Row) -> bool:
    """Return whether A-OKVQA considers the question's free answers similar enough to be scored."""
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
        "questions, annotations and COCO 2014 images from https://visualqa.org/download.html", rule="vqa",
        picture=_coco_image, group="image_id"),
    "okvqa": Spec("okvqa", _vqa("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"), short("okvqa"),
        "questions and annotations from https://okvqa.allenai.org, images of COCO 2014", rule="vqa", picture=_coco_image, group="image_id",
        packing="one"),
    "text_vqa": Spec("text_vqa",
        _versions(_files("TextVQA_*_{}.json", "data", **_TRAIN_VAL), _parquet("facebook/textvqa", "train", "validation")),
        short("text_vqa"), "https://textvqa.org/dataset, or the parquet files of facebook/textvqa", rule="vqa",
        picture=_named("train_images/{image_id}.jpg", "train_val_images/train_images/{image_id}.jpg"), group="image_id", packing="one"),
    "chart_qa": Spec("chart_qa",
        {split: either(_chart_files(part), in_parquet(_CHART_HUB, part)) for split, part in _TRAIN_VAL_TEST.items()},
        _chart, f"https://github.com/vis-nlp/ChartQA, or the parquet files of {_CHART_HUB}", rule="relaxed_accuracy",
        picture=_named("{part}/png/{imgname}", "ChartQA Dataset/{part}/png/{imgname}"), group="imgname", packing="one"),
    "doc_qa": Spec("doc_qa", _versions(*(_files(name, "data", **_TRAIN_VAL) for name in ("{}_v1.0_withQT.json", "{}_v1.0.json")),
                                       _parquet("lmms-lab/DocVQA", "validation", config="DocVQA")),
        short("doc_qa"), f"Single Document VQA from {_RRC}/?ch=17; validation: parquet of lmms-lab/DocVQA", rule="anls",
        picture=_document, group="image", packing="one"),
    "info_qa": Spec("info_qa",
        _versions(*(_files(f"infographicsVQA_{{}}_{name}.json", "data", **_TRAIN_VAL) for name in ("v1.0_withQT", "v1.0")),
                  _parquet("lmms-lab/DocVQA", "validation", config="InfographicVQA")),
        short("info_qa"), f"Infographics VQA from {_RRC}/?ch=17; validation: parquet of lmms-lab/DocVQA", rule="anls",
        picture=_named("infographicsvqa_images/{image_local_name}", "images/{image_local_name}"), group="image_local_name", packing="one"),
    "st_qa": Spec("st_qa", _files("train_task_3.json", "data", train="", validation=""), short("st_qa"), f"task 3 of {_RRC}/?ch=11",
        rule="anls", picture=_named("{file_path}", "images/{file_path}"), group="file_path", held_out=True, packing="one"),
    "ai2d": Spec("ai2d", _versions({split: diagrams(split) for split in _TRAIN_VAL_TEST}, _parquet("lmms-lab/ai2d", "test")), _diagram,
        "https://prior.allenai.org/projects/diagram-understanding with ai2d_test_ids.csv; test: parquet of lmms-lab/ai2d",
        rule="multiple_choice", picture=_named("{picture}"), group="shown", packing="one"),
    "a_okvqa_mc": Spec("a_okvqa", _files("aokvqa_v1p0_{}.json", **_TRAIN_VAL),
        choice("a_okvqa_mc", "choices", lambda row: int(row["correct_choice_idx"])),
        "https://github.com/allenai/aokvqa, images of COCO 2017", rule="multiple_choice", picture=_coco_image, group="image_id",
        packing="one"),
    "a_okvqa_da": Spec("a_okvqa",
        {"train": in_json("aokvqa_v1p0_train.json"), "validation": in_json("aokvqa_v1p0_val.json", keep=_scorable)}, short("a_okvqa_da"),
        "https://github.com/allenai/aokvqa, images of COCO 2017", rule="a_okvqa", picture=_coco_image, group="image_id", packing="one"),
    "science_qa": Spec("science_qa", _parquet("derek-thomas/ScienceQA", "train", "validation", "test", keep=("image", None)),
        choice("science_qa", "choices", lambda row: int(row["answer"]), before=lambda row: str(row.get("hint") or "")),
        "the parquet files of derek-thomas/ScienceQA", "multiple_choice"),
    "tabwmp": Spec("tabwmp", _files("problems_{}.json", train="train", validation="dev", test="test"), _table,
        "data/tabmwp of https://github.com/lupantech/PromptPG", "exact_match", _named("tables/{id}.png", "{id}.png")),
    "tally_qa": Spec("tally_qa", _files("{}.json", train="train", test="test"), _count,
        "https://github.com/manoja328/TallyQA_dataset, images of COCO 2014 and Visual Genome", rule="counting",
        picture=_named("{image}", f"{COCO}/{{image}}", "visual_genome/{image}", "images/{image}"), group="image"),
    "dv_qa": Spec("dv_qa", _files("{}_qa.json", train="train", validation="val_easy", test="val_hard"), short("dv_qa"),
        "https://github.com/kushalkafle/DVQA_dataset", rule="exact_match", picture=_named("images/{image}"), group="image"),
    "figure_qa": Spec("figure_qa", _files("{}/qa_pairs.json", "qa_pairs", train="train1", validation="validation1"),
        short("figure_qa", field="question_string"),
        "https://www.microsoft.com/en-us/research/project/figureqa-dataset", rule="exact_match",
        picture=_named("{part}/png/{image_index}.png"), group="image_index"),
    "plot_qa": Spec("plot_qa",
        _versions(*(_files(f"{{}}/{name}.json", "qa_pairs", **_TRAIN_VAL_TEST) for name in ("qa_pairs_V2", "qa_pairs_V1", "qa_pairs"))),
        short("plot_qa", field="question_string"), "https://github.com/NiteshMethani/PlotQA", rule="relaxed_accuracy",
        picture=_named("{part}/png/{image_index}.png"), group="image_index"),
    **{name: Spec("android_control", {split: android_control(split) for split in ("train", "validation", "test")}, _next_action(*forms),
        "the TFRecord files and splits.json of gs://gresearch/android_control, unpacked", "exact_match")
       for name, forms in {"android_control": ("ll", "hl_ll", "hl", "hl_cot"), "android_control_ll": ("ll",), "android_control_hl": ("hl",),
                           "android_control_hl_ll": ("hl_ll",)}.items()},
    "countbench_qa": Spec("countbench", _parquet("vikhyatk/CountBenchQA", "test"), _countbench,
        "the parquet files of vikhyatk/CountBenchQA", "counting"),
}
"""Academic datasets by name."""
# fmt: on
