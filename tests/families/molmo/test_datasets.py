"""Every named dataset, read from tiny copies of its published files; and what is wrong with one, in one line."""

import re
from pathlib import Path

import numpy as np
import pytest

from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.config.schema import SourceEntry
from plait.data import image_files
from plait.data.sources.contract import Absent
from plait.errors import BadSample, PlaitError
from plait.families.molmo.catalogue import datasets, diagrams, wordings
from plait.families.molmo.catalogue.datasets import DATASETS, open_dataset
from plait.families.molmo.catalogue.pixmo import PIXMO
from plait.families.published_rows import url_hash
from tests.families.molmo import published_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return published_sets.write_all(tmp_path_factory.mktemp("datasets"))


def opened(root, name, split, **more):
    return open_dataset(SourceEntry(source="dataset", name=name, **more), split, root=root, cache=None)


def turns_of(sample):
    """(question, answer) of every annotation."""
    conversations = [annotation["messages"] for annotation in sample.get("annotations", [])] or [sample["messages"]]
    return [tuple(turn["content"] for turn in turns) for turns in conversations]


SPLITS = [(name, split) for name, spec in DATASETS.items() for split in spec.splits]


@pytest.mark.parametrize(("name", "split"), SPLITS, ids=[f"{name}-{split}" for name, split in SPLITS])
def test_every_dataset_and_split_gives_pictures_and_answers(root, name, split):
    source = opened(root, name, split)
    hidden = (name.startswith("mmmu") or name == "math_vista") and split == "test"  # their answers are not published
    for i in {0, len(source) - 1}:
        sample = source[i]
        assert sample["images"][0][:4] == b"\x89PNG"
        assert all((turns[0] or "transcripts" in name) and turns[-1] and (len(turns) == 1) == hidden for turns in turns_of(sample))
        assert sample["fields"]["dataset"] == name


FIRST = {  # name, split: the first sample's questions and answers (prompts that are drawn stand as ...)
    ("vqa2", "train"): [("What is 0?", "red"), ("What is 1?", "red")],
    ("okvqa", "train"): [("What is 0?", "reds")],
    ("vqa2", "validation"): [("What is 0?", "red")],
    ("text_vqa", "validation"): [("what does it say?", "stop")],
    ("chart_qa", "test"): [("How much in 2000?", "0")],
    ("a_okvqa_mc", "validation"): [("Why?\nA: a\nB: b\nC: c\nD: d\n", "C")],
    ("a_okvqa_da", "train"): [("Why?", "rain")],
    ("science_qa", "test"): [("Mammals have hair.\nWhich is a mammal?\nA: frog\nB: cat\n", "B")],
    ("tabwmp", "validation"): [("How many red?", "1,200")],
    ("ai2d", "test"): [("What eats flies?\nA: sun\nB: moon\nC: frog\n", "C")],
    ("figure_qa", "train"): [("Is red the minimum?", "0"), ("Is red the minimum?", "1")],
    ("pixmo_docs_charts", "validation"): [("a?", "1"), ("b?", "2")],
    ("pixmo_ask_model_anything", "train"): [("Who?", "A frog.")],
    ("pixmo_point_explanations", "train"): [("Where is the frog?", 'It sits <point x="10.0" y="20.0" alt="frog">here</point>.')],
}


@pytest.mark.parametrize(("wanted", "first"), FIRST.items(), ids=["-".join(key) for key in FIRST])
def test_questions_and_answers_are_those_of_the_files(root, wanted, first):
    assert turns_of(opened(root, *wanted)[0]) == first


def test_pointing_and_counting_forms_say_the_same_points(root):
    points = '<points x1="10.0" y1="20.0" x2="50.0" y2="60.0" alt="frogs {0}">frogs {0}</points>'
    assert turns_of(opened(root, "pixmo_points", "train")[0])[0][1] == points.format("pointing")
    counted = f"Counting the {points.format('counting')} shows a total of 2."
    assert turns_of(opened(root, "pixmo_points_high_freq_counting", "train")[0])[0][1] == counted


