"""Addresses such as gs:// in place of a folder to write to: refused in one line by every verb, with nothing written."""

import pytest

from plait import cli

LINES = {
    "train molmo/captioner debug --save_folder=gs://bucket/run": "run: gs://bucket/run",
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
