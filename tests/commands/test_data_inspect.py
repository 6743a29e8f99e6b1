"""`plait data inspect` shows what the run will really take, and `plait data index` says what it did."""

import base64
import contextlib
import io
import os
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from plait import cli, keys
from plait.assembly.configuration import open_config
from plait.assembly.data import open_data
from plait.assembly.held_out import choose
from plait.commands.actions import index_data
from plait.commands.actions.inspection import inspect_data as data_inspect
from plait.config import reading
from plait.config.load import load_config
from plait.config.schema import ModelSection, SourceEntry
from plait.data import images
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.sources.open import KINDS, open_source
from plait.errors import BadSample, PlaitError
from plait.families import registry
from plait.families.limits import Limits
from tests.data import latent_sets

SCENES = {"source": "scenes", "limit": 40, "options": {"size": [16, 16], "objects": 1, "sizes": ["large"], "tasks": ["colour"]}}
OTHER = {**SCENES, "name": "other", "limit": 7}


class Inputs:
    """Turns pixels by the key in training, so that another key, or none, is seen; one token per letter."""

    bad = frozenset()

    def __init__(self, section, directory, *, max_tokens, pad, train):
        assert (directory / "vocabulary").read_text() == "made", "inputs need what prepare made"
        self.max_tokens, self.train = max_tokens, train

    def encode(self, sample, key):
        if sample["id"] in self.bad:
            raise BadSample("smeared")
        turn = keys.rng(key, "turn").integers(1, 200, dtype=np.uint8) if self.train else np.uint8(0)
        whole = sample["messages"][1]["content"]
        said = whole[: self.max_tokens]
        return images.decode(sample["images"][0]).permute(1, 2, 0).numpy() + turn, said, len(whole) - len(said)

    def collate(self, examples):
        sizes, cut = (torch.tensor(values) for values in ([len(said) for _, said, _ in examples], [lost for _, _, lost in examples]))
        return {"pixels": torch.stack([torch.from_numpy(seen) for seen, _, _ in examples]), "sizes": sizes, "cut": cut, "note": "kept"}


class Loss:
    counts = amounts = may_idle = ()

    def __init__(self, section):
        self.coefficients = {"text": 1.0}

    def weights(self, batch):
        return {"text": (batch["sizes"] - 3).clamp(min=0).sum().double()}


def shown(inputs, sample, example):
    return {
        "images": [example[0]],
        "text": [("asked ", False), (example[1], True)],
        "notes": {"letters": len(example[1]), "train": inputs.train},
    }


class Settings(ModelSection):
    pass


@pytest.fixture
def family(monkeypatch):
    legend = "Learnt: the words on colour."
    made = SimpleNamespace(name="fake", Config=Settings, Inputs=Inputs, Loss=Loss, inspect=shown, legend=legend, prepared=[])
    made.limits = lambda section: Limits(100, 20, {"eye": ["images"], "film": ["frames"]})

    def prepare(section, directory, texts):
        made.prepared.append(directory)
        (directory / "vocabulary").write_text("made")

    made.prepare = prepare
    monkeypatch.setattr(registry, "load", lambda name: made)
    return made


@pytest.fixture
def resolve(tmp_path):
    def load(**more):
        tree = {"run": str(tmp_path / "run"), "seed": 5, "family": "fake", "train": {"steps": 9, "global_batch": 4}}
        tree |= {"guard": {"no_input": "continue"}, **more}
        tree["data"] = {"train": [SCENES, OTHER], "validation": [SCENES], **more.get("data", {})}
        (tmp_path / "config.yaml").write_text(reading.write_yaml(tree))
        return load_config(tmp_path / "config.yaml", model_config=lambda name: Settings, preset=None, sources=KINDS)

    return load


def titles(folder):
    return re.findall(r"<h2>(.*?)</h2>", (folder / "page.html").read_text(encoding="utf-8"))


def pictures(folder):
    page = (folder / "page.html").read_text(encoding="utf-8")
    bodies = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))) for body in bodies]


