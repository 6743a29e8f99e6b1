"""Benchmarks that models are evaluated on and never trained on: MMMU, MathVista, RealWorldQA, and clocks in photos and films.

Questions, styles and what is scored are those of the evaluation of the published Molmo (allenai/molmo). Where the answers of a split are
not published, its conversations have none, and `answers` is empty: the model's answers are written, and not scored.
"""

import ast
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue.academic import with_options
from plait.families.molmo.scoring.metrics import LETTERS
from plait.families.published_openers import in_csv, in_parquet
from plait.families.published_rows import (
    COCO,
    PICTURES,
    ChainedRows,
    ChangedRows,
    Conversation,
    DatasetFiles,
    Opener,
    ParquetRows,
    Random,
    Row,
    Rows,
    Size,
    Spec,
)

log = logging.getLogger(__name__)

SHORT, CHOICE = "eval_short_answer", "eval_multiple_choice"  # styles; a prompt begins with the trained ones that they stand for
_MMMU_SHORT, _MMMU_CHOICE = "vqa2", "a_okvqa_mc"
# fmt: off
MMMU_SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science", "Biology", "Chemistry",
    "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics",
    "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage", "Marketing", "Materials", "Math",
    "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
)
# fmt: on
MMMU_HUB, MATHVISTA_HUB, REAL_WORLD_HUB = "MMMU/MMMU", "AI4Math/MathVista", "xai-org/RealworldQA"
_HIDDEN = "?"  # stands for the answers of MMMU's test split
_PICTURE_OPTION = re.compile(r"<img='.*?'>")
_PLACE = re.compile(r"<image\s*(\d+)>")
_SUBJECT = re.compile(r"[a-z]+_(\w+)_\d+")
_ONE_WORD = "Please answer directly with a single word or number."
_ONE_LETTER = "Please answer directly with only the letter of the correct option and nothing else."
_FOUR = LETTERS[:4]
CLOCK_SPLITS = {"coco": "trainval_images/{}", "openimg": "data/{}", "movies": "ClockMovies/images/{}"}
"""The splits of the clock benchmark, and where the pictures of each lie when their archives are unpacked side by side."""


def _literal(text: str, what: str) -> list[str]:
    """Return the list of texts that a field spells as Python does. Raises BadSample for anything else."""
    try:
        listed = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise BadSample(f"{what} {text!r} is no list") from error
    if not isinstance(listed, list):
        raise BadSample(f"{what} {text!r} is no list")
    return [str(item) for item in listed]


def _letter(answer: str, options: Sequence[str]) -> int:
    """Return the index of the option whose letter is the answer. Raises BadSample if it is no letter of an option."""
    index = LETTERS.find(answer) if len(answer) == 1 else -1
    if not 0 <= index < len(options):
        raise BadSample(f"the answer {answer!r} is no letter of {len(options)} options")
    return index


