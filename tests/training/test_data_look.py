"""The look at the data before a stage: what it says of each source, and which source it refuses."""

import json
import os
import re
import time

import pytest
import torch

from plait import cli
from plait.assembly import data_look, overlap
from plait.assembly.configuration import open_config
from plait.assembly.model import build_model
from plait.config.schema import SourceEntry
from plait.data import image_files
from plait.data.sources.open import open_source
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families.limits import Limits
from tests import processes, toy_family
from tests.conftest import REAL_DATA
from tests.data.packing import picture

NONE = Limits()


class Inputs:
    """Encodes anything but what is marked, and says how much of it was cut."""

    def encode(self, sample, key):
        if sample["fields"].get("broken"):
            raise RuntimeError("cannot encode")
        return sample["fields"].get("lost", 0)

    def collate(self, examples):
        return {"cut": torch.tensor(examples)}


def look(sources, held=(), limits=NONE):
    return data_look.look(sources, Inputs(), limits, held, 0)


def opened(folder, records, name="a", **more):
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture(i))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_source(SourceEntry(source="jsonl", path=str(path), **more), seed=0)


def test_a_line_says_what_is_bad_without_text_and_of_which_size(tmp_path):
    records = [{"image": "0.png", "caption": "x"}, {"image": "1.png"}, {"caption": None}, {"caption": ""}, {"caption": "y", "broken": 1}]
    (found,) = look([opened(tmp_path, records)])
    side = "x".join(map(str, found.sizes[0]))
    assert (found.read, found.bad.total(), found.without_text) == (5, 3, 1)
    bad = "3 bad (1 x no text: `caption` is null; 1 x an empty answer"
    assert found.text().startswith(f"5 samples, all looked at: {bad}")
    assert re.search(
        rf"; 1 x RuntimeError: cannot encode \(test_data_look.py:\d+\)\), 1 without text; pictures of {side} px$", found.text()
    )
    assert data_look.table([found]) == [("jsonl:a.jsonl", found.text())]
    assert any(reason.startswith("RuntimeError: cannot encode (test_data_look.py:") for reason in found.bad)


