"""A network that swallows or refuses everything for a whole run: W&B and alerts, the packages themselves, cost it no step and no bit."""

import pytest

from plait import cli
from plait.engine.monitoring.beside import process
from tests import loopback, toy_family

TINY = ["--stages=[]", "--checkpoint.best=null", "--train.steps=40"]
ONLINE = ["--track.wandb={project: toy}", "--alert=[$HOOK]", "--alert.on=[finish, warning]"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    monkeypatch.setattr(process, "CLOSE_TIMEOUT_S", 3.0)
    return toy_family.install(monkeypatch, tmp_path)


@pytest.mark.parametrize("way", ["swallows", "refuses"])
def test_a_dead_network_costs_a_run_no_step_no_row_and_no_bit(recipe, tmp_path, monkeypatch, capfd, way):
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'straight'}", *TINY]) == 0
    with loopback.swallowing() as hole:
        port = hole if way == "swallows" else loopback.refusing()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("HOOK", f"json://127.0.0.1:{port}/hook")
        assert cli.main(["train", str(recipe), f"--run={tmp_path / 'dead'}", *TINY, *ONLINE]) == 0
    straight, dead = (toy_family.at(tmp_path / name, 40) for name in ("straight", "dead"))
    assert toy_family.same(straight.tensors("weights"), dead.tensors("weights"))
    assert toy_family.figures(tmp_path / "straight") == toy_family.figures(tmp_path / "dead")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert 1 <= len(lines) <= 3, lines
    assert any("alert" in line for line in lines) and any("W&B" in line for line in lines)
    assert not any("0123456789" in line or str(port) in line for line in lines)
