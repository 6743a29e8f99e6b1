"""A network that swallows or refuses everything for a whole run: W&B, alerts and pushes, the packages themselves, cost it no bit."""

import pytest

from plait import cli
from plait.commands.actions.publishing import outbox
from plait.engine.monitoring.beside import process
from tests import loopback, toy_family

TINY = ["--stages=[]", "--checkpoint.best=null", "--train.steps=40"]
HUB = ["--hub={repo: someone/toy, push: every_save}", "--checkpoint.every_steps=20"]
"""Where the network refuses alone: of one that swallows, a client waits for its limits of time at the end of the run."""
ONLINE = ["--track.wandb={project: toy}", "--alert=[$HOOK]", "--alert.on=[finish, warning]"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "0123456789" * 3)
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 3.0)
    monkeypatch.setattr(outbox, "PATIENCE_S", 0.5)
    return toy_family.install(monkeypatch, tmp_path)


@pytest.mark.parametrize("way", ["swallows", "refuses"])
def test_a_dead_network_costs_a_run_no_step_no_row_and_no_bit(recipe, tmp_path, monkeypatch, capfd, way):
    tiny = [*TINY, *(HUB[1:] if way == "refuses" else [])]
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'straight'}", *tiny]) == 0
    with loopback.swallowing() as hole:
        port = hole if way == "swallows" else loopback.refusing()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HOOK", f"json://127.0.0.1:{port}/hook")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        online = [*ONLINE, *(HUB[:1] if way == "refuses" else [])]
        assert cli.main(["train", str(recipe), f"--run={tmp_path / 'dead'}", *tiny, *online]) == 0
    straight, dead = (toy_family.at(tmp_path / name, 40) for name in ("straight", "dead"))
    assert toy_family.same(straight.tensors("weights"), dead.tensors("weights"))
    assert toy_family.figures(tmp_path / "straight") == toy_family.figures(tmp_path / "dead")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert 1 <= len(lines) <= 3 + 2 * (way == "refuses"), lines
    assert len(outbox.waiting(tmp_path / "dead")) == (2 if way == "refuses" else 0), "pushes wait in their queue"
    assert any("alert" in line for line in lines) and any("W&B" in line for line in lines)
    assert not any("0123456789" in line or str(port) in line for line in lines)