def test_pictures_that_the_family_refuses_for_want_of_text_are_counted_as_without_text(tmp_path, capsys):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "2.txt").write_text("a cat")
    tree = f"family: theworld\npreset: tiny\ndata:\n  train: [{{source: folder, path: {tmp_path}}}]\n"
    (tmp_path / "c.yaml").write_text(f"{tree}train: {{steps: 1, global_batch: 1}}\n")
    assert cli.main(["data", "inspect", str(tmp_path / "c.yaml"), f"--out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert "3 samples, all looked at: 2 bad (2 x no assistant turn" in said and "), 2 without text" in said


def test_all_reasons_are_told_with_their_counts_up_to_eight_and_the_others_are_counted(tmp_path):
    records = [{"image": f"none{i}.png", "caption": "x"} for i in range(11)]
    (found,) = look([opened(tmp_path, [{"caption": "y"}, {"caption": None}, {"caption": None}, *records])])
    reasons = found.text().partition("bad (")[2].partition(")")[0]
    assert reasons.startswith("2 x no text: `caption` is null; 1 x ") and reasons.endswith("; and 4 more reasons")
    assert len(re.findall(r"(?:^|; )\d+ x ", reasons)) == 8


def test_held_out_samples_among_the_training_data_are_told(tmp_path):
    train = opened(tmp_path, [{"caption": text, "image": "0.png"} for text in "abcd"])
    held = opened(
        tmp_path, [{"caption": text, "image": "0.png"} for text in "bx"] + [{"caption": "c", "image": "1.png"}, {"caption": ""}], "b"
    )
    (found,) = look([train], [held])
    assert ": 1 held out too, 4 with a held-out picture (4 of 4 compared with 3 of 4 held out); " in found.text()
    (found,) = look([opened(tmp_path, [{"caption": "z", "image": "2.png"}], "c")], [held])
    assert (found.overlap.compared, found.overlap.held_out.compared) == (1, 3)
    assert found.text().startswith("1 samples, all looked at: all good; pictures of ")


def test_clips_with_the_text_of_a_held_out_one_are_other_samples_and_an_equal_clip_is_told(tmp_path):
    train = opened(tmp_path, [{"frames": frames, "caption": "left"} for frames in (["0.png", "1.png"], ["1.png", "0.png"], ["2.png"])])
    held = opened(tmp_path, [{"frames": ["0.png", "2.png"], "caption": "left"}], "b")
    (found,) = look([train], [held])
    assert found.overlap.compared == 3 and found.text() == "3 samples, all looked at: all good"
    held = opened(tmp_path, [{"frames": ["1.png", "0.png"], "caption": c} for c in ("right", "left")] + [{"frames": ["2.png"]}], "b")
    (found,) = look([train], [held])
    assert found.text().endswith(": 1 held out too, 2 with a held-out clip (3 of 3 compared with 3 of 3 held out)")


def test_where_most_samples_are_bad_that_and_the_commonest_reason_come_first(tmp_path):
    faults = [{"image": "0.png", "caption": f"too long {i}", "broken": 1} for i in range(6)] + [{"image": "none.png", "caption": "x"}]
    sound = {"caption": "of text alone"}

    def told(*rows):
        found = look([opened(tmp_path, [*faults, *rows])], limits=NEEDS)
        return data_look.without_input(found, NEEDS, ["vision"])[0], data_look.unusable(found)

    message, _ = told(sound)
    assert re.fullmatch(
        r"7 of the 8 samples looked at cannot be used, 6 for one reason, such as `RuntimeError: cannot encode \(test_data_look\.py:\d+\)`: "
        r"mend that first\. vision trains, and of the other 1 none has images: leave vision out of trainable, or say "
        r"guard\.no_input=continue",
        message,
    )
    assert told(*[sound] * 8)[0].startswith("vision trains, but none of the 8 samples looked at has images: leave vision out of ")
    (fault,) = told({"image": "0.png", "number": 3})[1]
    assert fault.startswith("jsonl:a.jsonl: 7 of the 8 samples looked at cannot be used, 6 for one reason, such as `RuntimeError: cannot ")
    assert "`: mend that first. Of the other 1 none has a caption or an answer; name its field with `columns` " in fault


def test_samples_of_several_conversations_are_compared_by_all_of_them(tmp_path):
    def record(*answers):
        return {"image": "0.png", "annotations": [{"messages": [{"role": "assistant", "content": answer}]} for answer in answers]}

    train, held = opened(tmp_path, [record("a", "b"), record("a", "c")]), opened(tmp_path, [record("a", "c")], "b")
    (found,) = look([train], [held])
    assert (found.overlap.compared, found.overlap.same, found.overlap.pictures) == (2, 1, 2)


def test_all_samples_of_both_sides_are_compared_where_they_can_be_read_quickly(tmp_path):
    """One sample of 1,500 is also one of 700 that are held out: 32 of each side would not find it."""
    train = opened(tmp_path, [{"caption": f"train {i}" if i != 777 else "both"} for i in range(1500)])
    held = opened(tmp_path, [{"caption": f"held {i}" if i != 333 else "both"} for i in range(700)], "b")
    (found,) = look([train], [held])
    assert found.text() == "1,500 samples, 32 looked at: 1 held out too (1500 of 1500 compared with 700 of 700 held out)"
    assert found.read == 32


def test_samples_that_the_model_cannot_use_are_compared_as_they_are_read(tmp_path):
    train = opened(tmp_path, [{"caption": "a", "broken": 1}, {"caption": "b", "broken": 1}])
    train.stored = False
    (found,) = look([train], [opened(tmp_path, [{"caption": "b"}], "b")])
    assert found.usable == 0 and found.text().endswith(", 1 held out too (2 of 2 compared with 1 of 1 held out)")


def test_it_is_told_of_how_many_samples_nothing_is_known(tmp_path, monkeypatch):
    train = opened(tmp_path, [{"caption": f"{i}"} for i in range(5000)])
    held = opened(tmp_path, [{"caption": f"{i}"} for i in range(200)], "b")
    (found,) = look([train], [held])
    assert (found.overlap.compared, found.overlap.held_out.compared) == (2048, 200)
    assert found.text().endswith(" (2048 of 5000 compared with 200 of 200 held out)")
    assert 50 < found.overlap.same < 110  # 200 in 5000: 82 of 2048 are expected
    train.stored = held.stored = False  # as of a source on the network
    assert look([train], [held])[0].text().endswith(" (32 of 5000 compared with 32 of 200 held out)")
    monkeypatch.setattr(overlap, "_BYTES", 10 * len(picture(0)) - 1)
    pictures = opened(tmp_path, [{"caption": f"{i}", "image": "0.png"} for i in range(50)])
    assert " (10 of 50 compared with 10 of 50 held out); " in look([pictures], [pictures])[0].text()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "0.png"}, "jsonl:a.jsonl: none of the 4 samples looked at has a caption or an answer; name its field with `columns`"),
        ({"caption": "x", "broken": 1}, r"jsonl:a.jsonl: none of the 4 samples looked at can be used: RuntimeError: cannot encode"),
    ],
)
def test_a_source_that_cannot_be_trained_is_refused(tmp_path, record, message):
    (fault,) = data_look.unusable(look([opened(tmp_path, [record] * 4)]))
    assert fault.startswith(message)