def _mmmu(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of MMMU. An open answer may be a list of right ones, spelled as a text; "?" is one that is not published."""
    subject = _SUBJECT.fullmatch(str(row["id"]))
    gold: dict[str, Any] = {"answers": [], **({"task": subject[1]} if subject else {})}
    answer = None if row["answer"] == _HIDDEN else str(row["answer"])
    if row["question_type"] != "multiple-choice":
        if answer is not None:
            gold["answers"] = _literal(answer, "the answer") if answer.startswith("[") and answer.endswith("]") else [answer]
            answer = gold["answers"][0]
        return [Conversation(str(row["question"]), answer, _MMMU_SHORT, gold)]
    options = _literal(row["options"], "options")
    if answer is not None:
        gold |= {"answers": [answer], "answer_idx": _letter(answer, options)}
    return [Conversation(with_options(str(row["question"]), options), answer, _MMMU_CHOICE, {**gold, "options": [o for o in options if o]})]


def _first_picture(row: Row) -> Row:
    """Return a row of MMMU with its first picture alone, or none if several options are pictures, as the published model is asked."""
    options = _literal(row["options"], "options") if row["question_type"] == "multiple-choice" else []
    several = sum(_PICTURE_OPTION.match(option) is not None for option in options) > 1
    return {**row, PICTURES: [] if several else row.get(PICTURES, [])[:1]}


def _numbered_pictures(row: Row) -> Row:
    """Return a row of MMMU with all its pictures, which are "Image 1", "Image 2" in its texts (as in allenai/molmo2)."""
    texts = {name: _PLACE.sub(r"Image \1", str(row[name])) for name in ("question", "options")}
    return {**row, **texts, PICTURES: row.get(PICTURES, [])}


def _mmmu_rows(split: str, *, several: bool) -> Opener:
    """Return an opener of a split of MMMU: a folder of parquet files per subject, all 30 of them. `several`: all pictures of a question.

    The opener raises Absent where a subject is missing, and PlaitError where a folder is none.
    """

    def opened(files: DatasetFiles) -> Rows:
        there = {path.parent.name for path in files.folder.glob(f"*/{split}-*.parquet") if not path.parent.name.startswith(".")}
        missing = [subject for subject in MMMU_SUBJECTS if subject not in there]
        if there and missing:
            raise Absent(
                f"no {split}-*.parquet in {files.folder / missing[0]} ({len(missing)} of {len(MMMU_SUBJECTS)} subjects are missing)"
            )
        if other := sorted(there.difference(MMMU_SUBJECTS)):
            raise PlaitError(f"{files.folder / other[0]} holds {split}-*.parquet and is no subject of MMMU: move it elsewhere")
        parts: list[ParquetRows] = []
        if there:
            parts = [ParquetRows(Table(str(files.folder / "*" / f"{split}-*.parquet"), None, split, {}, files.cache, {}))]
        elif files.hub:
            parts = [ParquetRows(Table(None, MMMU_HUB, split, {"config": name}, files.cache, {})) for name in MMMU_SUBJECTS]
        else:
            raise Absent(f"no */{split}-*.parquet in {files.folder}")
        rows = ChainedRows(parts)
        if several:
            return ChangedRows(rows, _numbered_pictures)
        if count := sum(part.filled("image_2") for part in parts):
            log.info(
                f"mmmu ({split}): {count:,} of {len(rows):,} questions have several pictures; the first is shown, as the published "
                "model was evaluated; mmmu_multi_image shows all"
            )
        return ChangedRows(rows, _first_picture)

    return opened


def _math_vista(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of MathVista, without the instructions around it. An empty answer is one that is not published."""
    question = str(row["question"]).rpartition("Question:")[2].partition("Hint:")[0].strip()
    gold = {name: row[name] for name in ("question_type", "answer_type", "choices", "precision", "answer")}
    answer = str(row["answer"] or "")
    if row["question_type"] != "multi_choice":
        return [Conversation(question, answer or None, SHORT, {**gold, "answers": [answer] if answer else []})]
    choices = [str(choice) for choice in row["choices"]]
    if answer and answer not in choices:
        raise BadSample(f"the answer {answer!r} is none of the choices {choices}")
    letter = LETTERS[choices.index(answer)] if answer else None
    return [Conversation(with_options(question, choices), letter, CHOICE, {**gold, "answers": [letter] if letter else []})]


def _real_world(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of RealWorldQA. Its wish for a letter stays, that for one word, in later lines, is left to the style.

    Raises BadSample for a question with neither wish.
    """
    question, answer = str(row["question"]), str(row["answer"])
    if _ONE_WORD in question:
        return [Conversation(question.partition("\n")[0], answer, SHORT, {"answers": [answer]})]
    if _ONE_LETTER not in question:
        raise BadSample(f"the question asks neither for a word nor for a letter: {question!r}")
    return [Conversation(question, answer, CHOICE, {"answers": [answer], "options": list(_FOUR), "answer_idx": _letter(answer, _FOUR)})]


def _clock(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question for the time on a clock: `hour` 0 to 11, `minute` 0 to 59. Raises BadSample for no time of a clock."""
    if not (row["hour"].isdecimal() and row["minute"].isdecimal() and int(row["hour"]) <= 12 and int(row["minute"]) <= 60):
        raise BadSample(f"no time of a clock: hour {row['hour']!r}, minute {row['minute']!r}")
    hour, minute = int(row["hour"]) % 12, int(row["minute"]) % 60
    answer = f"{hour or 12}:{minute:02}"
    return [Conversation("What time is being shown?", answer, "clocks", {"answers": [answer], "hour": hour, "minute": minute})]


def _clock_picture(files: DatasetFiles, row: Row) -> Path:
    """Return the file of a clock's picture, whichever way its name's accents are encoded; COCO's also where COCO lies."""
    names = dict.fromkeys([row["file_name"], *(unicodedata.normalize(form, row["file_name"]) for form in ("NFD", "NFC"))])
    folders = [CLOCK_SPLITS[row["part"]], *(f"{COCO}/{year}/{{}}" for year in ("train2017", "val2017") if row["part"] == "coco")]
    return files.image(*(folder.format(name) for folder in folders for name in names))


def _clocks(split: str) -> Opener:
    columns = ("img_id", "file_name", "hour", "minute")
    return in_csv(f"**/{split}_final.csv", *columns, mark={"part": split})


_MMMU_GET = f"the parquet files of {MMMU_HUB}, a folder for each subject"
_TESTMINI = in_parquet(MATHVISTA_HUB, "testmini", columns={"image": "decoded_image"})
# fmt: off
BENCHMARKS: dict[str, Spec] = {
    "mmmu": Spec("mmmu", {split: _mmmu_rows(split, several=False) for split in ("validation", "test", "dev")}, _mmmu, _MMMU_GET, "mmmu"),
    "mmmu_multi_image": Spec("mmmu", {split: _mmmu_rows(split, several=True) for split in ("validation", "test", "dev")}, _mmmu, _MMMU_GET,
        "mmmu"),
    "math_vista": Spec("math_vista",
        {"validation": _TESTMINI, "testmini": _TESTMINI, "test": in_parquet(MATHVISTA_HUB, "test", columns={"image": "decoded_image"})},
        _math_vista, f"the parquet files of {MATHVISTA_HUB}", "mathvista"),
    "real_world_qa": Spec("real_world_qa", {"test": in_parquet(REAL_WORLD_HUB, "test")}, _real_world,
        f"the parquet files of {REAL_WORLD_HUB}", "real_world_qa"),
    "clock_bench": Spec("clock_bench", {split: _clocks(split) for split in CLOCK_SPLITS}, _clock,
        "the files *_final.csv and pictures of https://github.com/charigyang/itsabouttime", "clock", picture=_clock_picture),
}
# fmt: on
