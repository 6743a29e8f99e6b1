"""From an author's file that names DataComp to a model that sees its pictures, by the commands that plait prints."""

import json
import re
import shlex
from pathlib import Path

import pytest

from plait import cli
from tests import hub_server
from tests.data.link_server import ALLOWED, Pictures, serving_links
from tests.hub_server import Repository

pytest.importorskip("aiohttp")
pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

AUTHOR = Path(__file__).resolve().parents[3] / "shared" / "dialects" / "datacomp_production.json"
TEXT = """{
  "dataset_name": "datacomp",
  "num_samples": 100000,  // Or null for the full 12.8M dataset
  "question_template": "Describe this image simply.",
  "learning_rate": 1e-4,
  "batch_size": 4,
  "gradient_accumulation_steps": 4,
  "output_dir": "runs/datacomp"
}"""
TINY = ["--model_name=tiny", "--cosmos_model_name=tiny", "--device=cpu", "--mixed_precision=no", "--num_workers=1", "--log_to_wandb=false"]
SHORT = ["--warmup_steps=2", "--save_steps=10", "--logging_steps=1"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    with hub_server.serving(monkeypatch, tmp_path) as server:
        fsspec.get_filesystem_class("hf").clear_instance_cache()
        yield server
        fsspec.get_filesystem_class("hf").clear_instance_cache()


def listed(rows):
    """The bytes of a parquet file, as the Hub has them."""
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def test_the_printed_commands_lead_to_a_model_that_sees_the_pictures(hub, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    config = AUTHOR if AUTHOR.is_file() else tmp_path / "datacomp_production.json"
    if config != AUTHOR:
        config.write_text(TEXT, encoding="utf-8")
    with serving_links(Pictures(16, 64)) as web:
        rows = [web.server.row("ok" if number % 4 else "missing", number) for number in range(200)]
        hub.repositories["datasets", "mlfoundations/datacomp_small"] = Repository(
            {"a.parquet": listed(rows[:90]), "b.parquet": listed(rows[90:])}
        )
        train = ["train", str(config), *TINY, *SHORT]
        assert cli.main(train) == 2
        said = capsys.readouterr().err
        download = shlex.split(re.search(r"plait (data download .*?) \(", said)[1])
        setting = re.search(r"--dataset_name=\S+", said)[0]
        assert cli.main([*download, "--per-shard=64", f"--allow={ALLOWED}"]) == 0
    assert cli.main(["data", "inspect", str(config), *TINY, setting, "--samples=2"]) == 0
    assert re.search(r"world tokens +16 per sample", caplog.text)
    assert cli.main([*train, setting, "--max_steps=12"]) == 0
    assert cli.main([*train, setting, "--max_steps=20"]) == 0
    run = next(path for path in tmp_path.rglob("metrics.jsonl"))
    metrics = [json.loads(line) for line in run.read_text(encoding="utf-8").splitlines()]
    steps = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