def test_a_source_of_which_nothing_can_be_read_is_refused_when_it_is_opened(tmp_path):
    with pytest.raises(PlaitError, match="none of the first 4 samples can be read"):
        opened(tmp_path, [{"caption": "x", "image": "no.png"}] * 4)


def test_pictures_alone_are_trained_where_that_is_said(tmp_path):
    records = [{"image": "0.png"}] * 3 + [{"image": "0.png", "caption": " "}]
    (found,) = looks = look([opened(tmp_path, records, allow_blank=True)])
    assert (found.without_text, found.empty, data_look.unusable(looks)) == (3, 1, [])


def test_cut_texts_and_pictures_beyond_the_limits_are_counted(tmp_path, monkeypatch):
    source = opened(tmp_path, [{"image": "0.png", "caption": "x", "lost": lost} for lost in (0, 3, 1)])
    wide, high = image_files.size(picture(0))
    monkeypatch.setattr(image_files, "MAX_PIXELS", wide * high - 1)
    (found,) = look([source], limits=Limits(image_side=min(wide, high) + 1))
    assert ": 2 cut by data.max_tokens, 3 pictures over 0 megapixels or 65535 px a side, " in found.text()
    assert f", 3 pictures with a side under the model's {min(wide, high) + 1} px; " in found.text()
    (found,) = look([source], limits=Limits(image_side=min(wide, high)))
    assert "with a side under" not in found.text()


def test_a_model_that_takes_images_or_frames_misses_neither_where_there_is_one(tmp_path):
    source = opened(tmp_path, [{"image": "0.png", "caption": "x"}, {"caption": "y"}])
    (found,) = look([source], limits=Limits(needs={"world": ("images", "frames"), "model.steps": ("frames",)}))
    assert found.text().startswith("2 samples, all looked at: 1 without images or frames, 2 without frames; ")


TEXT, SEEN = [{"caption": "a"}] * 4, [{"caption": "a"}] * 3 + [{"caption": "b", "image": "0.png"}]
NEEDS = Limits(needs={"vision": ["images"], "projector": ["images", "frames"], "model.world.steps": ["frames"]})


