"""`hub:`: a run pushes its checkpoints by a process beside it, waits for the last, and loses none when it is killed or stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.commands.actions.publishing import beside, outbox, push
from plait.errors import PlaitError
from plait.training import run as training
from plait.training.run_context import TrainOptions
from tests import hub_store
from tests import toy_family as toy

SMALL = """
family: nanodit
data: {{train: [{{source: scenes, limit: 16, options: {{size: [32, 32], objects: [1, 2], tasks: [caption]}}}}], workers: 0}}
stages: [{{name: one}}, {{name: two}}]
train: {{steps: 2, global_batch: 4}}
checkpoint: {{every_steps: 1, keep: 2, reference: false}}
model: {{space: pixels, depth: 1, hidden: 48, heads: 2, patch: 8, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
        dropout: {{neither: 0.1, text_only: 0.0, image_only: 0.0}}}}
track: {{tensorboard: false, monitor: false, every_steps: 1}}
guard: {{blindness: false, forgetting: null}}
hub: {{repo: someone/small, push: {push}}}
"""


@pytest.fixture
def recipe(tmp_path):
    def written(kind):
        path = tmp_path / "small.yaml"
        path.write_text(SMALL.format(push=kind))
        return path

    return written


def steps(repo, branch="main"):
    return [int(message.split()[2]) for message in repo.of(branch)]


def test_a_run_pushes_while_it_trains_and_waits_for_the_last(recipe, hub, tmp_path, capfd):
    failed = set()

    def once(method, path):
        """Every kind of request fails when it is first made."""
        kind = (method, path.split("/")[-2] if path.count("/") > 3 else path)
        new = kind not in failed and (failed.add(kind) or True)
        return "lost" if new and "commit" in path else 503 if new and method == "POST" and "create" in path else None

    hub.fault = once
    assert cli.main(["train", str(recipe("every_save")), f"--run={tmp_path / 'run'}"]) == 0
    repo = hub.repos["someone/small"]
    assert steps(repo) == [1, 2, 3, 4] and repo.private
    assert pushed_of(repo, "stage-1-one") == 2 and pushed_of(repo, "stage-2-two") == 4
    said = capfd.readouterr()
    assert "step 4 of stage two: pushed to http" in said.out and "is not at someone/small yet: " in said.err
    assert hub_store.TOKEN not in said.out + said.err and not outbox.waiting(tmp_path / "run")
    hub.fault = lambda method, path: None
    for spec in ("someone/small", "someone/small@stage-1-one"):
        assert cli.main(["verify", spec, f"--run={tmp_path / 'run'}"]) == 0


def pushed_of(repo, branch):
    return json.loads(repo.files(branch)["plait-run.json"])["step"]


def test_a_push_that_is_refused_alone_is_told_once_and_the_run_pushes_the_others_and_ends(recipe, hub, tmp_path, capfd):
    hub.fault = lambda method, path: 413 if "/commit/" in path and b"plait: step 1 of" in hub.bodies[-1] else None
    assert cli.main(["train", str(recipe("every_save")), f"--run={tmp_path / 'run'}"]) == 0
    repo, said = hub.repos["someone/small"], capfd.readouterr().err
    assert steps(repo) == [2, 3, 4] and [item.job.step for item in outbox.waiting(tmp_path / "run")] == [1]
    assert said.count("step 1 of stage one is not pushed to someone/small: ") == 1 and " answers 413: " in said
    assert f"1 push to the Hub waits in {tmp_path / 'run' / 'outbox'}: `plait push {tmp_path / 'run'}` sends what is there" in said


@pytest.fixture
def quiet(monkeypatch):
    """No process sends: what is queued stays in the queue."""

    class Silent:
        pid = 0

        def look(self):
            pass

        def close(self, patient):
            pass

        def leave(self):
            return self

    monkeypatch.setattr(beside.Pushes, "_start", lambda self: Silent())


def train(recipe, folder, *overrides):
    """`plait train` of the toy, in this process, with what it pushes."""
    resolved = open_config(recipe, [f"run={folder}", *overrides])
    with beside.pushed(resolved) as hooks:
        training.train(resolved, TrainOptions(hooks=hooks))
    return folder


@pytest.fixture
def toys(monkeypatch, tmp_path):
    recipe = toy.install(monkeypatch, tmp_path)
    recipe.write_text(recipe.read_text() + "hub: {repo: someone/toy, push: every_save}\n")
    return recipe


def queued(run):
    return [item.job.step for item in outbox.waiting(run)]


@pytest.mark.parametrize(("kind", "wanted"), [("every_save", [2, 4, 6, 8, 10, 12, 14, 16, 18]), ("end", [6, 12, 18])])
def test_which_checkpoints_are_pushed(toys, quiet, tmp_path, kind, wanted):
    assert queued(train(toys, tmp_path / "run", f"hub.push={kind}", "checkpoint.keep=1")) == wanted


def test_only_checkpoints_that_are_the_best_so_far_are_pushed_when_that_is_asked_for(toys, quiet, tmp_path):
    run = train(toys, tmp_path / "run", "hub.push=best")
    losses = {row["step"]: row["eval/loss"] for row in toy.figures(run) if "eval/loss" in row}
    wanted = [step for step in losses if losses[step] == min(value for at, value in losses.items() if at <= step)]
    assert queued(run) == wanted


def test_best_needs_a_figure(toys, tmp_path):
    with pytest.raises(PlaitError, match=r"hub\.push is best, but checkpoint\.best names no figure: set it, such as checkpoint\.best=loss"):
        open_config(toys, [f"run={tmp_path / 'run'}", "hub.push=best", "checkpoint.best=null"])


def test_a_run_that_goes_on_pushes_what_it_did_not_and_nothing_twice(toys, quiet, hub, tmp_path):
    run = train(toys, tmp_path / "run", "hub=null", "stages=[]", "train.steps=6")
    assert not (run / "outbox").exists()
    train(toys, run, "stages=[]", "train.steps=6")
    assert queued(run) == [6]  # the newest alone: the others were before pushes were asked for
    train(toys, run, "stages=[]", "train.steps=10")
    assert queued(run) == [6, 8, 10]


def test_no_more_than_ten_pushes_wait_and_what_is_given_up_is_told(toys, quiet, tmp_path, capsys):
    run = train(toys, tmp_path / "run", "stages=[]", "train.steps=12", "checkpoint.every_steps=1")
    assert queued(run) == [1, *range(4, 13)]
    said = capsys.readouterr().err
    assert "step 2 of stage train is not pushed: 10 newer ones wait for someone/toy" in said and "step 3 of stage train" in said
    assert [(row["step"], row["commit"]) for row in outbox.sent(run)] == [(2, None), (3, None)]


def test_weights_and_metrics_are_those_of_a_run_without_pushes(toys, quiet, tmp_path):
    with_it, without = train(toys, tmp_path / "with"), train(toys, tmp_path / "without", "hub=null")
    assert toy.figures(with_it) == toy.figures(without)
    for group in ("weights", "ema", "moments"):
        assert toy.same(toy.at(with_it, 18).tensors(group), toy.at(without, 18).tensors(group))


def test_a_failed_start_queues_nothing(toys, quiet, tmp_path):
    run = train(toys, tmp_path / "run", "hub=null")
    with pytest.raises(PlaitError, match="was begun with another configuration"):
        train(toys, run, "optim.lr=5")
    assert not (run / "outbox").exists()


def test_a_run_that_was_killed_is_sent_by_the_process_beside_it_and_not_twice(recipe, hub, tmp_path):
    run = tmp_path / "run"
    words = [sys.executable, "-m", "plait", "train", str(recipe("every_save")), f"--run={run}"]
    hub.fault = lambda method, path: 503 if not hub.silent.is_set() else None
    trainer = subprocess.Popen(
        [*words, "--train.steps=5000", "--checkpoint.every_steps=150"], start_new_session=True, stdout=subprocess.DEVNULL
    )
    lock = run / "outbox/lock"
    until(lambda: len(outbox.waiting(run)) >= 2 and lock.is_file() and lock.read_text())
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    wanted = queued(run)
    hub.silent.set()
    until(lambda: not outbox.waiting(run))
    repo = hub.repos["someone/small"]
    assert steps(repo) == wanted == [row["step"] for row in outbox.sent(run) if row["commit"]]
    push.drain(run)
    assert steps(repo) == wanted


def until(what, limit_s=60):
    end_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end_s
        threading.Event().wait(0.05)