def test_captions_come_with_one_of_their_transcripts_by_style_alone(root):
    source = opened(root, "pixmo_cap_with_transcripts", "train")
    samples = [source.draw(0, key) for key in range(40)]
    spoken = {turns_of(sample)[1] for sample in samples}
    assert spoken == {("", "So here we"), ("", "a frog sits.")}  # which one is drawn anew each epoch
    assert [annotation["style"] for annotation in samples[0]["annotations"]] == ["long_caption", "transcript"]
    assert {turns_of(sample)[0][1] for sample in samples} == {"A long caption."}
    assert opened(root, "cockatoo_and_transcript_712k_sept6", "validation")[0]["annotations"][1]["style"] == "transcript"
    with pytest.raises(BadSample, match="a caption without a transcript"):
        source.spec.convert({"caption": "A frog.", "transcripts": []}, np.random.default_rng(0), None)


def test_pixmo_count_turns_pixels_into_percent_and_keeps_counts_without_points(root):
    assert 'x="50.0" y="25.0"' in turns_of(opened(root, "pixmo_count", "train")[0])[0][1]
    held = opened(root, "pixmo_count_counting", "test")[0]
    assert (held["fields"]["count"], turns_of(held)[0][1]) == (1, "1")


def test_actions_have_places_in_percent_and_steps_of_their_own_split(root):
    source = opened(root, "android_control", "validation")
    assert [turns_of(source[i])[0][1] for i in range(len(source))] == ["click 50.0 25.0", "input_text frogs", "navigate_back"]
    assert source[0]["id"].startswith("android_control/5-")


def test_actions_are_asked_for_in_four_forms_of_which_benches_ask_one(root):
    goal, step = "Find frogs", "Tap search"
    asked = {
        "_ll": (f"low_level: {step}", "click 50.0 25.0"),
        "_hl_ll": (f"high_level: {goal} low_level: {step}", "click 50.0 25.0"),
        "_hl": (f"high_level: {goal}", "click 50.0 25.0"),
    }
    for name, turns in asked.items():
        assert turns_of(opened(root, f"android_control{name}", "test")[0]) == [turns]
    planned = (f"high_level_cot: {goal}", f"Plan: {step} Action: click 50.0 25.0")
    assert turns_of(opened(root, "android_control", "train")[0]) == [*asked.values(), planned]


def test_letters_in_the_picture_are_answered_as_they_stand_where_all_options_but_one_are_some(root):
    samples = list(opened(root, "ai2d", "train"))
    lettered = [sample for sample in samples if sample["fields"]["task"] != "plain"]
    standing = ([("What eats flies?\nA\nF\nnone\n", "F")], "ai2_diagram_no_letter")
    lines = ([("Which is it?\nA: a\nB: a frog\nC: a fly\n", "C")], "ai2_diagram")
    assert [(turns_of(sample), sample["fields"]["style"]) for sample in lettered] == [standing, standing, lines, lines]
    assert [sample["fields"]["task"] for sample in lettered] == ["opaque", "transparent"] * 2


def test_letters_cover_a_diagrams_labels_or_stand_beside_what_shows_through(root):
    plain, opaque, transparent = (
        image_files.decode_rgb((root / "ai2d/images/1.png").read_bytes()).astype(int),
        *(image_files.decode_rgb(sample["images"][0]).astype(int) for sample in list(opened(root, "ai2d", "train"))[1:3]),
    )
    corner = np.array([25, 249, 255])
    assert (opaque[9, 9] == corner).all() and (opaque[31, 39] == corner).all()  # a corner of each box
    assert abs(transparent[22, 38] - (corner + plain[22, 38]) / 2).max() <= 1  # half the colour, half the label
    assert (opaque[8:25, 8:41] == 0).all(-1).any() and not (opaque[8:25, 8:41] == 255).all(-1).any()  # a black letter in it
    assert (transparent[0:10, 0:8] == 255).all(-1).any()  # a white ground for the letter, outside
    assert (opaque[:, 45:] == plain[:, 45:]).all() and (transparent[:, 45:] == plain[:, 45:]).all()


