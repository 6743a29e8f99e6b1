"""Scores of captions: hand-made ones with known values, the published files, and `plait eval` with intervals and ablation."""

import json
import sys

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.errors import PlaitError
from plait.families.ablation import ablated
from plait.families.theworld import evaluate
from plait.families.theworld.benchmarks.captions import counted, scores, words
from plait.families.theworld.catalogue import datasets
from tests import hub_server

from . import published_sets
from .conftest import photo, sample
from .test_published import TINY, hub, run  # noqa: F401  fixtures

pytest.importorskip("pycocoevalcap")
pytest.importorskip("sacrebleu")


def test_words_are_cut_as_coco_cuts_them():
    assert words("A man's dog doesn't run, in the black-and-white photo!") == "a man 's dog does n't run in the black-and-white photo"
    assert words(" ?! ") == ""


def test_bleu_of_the_papers_example():
    """Papineni et al. 2002: of seven "the" two are shared; the nearest reference has as many words, so there is no penalty."""
    rows = counted(["the the the the the the the"], [["The cat is on the mat.", "There is a cat on the mat."]])
    assert scores(rows)["bleu_1"] == pytest.approx(2 / 7)
    assert scores(rows)["bleu_2"] == 0


def test_bleu_is_of_all_captions_together_with_one_penalty():
    """3 of 4 words and 1 of 2 pairs shared, 4 words against 6: exp(1 - 6/4) x (3/4 x 1/2)^(1/2). A mean of captions would differ."""
    figures = scores(counted(["a cat", "red dog"], [["a cat sleeps"], ["a red cube"]]))
    assert figures["bleu_1"] == pytest.approx(2.718281828 ** (1 - 6 / 4) * 3 / 4)
    assert figures["bleu_2"] == pytest.approx(2.718281828 ** (1 - 6 / 4) * (3 / 4 * 1 / 2) ** 0.5)


def test_rouge_l_is_that_of_the_best_reference():
    """Lin 2004: of four words three are in order, so precision, recall and any mean of them are 3/4."""
    assert scores(counted(["police kill the gunman"], [["the gunman", "police killed the gunman"]]))["rouge_l"] >= 0.75
    assert scores(counted(["police kill the gunman"], [["police killed the gunman"]]))["rouge_l"] == pytest.approx(0.75)


def test_cider_is_ten_for_equal_captions_and_nothing_for_strange_ones():
    """Vedantam et al. 2015: each n-gram length counts a quarter; two words have no groups of three or four."""
    captions = ["one small red cube", "two dogs", "a lamp"]
    rows = counted(captions, [["one small red cube"], ["two dogs"], ["some birds fly"]])
    assert [row["cider"] for row in rows] == [pytest.approx(10.0), pytest.approx(5.0), 0.0]


def test_a_word_that_all_pictures_have_is_worth_nothing():
    assert counted(["a", "a dog"], [["a"], ["a dog"]])[0]["cider"] == 0


def test_rows_have_their_part_and_an_empty_caption_scores_nothing(make, monkeypatch):
    _, model, inputs = make()
    given = iter(["a cat", "", "red"])
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, **_: [next(given) for _ in examples])
    dogs, red = {"captions": ["a dog", "dogs"]}, {"references": ["red"]}
    samples = [sample(1, say="a cat"), sample(2, fields=dogs), sample(3, say="?!"), sample(4, fields=red)]
    bench = evaluate.benches["captions"]
    rows = bench.finish(bench.predict(model, samples, inputs, batch=4, moment=""))
    assert [row.get("references") for row in rows] == [["a cat"], ["a dog", "dogs"], None, ["red"]]
    assert rows[2]["bad"] == "no caption to compare with: neither `references` nor `captions`, nor a text of the assistant, has a word"
    figures = bench.summarise(rows)
    assert (figures["samples"], figures["bad_samples"], figures["empty_answers"]) == (3, 1, 1)
    assert (rows[1]["rouge_l"], rows[1]["cider"], rows[1]["failed"]) == (0.0, 0.0, "empty") and rows[0]["rouge_l"] == 1.0


@pytest.mark.parametrize(
    ("fields", "references", "reason"),
    [
        ({"references": "cat"}, ["cat"], None), ({"captions": "a dog"}, ["a dog"], None), ({"references": None}, ["a cube"], None),
        ({"references": []}, [], "`references` is empty"), ({"references": " ?"}, [], "`references` has no word"),
        ({"captions": [None]}, [], "`captions` holds other than texts"), ({"references": {"a": "cat"}}, [], "holds other than texts"),
    ],
)  # fmt: skip
def test_references_are_a_text_or_a_list_of_texts(fields, references, reason):
    given = sample(1, say="a cube", fields=fields)
    assert evaluate._references(given) == references
    lacks = evaluate._CAPTIONS.lacks(given)
    assert lacks is None if reason is None else reason in lacks