def test_the_samples_are_the_first_that_the_run_takes_with_the_pixels_it_takes(family, resolve, tmp_path):
    resolved = resolve()
    data_inspect.draw(resolved, "train", 7, tmp_path / "out")
    view = resolved.stages[0]
    opened = open_data(view.config, view.config.data.train, "train")
    seed = keys.key(5, "stage", "train")
    order = Order([40, 7], [1.0, 1.0], seed, 4)
    loader = Loader(
        opened, order, Inputs(None, tmp_path_with_vocabulary(tmp_path), max_tokens=None, pad="", train=True), seed=seed, stop_step=2
    )
    steps = list(loader)
    taken = [identity for step in steps for micro in step.micro for identity in micro.ids][:7]
    pixels = torch.cat([micro.batch["pixels"] for step in steps for micro in step.micro])[:7].numpy()
    assert titles(tmp_path / "out") == [opened[one.source][one.index]["id"] for one in taken]
    assert np.array_equal(pictures(tmp_path / "out"), pixels)


def tmp_path_with_vocabulary(folder):
    (folder / "vocabulary").write_text("made")
    return folder


def test_validation_shows_the_samples_that_are_judged_without_augmentation(family, resolve, tmp_path, capsys):
    resolved = resolve()
    data_inspect.draw(resolved, "validation", 5, tmp_path / "out")
    (source,) = open_data(resolved.config, resolved.config.data.validation, "validation")
    judged = [source[one.index] for one in choose([40], 5, 5)]
    assert titles(tmp_path / "out") == [sample["id"] for sample in judged]
    plain = [images.decode(sample["images"][0]).permute(1, 2, 0).numpy() for sample in judged]
    assert np.array_equal(pictures(tmp_path / "out"), plain)
    assert "5 of 40 samples; pictures of 16x16 px, seen as 16x16 px" in capsys.readouterr().out


def test_the_table_says_what_the_family_notes_and_how_a_batch_looks(family, resolve, tmp_path, capsys):
    data_inspect.draw(resolve(), "train", 12, tmp_path / "out")
    said = capsys.readouterr().out
    assert re.search(r"scenes train +6 of 40 samples", said)
    assert re.search(r"letters +3 to 6, median [\d.]+ per sample", said)
    assert re.search(r"batch of 4 +3\.1 kB: pixels 4x16x16x3 uint8; sizes, cut 4 int64\n", said)
    assert re.search(r"nothing to learn +\d+ samples: train-5-\d+", said), "the answer `red` weighs nothing in this loss"
    assert f"written to {tmp_path / 'out' / 'sheet.png'} and {tmp_path / 'out' / 'page.html'}" in said


def test_a_bad_sample_is_listed_with_its_reason_beside_its_replacement(family, resolve, tmp_path, monkeypatch, capsys):
    data_inspect.draw(resolve(), "train", 4, tmp_path / "good")
    (lost, *kept) = titles(tmp_path / "good")
    monkeypatch.setattr(Inputs, "bad", {lost})
    data_inspect.draw(resolve(), "train", 4, tmp_path / "out")
    shown = titles(tmp_path / "out")
    assert shown[1:] == [*kept, f"bad: {lost}"]
    assert shown[0] != lost
    assert re.search(rf"bad +{lost}: smeared\n", capsys.readouterr().out)