def test_diagrams_held_out_are_the_published_shuffles_first():
    names = [str(n) for n in range(4000)]
    others = np.arange(100, 4000)
    np.random.RandomState(5961).shuffle(others)
    splits = {split: diagrams._diagrams_of_split(split, names, set(names[:100])) for split in ("train", "validation", "test")}
    assert splits["validation"] == {str(n) for n in others[:384]}
    assert (len(splits["train"]), len(splits["test"])) == (3516, 100)
    assert splits["train"] | splits["validation"] | splits["test"] == set(names)


def test_free_answers_of_a_okvqa_are_all_trained_on_and_the_scorable_evaluated(root):
    assert [len(opened(root, "a_okvqa_da", split)) for split in ("train", "validation")] == [2, 1]
    assert datasets.rule_of("a_okvqa_da") == "a_okvqa"


PACKED = {  # dataset, packing: rows of each sample
    ("vqa2", None): [2, 1],
    ("vqa2", "one"): [1, 1, 1],
    ("text_vqa", None): [1, 1, 1],
    ("text_vqa", "all"): [2, 1],
    ("plot_qa", None): [30],
    ("plot_qa", "half"): [15, 15],
    ("vqa2", "half"): [1, 1, 1],
}


@pytest.mark.parametrize(("wanted", "rows"), PACKED.items(), ids=[f"{name}-{packing}" for name, packing in PACKED])
def test_questions_of_one_picture_are_packed_as_the_reference_or_the_entry_has_it(root, wanted, rows):
    name, packing = wanted
    source = opened(root, name, "train", options={} if packing is None else {"packing": packing})
    assert [len(members) for members in source.members] == rows
    assert [min(count, datasets.MAX_ANNOTATIONS) for count in rows] == [len(turns_of(source[i])) for i in range(len(source))]


def test_packings_are_the_references(root):
    alone = {"okvqa", "text_vqa", "chart_qa", "doc_qa", "info_qa", "st_qa", "ai2d", "a_okvqa_mc", "a_okvqa_da"}
    alone |= {"pixmo_cap", "pixmo_cap_with_transcripts", "pixmo_count", "pixmo_count_counting"}
    assert {name for name, spec in DATASETS.items() if spec.group and spec.packing == "one"} == alone
    assert [name for name, spec in DATASETS.items() if spec.packing == "half"] == ["pixmo_point_explanations"]


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("vqa2", {"packing": "two"}, "dataset 'vqa2': packing is 'two'; it is one of all, half, one"),
        ("tabwmp", {"packing": "all"}, "dataset 'tabwmp' has no rows that share a picture, so packing changes nothing: leave it out"),
        ("vqa2", {"pack": 1}, "dataset 'vqa2' has no option 'pack'; it takes hub, packing"),
    ],
)
def test_a_wrong_packing_is_told_in_one_line(root, name, options, line):
    with pytest.raises(PlaitError) as error:
        opened(root, name, "train", options=options)
    assert str(error.value) == line


def test_human_and_augmented_charts_weigh_the_same_in_all(root):
    rows = opened(root, "chart_qa", "validation")
    weights = [rows[i]["weight"] for i in range(len(rows))]
    assert weights[0] * 7398 == pytest.approx(weights[-1] * 20901)  # as many questions as ChartQA's training set has of each
    assert weights[0] == pytest.approx(2 * 20901 / 28299)  # the published 1.477, and 0.523


def test_annotations_of_one_picture_are_at_most_so_many_and_drawn_anew(root):
    source = opened(root, "plot_qa", "train")
    first, second = (turns_of(source.draw(0, key)) for key in (1, 2))
    assert (len(source), len(first), len(set(first))) == (1, datasets.MAX_ANNOTATIONS, datasets.MAX_ANNOTATIONS)
    assert set(first) != set(second)
    assert turns_of(source.draw(0, 1)) == first


