"""A network that swallows or refuses everything for a whole run: W&B, alerts and pushes, the packages themselves, cost it no bit."""

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.commands.actions.publishing import beside, hub, outbox, restore
from plait.engine.monitoring.beside import process
from plait.training import run as training
from plait.training.run_context import TrainOptions
from tests import hub_server, loopback, toy_family

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


def test_a_push_to_a_hub_that_never_answers_is_given_up_soon_and_waits_in_the_queue(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "FIRST_ANSWER_S", 0.5)
    run = tmp_path / "run"
    assert cli.main(["train", str(recipe), f"--run={run}", *TINY[:2], "--train.steps=4"]) == 0
    with loopback.swallowing() as port:
        hub_server.point(monkeypatch, f"http://127.0.0.1:{port}", tmp_path)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "0123456789" * 3)
        assert cli.main(["push", str(run), "someone/toy"]) == 2
    assert f"plait: the Hub has taken nothing for 0 minutes: http://127.0.0.1:{port} cannot be reached" in capsys.readouterr().err
    assert len(outbox.waiting(run)) == 1


@pytest.fixture
def mirror_that_never_answers():
    with loopback.swallowing() as port:
        yield f"ftp://127.0.0.1:{port}/x"


def test_a_start_whose_mirror_never_answers_ends_in_a_line(recipe, tmp_path, monkeypatch, capsys, mirror_that_never_answers):
    monkeypatch.setattr(restore, "ANSWER_S", 1.0)
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", f"--checkpoint.mirror={mirror_that_never_answers}"]) == 2
    said, address = capsys.readouterr(), mirror_that_never_answers
    assert f"waiting for an answer of {address.removesuffix('/x')}, 1 s at most" in said.out
    cure = "mend that, or start with --checkpoint.mirror=null"
    assert said.err == f"plait: checkpoint.mirror {address} cannot be read: no whole answer in 1 s; {cure}\n"
    assert not (tmp_path / "run").exists()


def test_a_mirror_that_never_answers_is_waited_for_at_the_end_for_a_bounded_time(
    recipe, tmp_path, monkeypatch, caplog, mirror_that_never_answers
):
    monkeypatch.setattr(outbox, "PATIENCE_S", 600.0)
    monkeypatch.setattr(outbox, "UNTAKEN_S", 4.0)
    run = tmp_path / "run"
    resolved = open_config(recipe, [f"run={run}", "stages=[]", "train.steps=4", f"checkpoint.mirror={mirror_that_never_answers}"])
    with caplog.at_level("INFO"), beside.pushed(resolved) as hooks:  # a start would ask it first: it has died since
        training.train(resolved, TrainOptions(hooks=hooks))
    *_, waits, left = caplog.messages
    again = f"`plait train {run}`"
    assert waits == f"waiting for the mirror {mirror_that_never_answers}, 4 s at most without an answer; Ctrl-C leaves the rest to {again}"
    assert left == f"{mirror_that_never_answers} does not have all checkpoints: {again} copies what is not there"