def test_each_way_of_an_ablation_weighs_words_by_all_references(make, monkeypatch):
    _, model, inputs = make()
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, **_: ["two red dogs" for _ in examples])
    samples = [sample(1, say="two red dogs"), sample(say="a cube"), sample(2, say="a lamp")]
    bench = ablated(evaluate.benches["captions"], "world", evaluate.ablations["world"])
    rows = bench.finish(bench.predict(model, samples, inputs, batch=3, moment=""))
    assert "ways" not in rows[1] and rows[0]["cider"] == pytest.approx(7.5)
    assert [rows[0]["ways"][way]["cider"] for way in ("off", "shuffled")] == [rows[0]["cider"]] * 2
    figures = bench.summarise(rows)
    assert figures["cider/world_off"] == figures["cider"] == pytest.approx(2.5)


def test_texts_without_pictures_beside_others_do_not_end_an_ablation(make):
    _, model, inputs = make()
    bench = ablated(evaluate.benches["accuracy"], "world", evaluate.ablations["world"])
    rows = bench.predict(model, [sample(1), sample(), sample(2)], inputs, batch=3, moment="")
    figures = bench.summarise(bench.finish(rows))
    assert (figures["samples"], figures["samples/with_world"]) == (3, 2) and "accuracy/world_off" in figures


def test_packages_that_are_missing_are_told_before_anything_is_answered(make, monkeypatch):
    _, model, inputs = make()
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(
        PlaitError, match=r"captions are scored by the packages sacrebleu and pycocoevalcap \(.*\): pip install 'plait\[captions\]'"
    ):
        evaluate.benches["captions"].predict(model, [sample(1)], inputs, batch=1, moment="")


@pytest.mark.parametrize(
    ("name", "split", "count"), [("coco_captions", "val2017", 2), ("coco_karpathy", "test", 1), ("flickr30k", "test", 2)]
)
def test_published_captions_are_read_with_all_references(tmp_path, name, split, count):
    root = published_sets.coco(tmp_path)
    source = datasets.open_dataset(SourceEntry(source="dataset", name=name), split, root=root, cache=None)
    assert len(source) == count
    assert source[0]["fields"]["references"] == published_sets.CAPTIONS[0] and source[0]["images"] == [photo(1)]
    assert source[0]["messages"][0]["content"] == "Provide a one-sentence caption for the provided image."


def test_a_run_is_measured_with_intervals_and_its_figures_are_found_again(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    rows = [{"image": f"{n}.png", "captions": [f"{n} cats", "some cats"], "caption": f"{n} cats"} for n in range(6)]
    published_sets.lines(tmp_path / "set/data.jsonl", rows)
    for n in range(6):
        published_sets.picture(tmp_path / f"set/{n}.png", n)
    monkeypatch.setattr(evaluate, "answers", lambda model, inputs, examples, **_: [f"{place} cats" for place, _ in enumerate(examples)])
    command = ["eval", run, "--bench", "captions", f"--data={tmp_path}/set/data.jsonl", "--ablate=image", f"--out={tmp_path}/out"]
    assert cli.main(command) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert next(iter(metrics["ablation"])) == "cider"
    assert {"cider", "bleu_1", "bleu_4", "rouge_l"} <= metrics["figures"].keys() and "bleu_1" in metrics["intervals"]
    monkeypatch.setattr(evaluate, "answers", None)
    assert cli.main(command) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["figures"] == metrics["figures"]


def test_training_measures_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published_sets.coco(tmp_path / "data")
    (tmp_path / "c.yaml").write_text(TINY.replace("EVALUATE", "[{bench: 'coco_captions:val2017', ablate: world}]"))
    assert cli.main(["train", "c.yaml"]) == 0
    found = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in found if "eval/coco_captions:val2017/cider" in row]
    assert {"eval/coco_captions:val2017/bleu_4", "eval/coco_captions:val2017/rouge_l/world_off"} <= row.keys()


def test_captions_are_read_from_the_hub(tmp_path, hub):  # noqa: F811
    rows = [{"question_id": "1", "image": {"bytes": photo(1), "path": None}, "question": "?", "answer": published_sets.CAPTIONS[0]}]
    hub.repositories["datasets", "lmms-lab/COCO-Caption2017"] = hub_server.Repository(
        {"data/val-00000-of-00001.parquet": published_sets.table(rows, "image")}
    )
    entry = SourceEntry(source="dataset", name="coco_captions", options={"hub": True})
    source = datasets.open_dataset(entry, "val2017", root=tmp_path, cache=tmp_path / "cache")
    assert source[0]["fields"]["references"] == published_sets.CAPTIONS[0] and source[0]["images"] == [photo(1)]