@pytest.mark.parametrize(
    ("records", "trainable", "faults"),
    [
        (TEXT, ["language"], []),
        (TEXT, ["language", "vision:layers.1"], ["vision trains, but none of the 8 samples looked at has images: leave vision out of"]),
        (TEXT, ["vision.lora"], ["vision trains, but none of the 8 samples looked at has images: leave vision out of"]),
        (TEXT, ["*"], ["vision trains, but none", "projector trains, but none of the 8 samples looked at has images or frames: leave"]),
        (SEEN, ["*"], []),
    ],
)
def test_parts_without_any_input_are_named_with_the_cure(tmp_path, records, trainable, faults):
    looks = look([opened(tmp_path, TEXT), opened(tmp_path, records, "b")], limits=NEEDS)
    said = data_look.without_input(looks, NEEDS, trainable)
    assert said.pop() == (
        "model.world.steps asks for them, but none of the 8 samples looked at has frames: set model.world.steps to 0, "
        "or say guard.no_input=continue"
    )
    assert [fault.startswith(start) for fault, start in zip(said, faults, strict=True)] == [True] * len(faults)
    without = 3 if records is SEEN else 4
    assert f": {without} without images, {without} without images or frames, 4 without frames" in looks[1].text()


def test_fields_that_may_be_the_picture_are_named(tmp_path):
    looks = look([opened(tmp_path, [{"caption": "a", "photo": "0.png", "n": 1}])], limits=NEEDS)
    said = data_look.without_input(looks, NEEDS, ["vision"])[0]
    assert "has images (the records have photo, n; where one is the picture, name it: columns: {image: NAME}): leave vision out" in said


def test_what_a_folder_does_not_read_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.heic").write_bytes(b"")
    source = open_source(SourceEntry(source="folder", path=str(tmp_path)), seed=0)
    (found,) = look([source])
    assert found.text().endswith("; left out: 1 of .heic: not read")


@pytest.mark.parametrize("verb", [["train"], ["data", "inspect"]], ids=" ".join)
def test_pictures_that_no_row_of_the_metadata_lists_are_told_by_the_command(tmp_path, monkeypatch, capsys, verb):
    (tmp_path / "f").mkdir()
    for name in ("a.png", "b.png", "lost.png", ".hidden.png"):
        (tmp_path / "f" / name).write_bytes(picture(0))
    (tmp_path / "f" / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"{n}.png", "text": "x"}) + "\n" for n in "ab"))
    train = {"source": "folder", "path": str(tmp_path / "f")}
    settings = {"family": "theworld", "preset": "tiny", "data": {"train": [train], "workers": 0}, "track": {"tensorboard": False}}
    (tmp_path / "a.yaml").write_text(json.dumps(settings | {"train": {"steps": 1, "global_batch": 2}}))
    monkeypatch.chdir(tmp_path)
    run = [f"--run={tmp_path / 'run'}", "--optim.schedule.warmup_steps=0"] if verb == ["train"] else []
    assert cli.main([*verb, str(tmp_path / "a.yaml"), *run]) == 0
    assert "left out: 2 of pictures that metadata.jsonl does not list" in capsys.readouterr().out


def test_the_samples_are_spread_over_the_source():
    assert data_look._spread(100, 5) == [0, 24, 49, 74, 99]
    assert data_look._spread(3, 32) == [0, 1, 2]
    assert data_look._spread(0, 32) == []


def test_many_sources_share_the_samples_that_are_looked_at(tmp_path):
    source = opened(tmp_path, [{"caption": str(i)} for i in range(40)])
    assert [found.read for found in look([source] * 64)] == [8] * 64
    assert look([source])[0].read == 32


class ThreeRanks(Ranks):
    """Rank 0 of three, of which the last has another file."""

    def gather(self, value):
        return [value, dict(value), value | {"b": "other"}]


