"""Addresses such as gs:// in place of a folder to write to: refused in one line by every verb, with nothing written."""

import pytest

from plait import cli

LINES = {
    "train molmo/captioner debug --run=s3://bucket/run": "run: s3://bucket/run",
    "config molmo/captioner debug --data.cache=gs://bucket/cache": "data.cache: gs://bucket/cache",
    "train s3://bucket/run": "config: s3://bucket/run",
    "eval RUN --bench loss --out=az://bucket/out": "--out: az://bucket/out",
    "generate RUN --out gs://bucket/out": "--out: gs://bucket/out",
    "export RUN gs://bucket/out": "DIR: gs://bucket/out",
    "fork RUN memory://new": "NEW: memory://new",
    "prove x.yaml --out=gs://bucket/out": "--out: gs://bucket/out",
    "data inspect x.yaml --out=gs://bucket/out": "--out: gs://bucket/out",
    "stages gs://bucket/run": "run: gs://bucket/run",
    "train molmo/captioner debug --run=s3:/bucket/run": "run: s3:/bucket/run",
    "train molmo/captioner debug --run=gs:/bucket/run": "run: gs:/bucket/run",
    "config molmo/captioner debug --run=hf:/name/run": "run: hf:/name/run",
    "eval RUN --bench loss --out=http:/host/out": "--out: http:/host/out",
    "ckpt ema RUN 0.1 --out=gs://bucket/out": "--out: gs://bucket/out",
}


@pytest.mark.parametrize("line", LINES)
def test_an_address_to_write_to_is_refused_in_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    written = capsys.readouterr().err
    assert LINES[line] in written and "on disks only: name a folder" in written and written.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_address_is_answered_with_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "molmo/captioner", "debug", "--run=file:///data/run"]) == 2
    assert "run: file:///data/run is an address: write the path alone, /data/run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "shards", "folder", "datasets"])
def test_an_address_of_data_with_one_slash_is_answered_with_two(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("family: theworld\npreset: tiny\ntrain: {steps: 1}\n")
    assert cli.main(["train", "c.yaml", f"--data.train=[{{source: {kind}, path: s3:/bucket/a.tar}}]"]) == 2
    said = "command line: data.train.0.path is 's3:/bucket/a.tar', an address with one slash: write s3://bucket/a.tar"
    assert capsys.readouterr().err == f"plait: {said}\n"
    assert cli.main(["data", "index", "gs:/bucket/a.tar"]) == 2
    assert capsys.readouterr().err == "plait: gs:/bucket/a.tar is an address with one slash: write gs://bucket/a.tar\n"


def test_weights_to_begin_from_at_an_address_with_one_slash_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "family: theworld\npreset: tiny\ntrain: {steps: 1}\ndata: {train: [{source: scenes}]}\nfrom: hf:/name/run\n"
    )
    assert cli.main(["train", "c.yaml"]) == 2
    assert "c.yaml:5: from is 'hf:/name/run', an address with one slash, meant as hf://name/run" in capsys.readouterr().err


def test_a_folder_that_is_named_like_the_beginning_of_an_address_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    assert cli.main(["config", "molmo/captioner", "debug", "--run=s3:/run"]) == 0
