"""Rows whose picture is absent: in every kind of source it is a sample without a picture, which is counted before training."""

import json

import pytest
import yaml

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample
from tests.data.packing import picture
from tests.families.test_conformance import TINY

NOTHING = {"bytes": None, "path": None}
PICTURE = picture(1, (48, 40))


def table(path, images, text=False):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.string() if text else pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(images, kind), "caption": [f"t{i}" for i in range(len(images))]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write(folder, form):
    """Write three records without a picture and one with it; return the source's kind and the file."""
    (folder / "x.png").write_bytes(PICTURE)
    path = folder / f"a.{form.partition(' ')[0]}"
    if form == "parquet":
        pytest.importorskip("datasets")
        table(path, [None, NOTHING, {"bytes": None, "path": ""}, {"bytes": PICTURE, "path": "x"}])
    elif form == "parquet paths":
        pytest.importorskip("datasets")
        table(path, [None, "", " ", "x.png"], text=True)
    elif form == "csv":
        path.write_text('image,caption\n,t0\n"",t1\n" ",t2\nx.png,t3\n')
    else:
        images = [None, "", NOTHING, "x.png"] if form == "jsonl" else [float("nan"), [], {"url": None}, ["x.png"]]
        path.write_text("".join(json.dumps({"image": image, "caption": f"t{i}"}) + "\n" for i, image in enumerate(images)))
    return "jsonl" if path.suffix == ".jsonl" else "datasets", path


@pytest.mark.parametrize("form", ["jsonl", "jsonl lists", "csv", "parquet", "parquet paths"])
def test_a_record_whose_picture_is_absent_has_none(tmp_path, form):
    kind, path = write(tmp_path, form)
    source = open_source(SourceEntry(source=kind, path=str(path)), seed=0, cache=tmp_path / "cache")
    assert [(len(source[i]["images"]), source[i]["messages"][-1]["content"]) for i in range(4)] == [
        (0, "t0"),
        (0, "t1"),
        (0, "t2"),
        (1, "t3"),
    ]


@pytest.mark.parametrize("column", ["img", "file_name"])
def test_a_blank_path_is_passed_over_for_the_next_column(tmp_path, column):
    (tmp_path / "x.png").write_bytes(PICTURE)
    (tmp_path / "a.jsonl").write_text(json.dumps({"image_path": "", column: "x.png", "caption": "c"}))
    source = open_source(SourceEntry(source="jsonl", path=str(tmp_path / "a.jsonl")), seed=0, cache=tmp_path / "cache")
    assert len(source[0]["images"]) == 1


@pytest.mark.parametrize("images", [[None], ["x.png", None], ["", "x.png"], [NOTHING, "x.png"]])
@pytest.mark.parametrize("name", ["image", "images", "frames"])
def test_a_list_with_an_absent_picture_is_a_bad_sample(tmp_path, images, name):
    (tmp_path / "x.png").write_bytes(PICTURE)
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": "c"}) + "\n" + json.dumps({name: images, "caption": "c"}))
    source = open_source(SourceEntry(source="jsonl", path=str(tmp_path / "a.jsonl")), seed=0, cache=tmp_path / "cache")
    number = 1 if images[0] != "x.png" else 2
    with pytest.raises(BadSample, match=f"^picture {number} of its list of {len(images)} is null or blank: take it out of the list$"):
        source[1]


def test_a_dataset_class_and_metadata_have_the_same_rule(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x.png").write_bytes(PICTURE)
    (tmp_path / "f" / "metadata.csv").write_text('file_name,caption\nx.png,a\n" ",b\n')
    source = open_source(SourceEntry(source="folder", path=str(tmp_path / "f")), seed=0, cache=tmp_path / "cache")
    with pytest.raises(BadSample, match=r"^metadata\.csv:3 names no picture: its file_name is null or blank$"):
        source[1]
    (tmp_path / "own.py").write_text(OWN)
    source = open_source(SourceEntry(source="dataset", name=f"{tmp_path / 'own.py'}:Own"), seed=0)
    assert [len(source[i]["images"]) for i in range(4)] == [0, 0, 0, 1]


OWN = """
import numpy as np

class Own:
    images = [None, "", {"bytes": None, "path": None}, np.zeros((8, 8, 3), np.uint8)]

    def load(self):
        return list(range(4))

    def get(self, idx, rng):
        return {"image": self.images[idx], "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
"""


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "parquet paths"])
@pytest.mark.parametrize("family", sorted(TINY))
def test_absent_pictures_are_counted_before_training_in_every_family(tmp_path, family, form, capsys):
    kind, path = write(tmp_path, form)
    recipe = {"family": family, "data": {"train": [{"source": kind, "path": str(path)}], "workers": 0, "cache": str(tmp_path / "cache")}}
    recipe |= {"train": {"steps": 1, "global_batch": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY[family])}))
    assert cli.main(["data", "inspect", str(tmp_path / "recipe.yaml"), f"--out={tmp_path / 'out'}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if f":{path.name}: 4 samples, all looked at: " in line)
    if family == "nanodit":
        assert "3 bad (3 x no image in the sample, and the model draws pixels: `image` is null or blank)" in line
    else:
        assert "3 without images" in line and " bad (" not in line
