"""BLINK, VSR and NLVR in their published files: what is asked, what is right, and `plait eval` and the Hub from end to end."""

import importlib
import json

import pyarrow
import pytest
from pyarrow import parquet

from plait import cli
from plait.config.schema import SourceEntry
from plait.data import remote
from plait.data.sources.contract import Absent
from plait.errors import BadSample, PlaitError
from plait.families.theworld import evaluate
from plait.families.theworld.benchmarks.judge import judge
from plait.families.theworld.benchmarks.statements import verdict
from plait.families.theworld.catalogue import datasets
from plait.families.theworld.catalogue.choices import BLINK_TASKS
from tests import hub_server
from tests.data import faulty_server
from tests.hub_server import Repository

from . import published_sets
from .conftest import photo

TINY = """
family: theworld
preset: tiny
run: run
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
data:
  train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: 1, tasks: [colour]}}]
  workers: 0
train: {steps: 1, global_batch: 4}
optim: {schedule: {warmup_steps: 0}}
track: {tensorboard: false}
evaluate: EVALUATE
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "c.yaml").write_text(TINY.replace("EVALUATE", "[]"))
    assert cli.main(["train", str(folder / "c.yaml"), f"--run={folder / 'run'}"]) == 0
    return str(folder / "run")


@pytest.fixture(scope="module")
def blink(tmp_path_factory):
    return published_sets.blink(tmp_path_factory.mktemp("blink"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(name, split, folder, root=None, **options):
    return datasets.open_dataset(
        SourceEntry(source="dataset", name=name, path=str(folder), options=options), split, root=root or folder, cache=None
    )


def test_blink_is_read_from_files_that_do_not_say_which_columns_are_pictures(blink, run, tmp_path, capsys):
    for path in blink.rglob("*.parquet"):
        (tmp_path / "plain" / path.relative_to(blink)).parent.mkdir(parents=True, exist_ok=True)
        plain = parquet.read_table(path).replace_schema_metadata(None)
        assert plain.schema.field("image_1").type == pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        parquet.write_table(plain, tmp_path / "plain" / path.relative_to(blink))
    told, bare = (opened("blink", "validation", folder) for folder in (blink, tmp_path / "plain"))
    assert [told[i] for i in range(len(told))] == [bare[i] for i in range(len(bare))]
    for folder in (blink, tmp_path / "plain"):
        given = [f"--data={folder}", "--samples=4", f"--out={tmp_path / 'out' / folder.name}"]
        assert cli.main(["eval", run, "--bench=blink_counting:val", *given]) == 0
    written = [json.loads((tmp_path / "out" / name / "predictions.json").read_text()) for name in (blink.name, "plain")]
    assert written[0] == written[1] and not any("bad" in row for row in written[1])


def test_blink_asks_its_prompt_with_all_pictures_and_knows_the_task(blink):
    source = opened("blink", "validation", blink)
    assert len(source) == 2 * len(BLINK_TASKS)
    one, two = source[0], source[1]
    assert [one["id"], two["images"]] == ["blink/val_Art_Style_1", [photo(20), photo(21)]]
    assert [turn["content"] for turn in one["messages"]] == [
        "Which image shares its style?\nSelect from the following choices.\n(A) the second image\n(B) the third image\n", "(A)",
    ]  # fmt: skip
    assert one["fields"] == {"dataset": "blink", "task": "Art_Style", "lettered_choices": ["the second image", "the third image"]}
    assert len(opened("blink_relative_depth", "val", blink)) == 2


def test_blink_wants_all_its_tasks_and_says_which_is_missing(tmp_path):
    published_sets.blink(tmp_path)
    (tmp_path / "Jigsaw/val-00000-of-00001.parquet").unlink()
    with pytest.raises(Absent) as error:
        opened("blink", "val", tmp_path)
    assert str(error.value) == (
        f"dataset blink (val) is not there: no val-*.parquet in {tmp_path}/Jigsaw (1 of 14 tasks are missing). Get the parquet files of "
        "BLINK-Benchmark/BLINK, a folder for each task, or read them from the Hub (options {hub: true}, --data=hub); name their folder "
        "(`path`, plait eval --data, or data.root)"
    )


def test_the_choices_of_a_sample_count_and_not_letters_that_its_question_names():
    fields = {"lettered_choices": ["Point A", "Point B"]}
    question = "Which point, (A) or (B), is it?\n(A) Point A\n(B) Point B"
    assert [judge(answer, "(B)", fields, question).correct for answer in ("(B)", "Point B", "(A)")] == [True, True, False]
    assert [judge(answer, "(B)", fields, question).failed for answer in ("", " \n", "hm", "(A) or (B)")] == [
        "empty", "empty", "unparsed", "unparsed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("True", True), ("true.", True), ("Yes, it is.", True), ("The answer is False.", False), ("Answer: true", True), ("No.", False),
        ("The statement is true.", True), ("It is not true.", False), ("That isn't correct", False), ("It is false.", False),
        ("This is incorrect, as the cat is left of it", False), ("True or false? I cannot say", None), ("True. No, false.", None),
        ("Right of the train is a cat", None), ("Right.", True), ("The cat is left of the dog", None), ("yes or no", None), ("", None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_however_it_is_said(answer, said):
    assert verdict(answer) is said


def test_vsr_asks_whether_the_caption_is_true_by_category(tmp_path):
    source = opened("vsr_random", "validation", published_sets.vsr(tmp_path / "vsr", tmp_path / "coco/train2017"), root=tmp_path)
    samples = [source[i] for i in range(3)]
    assert [turn["content"] for turn in samples[0]["messages"]] == [
        "True or false? The bench is at the right side of the train.", "False",
    ]  # fmt: skip
    assert [sample["fields"]["task"] for sample in samples] == ["adjacency", "topological", None]
    assert samples[1]["images"] == [photo(1)]
    for answer, right in (("True", [False, True, True]), ("no", [True, False, False]), ("", [False] * 3)):
        assert [judge(answer, "", sample["fields"]).correct for sample in samples] == right


def test_a_wrong_row_of_vsr_is_told(tmp_path):
    published_sets.vsr(tmp_path, tmp_path / "images")
    published_sets.lines(
        tmp_path / "dev.jsonl", [{**published_sets.VSR[0], "label": "maybe"}, {**published_sets.VSR[0], "image": "no.jpg"}]
    )
    source = opened("vsr_zeroshot", "dev", tmp_path)
    with pytest.raises(BadSample, match="the label 'maybe' is neither 0 nor 1"):
        source[0]
    with pytest.raises(BadSample, match=r"no image images/no.jpg in .* or "):
        source[1]
    published_sets.lines(tmp_path / "dev.jsonl", [{"image": "a.jpg"}])
    with pytest.raises(PlaitError, match=r"dev.jsonl:1 has no 'caption': is it the published file\?"):
        opened("vsr_zeroshot", "dev", tmp_path)


def test_nlvr_has_a_sample_for_each_order_of_its_boxes(tmp_path):
    source = opened("nlvr", "validation", published_sets.nlvr(tmp_path))
    assert [source[i]["id"] for i in (0, 5, 6)] == ["nlvr/1-0-0", "nlvr/1-0-5", "nlvr/2-0-0"]
    assert len(source) == 12 and source[5]["images"] == [photo(5)]
    assert source[6]["messages"][1]["content"] == "False"


def test_a_dataset_that_is_not_known_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(PlaitError, match="dataset 'blnk' is unknown: did you mean 'blink'"):
        opened("blnk", "val", tmp_path)
    with pytest.raises(PlaitError, match="dataset 'blink' has no split 'train': it has validation, val, test"):
        opened("blink", "train", tmp_path)
    with pytest.raises(PlaitError, match="dataset 'blink' has no option 'images'; it takes hub"):
        opened("blink", "val", tmp_path, images="x")


def test_a_run_is_measured_on_published_files_with_and_without_its_world(run, blink, tmp_path):
    assert cli.main(["eval", run, "--bench", "blink:val", f"--data={blink}", "--ablate=world", "--out=out"]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["count"] == 28 and metrics["data"] == "blink: 28 of 28 samples"
    assert {"accuracy", "task_mean", "accuracy/Relative_Depth"} <= metrics["figures"].keys()
    assert "accuracy/world_off" in metrics["figures"]


def test_training_measures_itself_on_a_named_dataset(tmp_path):
    published_sets.vsr(tmp_path / "data/vsr", tmp_path / "data/coco/val2017")
    (tmp_path / "c.yaml").write_text(TINY.replace("EVALUATE", "[{bench: 'vsr_random:test', ablate: world}]"))
    assert cli.main(["train", "c.yaml"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if "eval/vsr_random:test/accuracy" in row]
    assert {"eval/vsr_random:test/accuracy/world_off", "eval/vsr_random:test/task_mean"} <= row.keys()


def test_empty_and_unread_answers_are_counted_and_wrong(run, blink, tmp_path, monkeypatch, capsys):
    given = iter(["", "(B)", "hm", " "] + ["(A)"] * 24)
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, **_: [next(given) for _ in examples])
    assert cli.main(["eval", run, "--bench", "blink", f"--data={blink}", "--out=out"]) == 0
    said = capsys.readouterr().out
    assert "  empty_answers            2\n" in said and "  unparsed_answers         1\n" in said
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["figures"]["empty_answers"], metrics["figures"]["unparsed_answers"]) == (2, 1)
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert sorted((row["failed"], row["correct"]) for row in rows if "failed" in row) == [
        ("empty", False), ("empty", False), ("unparsed", False),
    ]  # fmt: skip
    assert metrics["figures"]["accuracy"] == sum(row["answer"] == row["gold"] for row in rows) / 28
    page = (tmp_path / "out/page.html").read_text()
    assert "empty_answers" in page and "unparsed" in page


def test_failed_answers_are_counted_in_each_way(run, blink, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, **_: ["" if not e.world_tokens else "hm" for e in examples])
    assert cli.main(["eval", run, "--bench", "blink_counting", f"--data={blink}", "--ablate=world", "--out=out"]) == 0
    figures = json.loads((tmp_path / "out/metrics.json").read_text())["figures"]
    counts = {name: value for name, value in figures.items() if "answers" in name}
    assert counts == {"unparsed_answers": 2, "empty_answers/world_off": 2, "unparsed_answers/world_shuffled": 2}
    assert "  empty_answers/world_off  2\n" in capsys.readouterr().out


def test_answers_without_published_gold_are_written_and_not_scored(run, blink, tmp_path, capsys):
    assert cli.main(["eval", run, "--bench", "blink:test", f"--data={blink}", "--out=out"]) == 2
    assert "none of 14 held-out samples can be used: its answer is not published; the model's is in pred" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()][1:]
    assert len(rows) == 14 and any(row["answer"] for row in rows)


def test_fields_of_other_data_that_are_named_alike_change_nothing():
    fields = {"statement": "The cat is red", "regions": [1], "choices": ["x", "y"], "group": "17"}
    assert judge("red", "red", fields).correct and judge("(B)", "B", fields, "Which?\n(A) y\n(B) x").correct


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server.serving(monkeypatch, tmp_path / "home") as server:
        for name, value in {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": tmp_path / "home/datasets"}.items():
            monkeypatch.setattr(importlib.import_module("datasets.config"), name, value)
        yield server


def test_blink_is_read_from_the_hub(run, tmp_path, hub):
    configs = [{"config_name": task, "data_files": [{"split": split, "path": f"{task}/{split}-*"} for split in ("val", "test")]}
               for task in BLINK_TASKS]  # fmt: skip
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
    hub.repositories["datasets", "BLINK-Benchmark/BLINK"] = Repository({**published_sets.blink_files(), "README.md": card})
    assert cli.main(["eval", run, "--bench", "blink_counting:val", "--data=hub", "--out=out"]) == 0
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert sorted(row["id"] for row in rows) == ["blink_counting/val_Counting_3", "blink_counting/val_Counting_4"]


def test_pictures_of_vsr_are_fetched_by_their_links_from_the_hub_alone(tmp_path, hub, monkeypatch):
    pytest.importorskip("httpx")
    monkeypatch.setattr(remote, "_servers", remote._Servers())
    monkeypatch.setenv("SECRET", "sesame")
    with faulty_server.serving({"a.png": photo(7)}) as server:
        links = [f"{server.url}/a.png", f"{server.url}/$SECRET", "file:///etc/passwd"]
        rows = [{**published_sets.VSR[0], "image_link": link} for link in links]
        published_sets.lines(tmp_path / "there/test.jsonl", rows)
        hub.repositories["datasets", "cambridgeltl/vsr_random"] = Repository({"test.jsonl": (tmp_path / "there/test.jsonl").read_bytes()})
        source = datasets.open_dataset(
            SourceEntry(source="dataset", name="vsr_random", options={"hub": True}), "test", root=tmp_path, cache=tmp_path / "cache"
        )
        assert source[0]["images"] == [photo(7)] and source.may_wait
        for i in (1, 2):
            with pytest.raises(BadSample, match=r"no image images/000000000001.jpg in "):
                source[i]
        assert not any("sesame" in str(asked) for asked in server.asked)
        with pytest.raises(BadSample, match=r"no image images/000000000001.jpg in "):
            opened("vsr_random", "test", tmp_path / "there", root=tmp_path)[0]


def test_vsr_is_read_from_the_hub_with_pictures_of_this_machine(tmp_path, hub):
    published_sets.vsr(tmp_path / "there", tmp_path / "coco/val2017")
    hub.repositories["datasets", "cambridgeltl/vsr_random"] = Repository({"test.jsonl": (tmp_path / "there/test.jsonl").read_bytes()})
    source = opened("vsr_random", "test", tmp_path / "nowhere", root=tmp_path, hub=True)
    assert [source[i]["fields"]["statement_is_true"] for i in range(3)] == [False, True, True]
    with pytest.raises(PlaitError, match=r"cannot download dev.jsonl of cambridgeltl/vsr_random: "):
        opened("vsr_random", "dev", tmp_path / "nowhere", root=tmp_path, hub=True)