def test_samples_over_max_tokens_are_named(family, resolve, tmp_path, capsys):
    data_inspect.draw(resolve(data={"max_tokens": 4}), "train", 12, tmp_path / "out")
    said = capsys.readouterr().out
    count, names = re.search(r"cut +(\d+) of 12 to data.max_tokens = 4: (.*)", said).groups()
    assert 0 < int(count) < 12
    assert set(re.findall(r"train-5-\d+", names)) <= set(titles(tmp_path / "out"))
    assert (tmp_path / "out" / "page.html").read_text().count("<dd>to max_tokens</dd>") == int(count)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_table_of_a_runs_first_lines_stands_at_the_top(family, resolve, tmp_path, capsys, split):
    resolved = resolve(data={"max_tokens": 4, "train": [SCENES, OTHER]}, trainable=["eye", "film"], guard={})
    refused_at_the_end = pytest.raises(PlaitError, match="a run would not start with this data: film trains, but none of the 39")
    with refused_at_the_end if split == "train" else contextlib.nullcontext():
        data_inspect.draw(resolved, split, 3, tmp_path / "out")
    said, page = capsys.readouterr().out, (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^  scenes {split}: (\d\d+ samples, (?:32|all) looked at: .*)$", said, re.MULTILINE)
    cut = int(re.search(r": (\d+) cut by data.max_tokens, ", row)[1])
    assert 0 < cut < 32
    assert ", 32 without frames, 32 pictures with a side under the model's 20 px" in row and "without images" not in row
    assert row.endswith("; pictures of 16x16 px")
    assert said.index(row) < said.index("samples as the model sees them")
    assert page.index(row.replace("'", "&#39;")) < page.index("letters")
    refused = "refused: film trains, but none of the 39 samples looked at has frames: leave film out of trainable, or say guard.no_input"
    assert (refused in said) is (split == "train")


def test_more_tokens_than_the_model_has_positions_for_are_refused(family, resolve, tmp_path):
    with pytest.raises(PlaitError, match=r"^data\.max_tokens is 101, but the model has 100 positions: set it to 100 or less$"):
        data_inspect.draw(resolve(data={"max_tokens": 101}), "train", 3, tmp_path / "out")


def test_a_stage_with_other_data_gets_its_own_sheet(family, resolve, tmp_path, capsys):
    stages = [{"name": "one"}, {"name": "two", "trainable": ["x"]}, {"name": "three", "data": {"train": [OTHER]}}]
    data_inspect.draw(resolve(stages=stages), "train", 2, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures.json", "stage-1-one", "stage-3-three"]
    assert "stage 2 (two) has the data of stage 1 (one), in an order of its own\n" in capsys.readouterr().out


def test_what_a_family_makes_on_the_spot_is_the_runs_own_or_passes(family, resolve, tmp_path):
    data_inspect.draw(resolve(), "train", 1, tmp_path / "out")
    (passing,) = family.prepared
    assert not passing.exists()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "assets").mkdir(parents=True)
    tmp_path_with_vocabulary(tmp_path / "run" / "assets")
    data_inspect.draw(resolve(), "train", 1, tmp_path / "again")
    assert family.prepared == [passing]


def test_nothing_is_written_over(family, resolve, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("inspect", "inspect-2", "inspect-3"):
        data_inspect.draw(resolve(), "train", 1, None)
        assert f"written to {folder}/sheet.png and {folder}/page.html\n" in capsys.readouterr().out
    before = (tmp_path / "inspect" / "page.html").read_bytes()
    with pytest.raises(PlaitError, match=r"^inspect is not empty; give --out a new folder$"):
        data_inspect.draw(resolve(), "train", 2, Path("inspect"))
    assert (tmp_path / "inspect" / "page.html").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(PlaitError, match=r"^file is no folder; give --out a new one$"):
        data_inspect.draw(resolve(), "train", 2, Path("file"))
    (tmp_path / "empty").mkdir()
    data_inspect.draw(resolve(), "train", 1, Path("empty"))
    assert (tmp_path / "empty" / "page.html").is_file()


def test_what_cannot_be_drawn_is_one_clear_line(family, resolve, tmp_path):
    with pytest.raises(PlaitError, match="--samples=0: ask for at least one"):
        data_inspect.draw(resolve(), "train", 0, tmp_path / "out")
    with pytest.raises(PlaitError, match=r"has no validation data to look at: list some under data\.validation"):
        data_inspect.draw(resolve(data={"validation": []}), "validation", 3, tmp_path / "out")


def test_held_out_data_of_an_evaluation_serves_where_there_is_no_other(family, resolve, tmp_path):
    entry = {"bench": "loss", "data": [OTHER]}
    data_inspect.draw(resolve(data={"validation": []}, evaluate=[entry]), "validation", 3, tmp_path / "out")
    assert len(titles(tmp_path / "out")) == 3


def test_the_fused_model_shows_its_answer_as_supervised(tmp_path):
    tiny = {"image_size": 16, "image_tokens": 4, "vocabulary": 300}
    tree = {
        "run": str(tmp_path / "run"),
        "family": "theworld",
        "model": {"base": "tiny", "tiny": tiny},
        "train": {"steps": 1, "global_batch": 2},
    }
    (tmp_path / "config.yaml").write_text(reading.write_yaml({**tree, "data": {"train": [SCENES]}}))
    resolved = open_config(tmp_path / "config.yaml")
    data_inspect.draw(resolved, "train", 2, tmp_path / "out")
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    (source,) = open_data(resolved.config, resolved.config.data.train, "train")
    answers = {f"train-0-{i}": source[i]["messages"][1]["content"] for i in range(40)}
    assert re.findall(r"<mark>(.*?)</mark>", page) == [f"{answers[name]}&lt;end_of_turn&gt;" for name in titles(tmp_path / "out")]
    assert [seen.shape for seen in pictures(tmp_path / "out")] == [(16, 16, 3)] * 4, "one for vision and one for the world, per sample"


def tar(path, stems):
    with tarfile.open(path, "w") as file:
        for stem in stems:
            for kind, body in (("txt", b"a cat"), ("json", b"{}")):
                member = tarfile.TarInfo(f"{stem}.{kind}")
                member.size = len(body)
                file.addfile(member, io.BytesIO(body))


def test_index_is_kept_in_the_cache_or_beside_the_shard_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    tar(tmp_path / "data" / "a.tar", "abc")
    assert cli.main(["data", "index", str(tmp_path / "data")]) == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.tar"] and len([*(tmp_path / "cache" / "index").iterdir()]) == 1
    assert cli.main(["data", "index", "--beside", str(tmp_path / "data")]) == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["a.tar", "a.tar.idx"]


def test_index_beside_an_address_is_refused_in_one_line(capsys):
    assert cli.main(["data", "index", "--beside", "https://store.example/a.tar"]) == 2
    err = capsys.readouterr().err
    assert err == "plait: https://store.example/a.tar is remote: index a copy on disk with --beside, and upload its index with it\n"


def test_index_says_built_then_unchanged_then_stale(tmp_path, capsys):
    tar(tmp_path / "train-0.tar", "abc")
    tar(tmp_path / "train-1.tar", "de")
    index_data.index(str(tmp_path))
    said = capsys.readouterr().out
    assert re.search(r"train-0\.tar +3  2 each \(json, txt\) +10\.2 kB  built in [\d.]+ s: .*train-0\.tar-\w{16}\.idx\n", said)
    assert "2 shards, 5 samples, 20.5 kB; 2 indexes built, 0 unchanged" in said
    os.utime(tmp_path / "train-1.tar", (1, 1))
    index_data.index(f"{tmp_path}/train-*.tar")
    said = capsys.readouterr().out
    assert re.search(r"train-0.*unchanged in .*\n.*train-1.*stale, rebuilt in ", said)
    assert "1 indexes built, 1 unchanged" in said


def test_shards_in_a_folder_that_are_not_read_are_counted(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for name in ("a.tar", "c.TAR", "b.tar.gz", "d.tar.part", "e.tgz", "sub/f.tar", "a.tar.idx", "notes.txt"):
        tar(tmp_path / name, "abc")
    counts = {
        "files that are packed or unfinished, as they do not end in .tar, such as b.tar.gz": 3,
        ".tar files in subfolders, such as sub/f.tar": 1,
    }
    source = open_source(SourceEntry(source="shards", path=str(tmp_path)), seed=0)
    assert (len(source), source.left_out) == (6, counts)
    (tmp_path / "a.tar.idx").unlink()
    index_data.index(str(tmp_path))
    said = capsys.readouterr().out
    assert "2 shards, 6 samples" in said and all(f"left out: {count} of {reason}\n" in said for reason, count in counts.items())


def test_a_folder_of_nothing_but_packed_shards_is_refused_with_them(tmp_path):
    tar(tmp_path / "b.tar.gz", "a")
    with pytest.raises(PlaitError, match=r"no file matches .*; 1 of files that are packed or unfinished, .* such as b\.tar\.gz"):
        index_data.index(str(tmp_path))


def test_index_of_nothing_is_one_clear_line(tmp_path):
    with pytest.raises(PlaitError, match=r"there is no file .*nowhere\.tar"):
        index_data.index(str(tmp_path / "nowhere.tar"))


def labels(folder):
    return re.findall(r"<figcaption>(.*?)</figcaption>", (folder / "page.html").read_text(encoding="utf-8"))


def inspected(tmp_path, tree, *more):
    (tmp_path / "config.yaml").write_text(reading.write_yaml(tree))
    assert cli.main(["data", "inspect", str(tmp_path / "config.yaml"), f"--out={tmp_path / 'out'}", *more]) == 0
    return (tmp_path / "out/page.html").read_text(encoding="utf-8")


def test_pictures_of_the_fused_model_are_labelled_by_encoder_and_size(tmp_path):
    model = {"base": "tiny", "tiny": {"image_size": 32, "image_tokens": 4, "vocabulary": 300}, "world": {"image_size": 48}}
    tree = {"run": str(tmp_path / "run"), "family": "theworld", "model": model, "train": {"steps": 1, "global_batch": 2}}
    page = inspected(tmp_path, {**tree, "data": {"train": [SCENES]}}, "--samples=2")
    assert labels(tmp_path / "out") == ["SigLIP, 32 px", "world encoder, 48 px"] * 2
    assert page.count('<article class="sample">') == 2
    assert "On colour: the supervised text, which the model learns to say." in page


def test_crops_are_labelled_by_tower_size_and_place(tmp_path):
    tree = {"run": str(tmp_path / "run"), "family": "molmo", "preset": "debug", "train": {"steps": 1, "global_batch": 2}}
    scenes = {**SCENES, "options": {**SCENES["options"], "size": [60, 80]}}
    inspected(tmp_path, {**tree, "data": {"train": [scenes]}}, "--samples=1")
    whole, *crops = labels(tmp_path / "out")
    assert whole == "CLIP, 48 px, whole picture"
    assert len(crops) > 1
    assert crops == [f"CLIP, 48 px, crop {number} of {len(crops)}" for number in range(1, len(crops) + 1)]


LATENTS = {"channels": 4, "text_dim": 6, "image_dim": 5}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_family_that_draws_shows_every_bucket_and_speaks_of_drawing(tmp_path, split):
    root = latent_sets.make(tmp_path / "set", {"64x64": 9, "48x80": 5, "80x48": 4})
    source = {"source": "latents", "path": str(root)}
    tree = {
        "run": str(tmp_path / "run"),
        "family": "nanodit",
        "preset": "tiny",
        "model": {"metadata": str(root), **LATENTS},
    }
    tree |= {"train": {"steps": 2, "global_batch": 4}, "data": {"train": [source], "validation": [source]}}
    page = inspected(tmp_path, tree, "--samples=9", f"--split={split}")
    buckets = re.findall(r"<dt>bucket</dt><dd>(.*?)</dd>", page)
    assert len(buckets) == 9
    assert {*buckets} == {"64x64", "48x80", "80x48"}
    if split == "train":
        assert all({*buckets[start : start + 3]} == {"64x64", "48x80", "80x48"} for start in (0, 3, 6)), "by turns"
        assert "train, stage 1 (train): 9 samples, the first of each bucket by turns, as the model sees them" in page
    assert "The model learns to draw the picture" in page
    assert "supervised text" not in page
    assert {*re.findall(r"<dt>mirrored</dt><dd>(.*?)</dd>", page)} <= {"yes", "no"} and "<dt>mirrored</dt>" in page
    assert re.search(r"<dt>batch of \d</dt>", page), "a batch is of one bucket"


def test_buckets_that_too_few_samples_leave_out_are_named(tmp_path):
    root = latent_sets.make(tmp_path / "set", {"64x64": 9, "48x80": 5, "80x48": 4})
    tree = {
        "run": str(tmp_path / "run"),
        "family": "nanodit",
        "preset": "tiny",
        "model": {"metadata": str(root), **LATENTS},
    }
    tree |= {"train": {"steps": 2, "global_batch": 4}, "data": {"train": [{"source": "latents", "path": str(root)}]}}
    page = inspected(tmp_path, tree, "--samples=2")
    shown = {*re.findall(r"<dt>bucket</dt><dd>(.*?)</dd>", page)}
    (missing,) = {"64x64", "48x80", "80x48"} - shown
    assert f"<dt>not shown</dt><dd>buckets {missing}: ask for more --samples</dd>" in page


def test_samples_that_are_shown_again_are_counted_once(family, resolve, tmp_path, capsys):
    resolved = resolve(data={"train": [{**SCENES, "limit": 3}]})
    data_inspect.draw(resolved, "train", 7, tmp_path / "out")
    assert "3 of 3 samples; " in capsys.readouterr().out
    assert "the first 3 samples" in (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