@pytest.mark.parametrize("name", ["pixmo_cap", "st_qa"])
def test_held_out_pictures_are_no_part_of_training(root, name):
    train, held = (opened(root, name, split) for split in ("train", "validation"))
    column = train.rows.column(train.spec.group)
    pictures = [{column[i] for members in source.members for i in members} for source in (train, held)]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == 300
    assert 0 < len(pictures[1]) < 15  # one in a hundred by hash: 3 expected


def test_the_pointing_benchmarks_pictures_are_no_part_of_training(root):
    source = opened(root, "pixmo_points", "train")
    urls = source.rows.column("image_url")
    assert published_sets.URLS[1] not in {urls[i] for members in source.members for i in members}


def test_a_missing_picture_is_a_bad_sample_that_says_which(root, tmp_path):
    published_sets.text_vqa(tmp_path)
    (tmp_path / "text_vqa/train_images/img0.jpg").unlink()
    with pytest.raises(BadSample, match=r"no image train_images/img0\.jpg in "):
        opened(tmp_path, "text_vqa", "validation")[0]
    with pytest.raises(BadSample, match=r"the image of https://none is not there: no file [0-9a-f]{64} in"):
        datasets.DatasetFiles(Path("x"), tmp_path).image_of_url("https://none")


WRONG = {
    ("vqa3", "train"): "dataset 'vqa3' is unknown: did you mean 'vqa2'?",
    ("vqa2", "test"): "dataset 'vqa2' has no split 'test': it has train, validation",
    ("vqa2", "validatoin"): "dataset 'vqa2' has no split 'validatoin': did you mean 'validation'?",
}


@pytest.mark.parametrize(("wanted", "line"), WRONG.items())
def test_a_wrong_dataset_or_split_is_told_in_one_line(root, wanted, line):
    with pytest.raises(PlaitError) as error:
        opened(root, *wanted)
    assert line in str(error.value)


def test_a_dataset_that_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(Absent) as error:
        opened(tmp_path, "vqa2", "train")
    assert f"no v2_OpenEnded_mscoco_train2014_questions.json in {tmp_path / 'vqa2'}" in str(error.value)
    assert "Get questions, annotations and COCO 2014 images from https://visualqa.org/download.html" in str(error.value)


def test_compressed_and_cut_records_are_refused(tmp_path):
    published_sets.android_control(tmp_path)
    file = tmp_path / "android_control/android_control-00000-of-00001"
    body = file.read_bytes()
    file.write_bytes(body[:-9])
    with pytest.raises(PlaitError, match="is cut short, or no TFRecord file: record at byte"):
        opened(tmp_path, "android_control", "train")
    file.write_bytes(b"\x1f\x8b" + body)
    with pytest.raises(PlaitError, match="is compressed, and records could only be read from the start: unpack it with"):
        opened(tmp_path, "android_control", "train")


def test_the_guides_names_mean_our_datasets(root):
    for theirs, ours in datasets.ALIASES.items():
        assert datasets.spec_of(theirs) is DATASETS[ours]


def test_rows_of_pictures_that_are_not_downloaded_are_left_out_and_counted(tmp_path, caplog):
    published_sets.pixmo(tmp_path)
    whole = len(opened(tmp_path, "pixmo_points", "train"))
    assert caplog.text == ""
    lost, kept = (tmp_path / "pixmo_images" / url_hash(url) for url in published_sets.URLS[:2])
    lost.unlink()
    kept.rename(kept.with_name(f"{kept.name}.jpg"))  # with an ending it is found as well
    left = opened(tmp_path, "pixmo_points", "train")
    assert len(left) == whole - 1
    assert re.search(r"pixmo_points: \d+ of \d+ pictures have been downloaded; the rows of the others are left out", caplog.text)
    assert all(left[i]["images"] for i in range(len(left)))
    for picture in (tmp_path / "pixmo_images").iterdir():
        picture.unlink()
    with pytest.raises(
        Absent, match=r"none of the \d+ pictures of dataset pixmo_points is in .+pixmo_images: download them: plait data download"
    ):
        opened(tmp_path, "pixmo_points", "train")