def test_ranks_that_have_other_data_are_named_before_the_first_step():
    with pytest.raises(PlaitError, match=r"^data source b is not the same on every rank: rank 2 has other data than rank 0; every machine"):
        data_look.compare_ranks({"a": "1", "b": "2"}, ThreeRanks(0, 3, torch.device("cpu")))
    data_look.compare_ranks({"a": "1", "b": "2"}, Ranks(0, 1, torch.device("cpu")))


TEXT_ONLY = """
family: theworld
preset: tiny
model:
  tiny: {{hidden: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}
  world: {{image_size: 16}}
trainable: [projector, vision, language]
data: {{train: [{{source: jsonl, path: {path}}}], workers: 0}}
train: {{steps: 2, global_batch: 4}}
optim: {{lr: 1.0e-2, weight_decay: 0.5, schedule: {{warmup_steps: 0}}}}
track: {{tensorboard: false}}
"""


@pytest.fixture
def text_only(tmp_path):
    """A recipe of texts alone: the collected case, or its like where that is not at hand."""
    path = REAL_DATA.parent / "cases" / "textonly.jsonl"
    if not path.is_file():
        path = tmp_path / "textonly.jsonl"
        turns = [[{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a " * (i % 9 + 1)}] for i in range(32)]
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TEXT_ONLY.format(path=path))
    return recipe


def test_text_alone_does_not_start_a_run_that_trains_vision(text_only, tmp_path, capsys):
    assert cli.main(["train", str(text_only), f"--run={tmp_path / 'run'}"]) == 2
    said, error = capsys.readouterr()
    assert "  jsonl:textonly.jsonl: 32 samples, all looked at: 32 without images" in said
    assert ", 32 without images or frames" in said
    assert error.splitlines()[-1].endswith(
        "vision trains, but none of the 32 samples looked at has images: leave vision out of trainable, or say guard.no_input=continue"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_text_alone_does_not_start_a_run_of_a_model_with_a_world_encoder(text_only, tmp_path, capsys):
    assert cli.main(["train", str(text_only), f"--run={tmp_path / 'run'}", "--trainable=[language]", "--model.world.steps=0"]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "model.world asks for them, but none of the 32 samples looked at has images or frames: set model.world to off, "
            "or say guard.no_input=continue"
        )
    )


def test_a_gradient_of_zero_stops_a_run_before_anything_is_saved(text_only, tmp_path, capsys):
    blind = ["train", str(text_only), f"--run={tmp_path / 'run'}", "--guard.no_input=continue", "--trainable=[vision]"]
    assert cli.main(blind) == 2, "what a restart would meet again"
    assert "the gradient of vision was exactly 0 in the first" in capsys.readouterr().err
    assert not checkpoint.published(tmp_path / "run")
    assert cli.main([*blind, "--guard.no_gradient=continue"]) == 0


def test_where_it_is_allowed_it_is_told_and_what_sees_nothing_stays_as_it_is(text_only, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", str(text_only), f"--run={run}", "--guard.no_input=continue"]) == 0
    said = capsys.readouterr().out
    for part in ("vision", "projector"):
        assert said.index(f"  warning: {part} trains, but none of the 32 samples looked at has ") < said.index("step 2")
    bundle = build_model(open_config(run / "config.yaml").config, run, Ranks(0, 1, torch.device("cpu")))
    fresh, components = dict(bundle.model.named_parameters()), bundle.family.components(bundle.model)
    weights = integrity.locate(run).tensors("weights")
    still = {name for name, value in weights.items() if torch.equal(value, fresh[name])}
    assert still == {*components["vision"], *components["projector"]}
    assert not any(name.rpartition(".")[0] in still for name in integrity.locate(run).tensors("moments"))


def test_text_alone_trains_the_language_model_without_a_word(text_only, tmp_path, capsys):
    assert cli.main(["train", str(text_only), f"--run={tmp_path / 'run'}", "--trainable=[language]", "--model.world=off"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_samples_of_numbers_alone_are_not_taken_for_held_out_ones(tmp_path, monkeypatch, capsys):
    recipe = toy_family.install(monkeypatch, tmp_path)
    toy_family.train(recipe, tmp_path / "run", "stages=[]", "train.steps=1")
    said = capsys.readouterr().out
    assert "not compared with the held-out samples, as no picture, clip or text of them or of these can be read" in said


def test_samples_that_a_tokenizer_is_trained_without_are_counted_and_told(tmp_path, capsys):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    images = ["0.png", "1.png", "gone.png", "2.png", "gone.png", "lost.png"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"image": name, "caption": f"the {name}"}) + "\n" for name in images))
    settings = {"family": "theworld", "preset": "tiny", "run": str(tmp_path / "run"), "train": {"steps": 1, "global_batch": 2}}
    source = {"source": "jsonl", "path": str(tmp_path / "a.jsonl")}
    settings |= {"data": {"train": [source], "workers": 0}, "guard": {"max_bad_fraction": 0.9}, "track": {"tensorboard": False}}
    (tmp_path / "a.yaml").write_text(json.dumps(settings))
    assert cli.main(["train", str(tmp_path / "a.yaml"), "--optim.schedule.warmup_steps=0"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "the tokenizer learns" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: jsonl:a.jsonl: 3 of 6 samples cannot be read and the tokenizer learns without them: 2 x ")
    reasons = told[0].partition("without them: ")[2].split("; 1 x ")
    assert "gone.png" in reasons[0] and "lost.png" in reasons[1]


def other_held_out(recipe, folder, out, setting):
    """Train on two ranks with held-out data of their own; each rank writes what it raised, the second when the run's directory is gone."""
    rank, usual = os.environ["RANK"], Heartbeat.close

    def close(heart):
        usual(heart)
        while rank == "1" and (folder / "run").exists():
            time.sleep(0.01)

    Heartbeat.close = close
    with pytest.raises(PlaitError) as caught:
        toy_family.train(recipe, folder / "run", setting.format(folder=folder, rank=rank), "stages=[]")
    out.with_suffix(f".{rank}").write_text(str(caught.value))


HELD_OUT = "{{source: jsonl, path: {folder}/machine-%s/held.jsonl}}"
OTHER = {
    "source 1 of bench loss": f"data.validation=[{HELD_OUT % '{rank}'}]",
    "source 1 of bench loss, entry 1": f"evaluate=[{{{{bench: loss, data: [{HELD_OUT % '{rank}'}]}}}}, "
    f"{{{{bench: loss, data: [{HELD_OUT % '0'}]}}}}]",
}


@pytest.mark.parametrize("named", OTHER)
def test_ranks_that_have_other_held_out_data_end_before_the_first_step(tmp_path, monkeypatch, named):
    recipe = toy_family.install(monkeypatch, tmp_path)
    lines = (tmp_path / "held.jsonl").read_text().splitlines(keepends=True)
    for rank in range(2):
        (tmp_path / f"machine-{rank}").mkdir()
        (tmp_path / f"machine-{rank}" / "held.jsonl").write_text("".join(lines[: 8 - rank]))
    processes.fork(2, other_held_out, recipe, tmp_path, tmp_path / "said", OTHER[named])
    for rank in range(2):
        said = (tmp_path / f"said.{rank}").read_text()
        assert f"held.jsonl (held-out {named}) is not the same on every rank: rank 1 has other data than rank 0" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_source_that_only_another_rank_has_is_named_on_every_rank():
    class Two(Ranks):
        def gather(self, value):
            return [{"a": "1"}, {"a": "1", "b": "2"}]

    for rank in range(2):
        with pytest.raises(PlaitError, match=r"^data source b is not the same on every rank: rank 1 has other data than rank 0"):
            data_look.compare_ranks({"a": "1"}, Two(rank, 2, torch.device("cpu")))
