"""MMMU, MathVista, RealWorldQA and clocks, read from their published layout: questions, styles and scores of the published model."""

import shutil

import pytest

from plait.config.schema import SourceEntry
from plait.data.sources.contract import Absent
from plait.data.sources.datasets import Table
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue import benchmarks, datasets
from plait.families.molmo.catalogue.benchmarks import BENCHMARKS, MMMU_SUBJECTS
from plait.families.molmo.evaluate import RULES
from plait.families.molmo.scoring.benchmark_rules import clock
from plait.families.published_rows import ChainedRows, RowList
from tests.families.molmo import published_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exams")
    published_sets.exams(folder)
    return folder


def opened(root, name, split):
    return datasets.open_dataset(SourceEntry(source="dataset", name=name), split, root=root, cache=None)


def asked(sample):
    return sample["fields"]["style"], *(turn["content"] for turn in sample["messages"])


def score(name, sample, answer):
    return RULES[BENCHMARKS[name].rule](answer, sample)["score"]


def test_mmmu_asks_for_a_letter_or_freely_and_knows_the_subject(root):
    source = opened(root, "mmmu", "validation")
    assert len(source) == 3 + len(MMMU_SUBJECTS) - 1
    choice, _, free = (source[i] for i in range(3))
    assert choice["id"] == "mmmu/validation_Accounting_1"
    assert asked(choice) == ("a_okvqa_mc", "Which is it? <image 1>\nA: $6\nB: it's 7\nC: none\nD: <image 2>\n", "B")
    assert asked(free) == ("vqa2", "Which is it? <image 1>", "0.26")
    assert [free["fields"]["answers"], choice["fields"]["task"]] == [["0.26", "26%"], "Accounting"]
    assert [score("mmmu", choice, answer) for answer in ("B", "(B)", "A")] == [1.0, 1.0, 0.0]
    assert [score("mmmu", free, answer) for answer in ("It is 26%", "0.26", "2")] == [1.0, 1.0, 0.0]


def test_mmmu_shows_the_first_of_several_pictures_and_says_so_or_all(root, caplog):
    caplog.set_level("INFO")
    single = opened(root, "mmmu", "validation")[1]
    assert "mmmu (validation): 1 of 32 questions have several pictures; the first is shown" in caplog.text
    several = opened(root, "mmmu_multi_image", "validation")[1]
    assert [len(sample["images"]) for sample in (single, several)] == [1, 2]
    assert single["images"] == several["images"][:1]
    assert single["messages"][0]["content"].startswith("Are <image 1> and <image 2> the same?")
    assert several["messages"][0]["content"].startswith("Are Image 1 and Image 2 the same?")
    assert several["messages"][0]["content"].endswith("D: Image 2\n")


def test_mmmu_shows_no_picture_where_options_are_pictures(tmp_path):
    published_sets.exams(tmp_path)
    row = published_sets.mmmu_row("validation", 1, options="[\"<img='a.png'>\", \"<img='b.png'>\"]")
    file = tmp_path / "mmmu" / "Accounting" / "validation-00000-of-00001.parquet"
    published_sets.typed_parquet(file, [row], **dict.fromkeys([f"image_{n}" for n in range(1, 8)], "image"))
    assert opened(tmp_path, "mmmu", "validation")[0]["images"] == []


def test_mmmu_with_a_subject_too_many_or_too_few_is_refused(tmp_path):
    published_sets.exams(tmp_path)
    music, old = (tmp_path / "mmmu" / name for name in ("Music", "Music-old"))
    shutil.copytree(music, old)
    with pytest.raises(PlaitError, match=r"/mmmu/Music-old holds test-\*\.parquet and is no subject of MMMU: move it elsewhere"):
        opened(tmp_path, "mmmu", "test")
    shutil.rmtree(music)
    with pytest.raises(Absent, match=r"no test-\*\.parquet in .+/mmmu/Music \(1 of 30 subjects are missing\)"):
        opened(tmp_path, "mmmu", "test")


def test_math_vista_takes_its_question_its_own_picture_and_precision(root):
    choice, free = (opened(root, "math_vista", "validation")[i] for i in range(2))
    assert choice["id"] == "math_vista/1"
    assert asked(choice) == ("eval_multiple_choice", "How large?\nA: 145°\nB: 35°\n", "B")
    assert asked(free) == ("eval_short_answer", "How large?", "1.2")
    assert choice["images"] == [published_sets.photo(1)]
    assert [score("math_vista", choice, answer) for answer in ("B", "35°", "A")] == [1.0, 1.0, 0.0]
    assert [score("math_vista", free, answer) for answer in ("1.2", "1.24", "1.3")] == [1.0, 1.0, 0.0]


def test_math_vista_drops_the_instructions_around_a_question():
    row = {"question": "Hint: a letter.\nQuestion: How many?\nHint: think.", "question_type": "free_form", "answer_type": "integer"}
    (conversation,) = BENCHMARKS["math_vista"].convert({**row, "choices": None, "precision": None, "answer": "3"}, None, None)
    assert conversation.question == "How many?"