def test_counting_questions_without_points_say_so(root):
    ask = opened(root, "pixmo_cap_qa", "train")[0]["messages"][0]["content"]
    assert ask.endswith("How many?") and ask.removesuffix("How many?") in wordings.NO_POINTS
    convert = PIXMO["pixmo_ask_model_anything"].convert
    asked = [
        convert({"question": q, "answer": "2"}, np.random.default_rng(i), None)[0].question for i, q in enumerate(["How many?", "Who?"])
    ]
    assert asked[0].removesuffix("How many?") in wordings.NO_POINTS and asked[1] == "Who?"


def test_labels_of_points_are_in_lower_case():
    row = {"label": " Red Frogs", "points": [{"x": 10, "y": 20}]}
    for name in ("pixmo_points", "pixmo_points_counting"):
        (conversation,) = PIXMO[name].convert(row, np.random.default_rng(0), None)
        assert "red frogs" in conversation.question
        assert '<point x="10.0" y="20.0" alt="red frogs">red frogs</point>' in conversation.answer


@pytest.mark.parametrize(("wanted", "number"), [("CAPTION", 23), ("POINT", 43), ("COUNT", 57), ("NO_POINTS", 32)])
def test_there_are_as_many_wordings_as_the_published_model_was_trained_on(wanted, number):
    texts = getattr(wordings, wanted)
    assert len(set(texts)) == len(texts) == number
    assert all(text.count("{}") == (wanted in ("POINT", "COUNT")) for text in texts)
    assert wanted != "NO_POINTS" or all(text[-1].isspace() for text in texts)
    drawn = {wordings.one_of(texts, np.random.default_rng(i)) for i in range(1000)}
    assert drawn == set(texts)


def test_missing_pixmo_sets_are_told_with_the_commands_that_fetch_files_and_pictures(tmp_path):
    with pytest.raises(Absent) as absent:
        opened(tmp_path, "pixmo_cap", "train")
    files, pictures = absent.value.commands
    assert files == f"hf download allenai/pixmo-cap --repo-type dataset --local-dir {tmp_path}/pixmo-cap"
    assert pictures == f"plait data download hf://datasets/allenai/pixmo-cap {tmp_path}/pixmo_images --as-files (about 164 GB, 47 minutes)"
    assert f"{files}; {pictures} (estimates assume 0.3 MB a picture, 77 % of the links alive," in str(absent.value)


def test_training_sources_that_are_not_there_are_told_together(tmp_path):
    config = tmp_path / "listed.yaml"
    entries = ", ".join(f"{{source: dataset, name: {name}}}" for name in ("pixmo_cap", "pixmo_points", "pixmo_points_counting"))
    config.write_text(
        f"family: molmo\npreset: debug\nrun: run\ndata: {{train: [{entries}], root: .}}\ntrain: {{steps: 1}}\n", encoding="utf-8"
    )
    with pytest.raises(
        PlaitError, match=r"^data\.train: 3 of its 3 datasets are not there \(pixmo_cap, pixmo_points, .*; the first:"
    ) as refused:
        open_training(open_config(config, []).config)
    fetch = str(refused.value).partition("these commands fetch what can be fetched so (")[2]
    assert re.findall(r"plait data download hf://datasets/allenai/pixmo-(\S+) ", fetch) == ["cap", "points"]
    assert "without" not in fetch


def test_a_mixture_tells_the_commands_of_all_its_sets_once(tmp_path):
    config = tmp_path / "mixed.yaml"
    text = "family: molmo\npreset: debug\nrun: run\ndata: {mixture: 3.2-synthetic, root: .}\ntrain: {steps: 1}\n"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(PlaitError) as refused:
        open_training(open_config(config, []).config)
    fetch = str(refused.value).partition("these commands fetch what can be fetched so (")[2]
    sets = ["ask-model-anything", "cap", "cap-qa", "point-explanations", "points", "count"]
    assert re.findall(r"plait data download hf://datasets/allenai/pixmo-(\S+) ", fetch) == sets
    assert re.findall(r"hf download allenai/pixmo-(\S+) ", fetch) == sets
