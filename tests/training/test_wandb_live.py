"""W&B's own client and a server that answers it: a continued run is one run there, its address is told, and what was kept is sent later."""

import re
import subprocess
import sys

import pytest

from plait import cli, files
from plait.engine.checkpoints.rundir import identity
from plait.engine.monitoring.beside import process
from tests import toy_family, wandb_server

pytest.importorskip("wandb")
TINY = ["--stages=[]", "--checkpoint.best=null", "--evaluate=[]", "--track.wandb={project: toy}"]


@pytest.fixture
def live(tmp_path, monkeypatch):
    """The toy's recipe, and the server that W&B's client is pointed at."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 60.0)
    with wandb_server.imitated() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        yield toy_family.install(monkeypatch, tmp_path), server


def sent(server, run):
    """(step, loss) of each row that the server has of a run, which is its only one."""
    ((name, rows),) = server.history.items()
    assert name == f"me/toy/{identity(run)}"
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def recorded(run):
    return [(row["step"], row["loss"]) for row in files.read_rows(run / "metrics.jsonl") if "loss" in row]


def same(rows, others):
    """Hold steps to steps and losses to losses: the client rounds numbers to 17 digits or fewer."""
    assert [step for step, _ in rows] == [step for step, _ in others]
    assert dict(rows) == pytest.approx(dict(others))


def test_a_continued_run_is_one_run_with_every_row_once_and_its_address_is_told_at_each_start(live, tmp_path, monkeypatch, capfd):
    recipe, server = live
    monkeypatch.setenv("WANDB_MODE", "online")
    for steps in (6, 10):
        assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", f"--train.steps={steps}", *TINY]) == 0
    assert [step for step, _ in recorded(tmp_path / "run")] == [*range(1, 11)]
    same(sent(server, tmp_path / "run"), recorded(tmp_path / "run"))
    assert set(server.opened) == {identity(tmp_path / "run")} and len(server.ended) == 2
    told = [line for line in capfd.readouterr().out.splitlines() if "W&B" in line]
    assert [line.split("W&B: ")[1] for line in told] == [f"{server.url}/me/toy/runs/{identity(tmp_path / 'run')}"] * 2


def test_a_run_that_was_kept_offline_is_sent_by_the_command_that_it_printed(live, tmp_path, monkeypatch, capfd):
    recipe, server = live
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", "--train.steps=4", *TINY]) == 0
    assert server.history == {} and server.opened == []
    (folder,) = re.findall(r"W&B \(offline\): wandb sync (.+)", capfd.readouterr().out)
    monkeypatch.delenv("WANDB_MODE")
    subprocess.run([sys.executable, "-m", "wandb", "sync", folder], cwd=tmp_path, check=True, capture_output=True, timeout=100)
    same(sent(server, tmp_path / "run"), recorded(tmp_path / "run"))