def test_splits_of_one_beginning_are_told_apart(root):
    assert [len(opened(root, "math_vista", split)) for split in ("testmini", "test")] == [2, 2]


def test_real_world_qa_keeps_the_wish_for_a_letter_alone(root):
    choice, free = (opened(root, "real_world_qa", "test")[i] for i in range(2))
    question = "Which way?\n\nA. Left\nB. Right\nPlease answer directly with only the letter of the correct option and nothing else."
    assert asked(choice) == ("eval_multiple_choice", question, "B")
    assert asked(free) == ("eval_short_answer", "How many lanes?", "2")
    assert [score("real_world_qa", choice, answer) for answer in ("B", "B.", "A")] == [1.0, 1.0, 0.0]
    assert [score("real_world_qa", free, answer) for answer in ("two", "2.", "3")] == [1.0, 1.0, 0.0]
    with pytest.raises(BadSample, match="asks neither for a word nor for a letter: 'Why'"):
        BENCHMARKS["real_world_qa"].convert({"question": "Why", "answer": "A"}, None, None)


@pytest.mark.parametrize("split", ["coco", "openimg", "movies"])
def test_clocks_are_asked_for_their_time(root, split):
    (sample,) = opened(root, "clock_bench", split)
    assert (sample["id"], asked(sample)) == ("clock_bench/64", ("clocks", "What time is being shown?", "12:09"))
    assert [score("clock_bench", sample, answer) for answer in ("12:09", "The time is 0:9", "12:10")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "time", "right"),
    [  # score, close, hour, minute, minute_close
        ("10:42", (10, 42), "11111"),
        ("It is 22:42:17 PM", (10, 42), "11111"),
        ("10:43", (10, 42), "01101"),
        ("10:44", (10, 42), "00100"),
        ("3:60", (3, 0), "11111"),
        ("2:59", (3, 0), "00001"),  # the hour is wrong, and it is not twelve o'clock
        ("11:59", (0, 0), "01001"),
        ("9:42", (10, 42), "00011"),
        ("ten to three", (2, 50), "00000"),
        ("10:", (10, 42), "00100"),
        ("", (0, 0), "00000"),
    ],
)
def test_a_time_is_right_or_close_by_hour_and_minute(answer, time, right):
    assert "".join(str(int(value)) for value in clock(answer, *time).values()) == right


def test_a_csv_that_is_not_the_published_one_is_refused(tmp_path):
    published_sets.exams(tmp_path)
    file = tmp_path / "clock_bench" / "coco_final.csv"
    file.write_text("img_id,file_name,hour\n1,a.jpg,3\n")
    with pytest.raises(PlaitError, match=r"has no column 'minute'; it has img_id, file_name, hour: is it the published file\?"):
        opened(tmp_path, "clock_bench", "coco")
    file.write_text("img_id,file_name,hour,minute\n1,a.jpg,3,9\n2,b.jpg\n")
    with pytest.raises(PlaitError, match="row 2 is cut short: download it again"):
        opened(tmp_path, "clock_bench", "coco")


@pytest.mark.parametrize(
    ("name", "row"), [("mmmu", {"answer": "E"}), ("mmmu", {"options": "none"}), ("clock_bench", {"hour": "13", "minute": "0"})]
)
def test_a_row_that_cannot_be_true_is_a_bad_sample(name, row):
    whole = {**(published_sets.mmmu_row("validation", 1) if name == "mmmu" else {}), **row}
    with pytest.raises(BadSample, match=r"is no letter of 4 options|options 'none' is no list|no time of a clock: hour '13'"):
        BENCHMARKS[name].convert(whole, None, None)


def test_rows_of_several_tables_stand_one_after_the_other():
    parts = [RowList([{"n": 1}, {"n": 2}], "a"), RowList([{"n": 3}], "b"), RowList([{"n": 4}, {"n": 5}], "c")]
    rows = ChainedRows(parts)
    assert [rows[i]["n"] for i in range(len(rows))] == rows.column("n") == [1, 2, 3, 4, 5]
    assert rows.digest != ChainedRows(parts[::-1]).digest


def test_mmmu_is_read_from_the_hub_subject_by_subject(root, monkeypatch):
    def table(path, hub, split, options, cache, columns):
        assert (path, hub) == (None, "MMMU/MMMU")
        return Table(str(root / "mmmu" / options["config"] / f"{split}-*.parquet"), None, split, {}, cache, columns)

    monkeypatch.setattr(benchmarks, "Table", table)
    entry = SourceEntry(source="dataset", name="mmmu", options={"hub": True}, path="/nowhere")
    source = datasets.open_dataset(entry, "validation", root=root, cache=None)
    assert [source[i]["fields"]["task"] for i in range(2, len(source))] == list(MMMU_SUBJECTS)
