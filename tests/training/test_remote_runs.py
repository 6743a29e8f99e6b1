"""Runs on shards behind a web address: a server that stalls does not delay a stop, one that is down ends the run with all saved."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from plait.data import web
from plait.engine.checkpoints import checkpoint
from tests import processes
from tests.data.faulty_server import serving, wait_until
from tests.data.packing import labelled
from tests.test_house import ROOT
from tests.training import shard_runs
from tests.training.shard_runs import assert_same, ended, metrics, plait, reached, start

HEEDING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from plait.__main__ import main
from tests.test_house import ROOT
from tests.training import shard_runs
shard_runs.as_toy()
sys.exit(main())
"""
"""A fresh process, as what is asked is how one ends: no thread of it may be waited for."""
SOURCE = 'source: shards, path: "URL/{0..2}.tar"'
HELD = '[{source: shards, path: "URL/held.tar", template: {user: "What is it?", assistant: "{label}"}}]'
TRAINING = """
train: {steps: 12, global_batch: 4}
checkpoint: {every_steps: 100}
evaluate: [{bench: loss, every_steps: 6, samples: 8, batch: 2}]
"""


def write(folder, url):
    recipe = shard_runs.RECIPE.replace("SOURCE", SOURCE).replace("VALIDATION", HELD).replace("CACHE", "null") + TRAINING
    (folder / "recipe.yaml").write_text(recipe.replace("URL", url))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    names = {"0": (0, 16), "1": (16, 16), "2": (32, 16), "held": (100, 16)}
    return {f"{name}.tar": labelled(folder / f"{name}.tar", *numbers).read_bytes() for name, numbers in names.items()}


@pytest.fixture
def server(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    with serving(shards) as server:
        write(tmp_path, server.url)
        yield server


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    with serving(shards) as server:
        write(folder, server.url)
        assert ended(start(folder, "run"), folder / "run.log")[0] == 0
    return folder / "run"


def fresh(folder, *words, **streams):
    """A fresh process of a command in `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", HEEDING, *words], cwd=folder, env=environment, text=True, **streams)


def fail_after(server, folder, step, fault, *, of=(".tar",)):
    """Spoil every answer from the moment on at which the run's metrics reach `step`; returns the list of those spoilt."""
    path, spoilt = folder / "metrics.jsonl", []

    def spoil(name, asked):
        if not (reached(path, step) and name.endswith(of)):
            return ""
        spoilt.append(name)
        return fault

    server.fault = spoil
    return spoilt


@pytest.mark.parametrize(
    ("settings", "of"),
    [
        (("data.workers=0",), (".tar",)),
        (("data.workers=2",), (".tar",)),
        (("data.workers=1", "data.worker_kind=processes"), (".tar",)),
        (("data.workers=1",), ("held.tar",)),
    ],
    ids=["asked", "threads", "processes", "evaluation"],
)
def test_a_stop_waits_for_no_server_that_stalls_and_the_run_goes_on_as_if_it_had_not(server, straight, tmp_path, settings, of):
    spoilt = fail_after(server, tmp_path / "run", 2, "stall", of=of)
    process = start(tmp_path, "run", *settings)
    wait_until(lambda: spoilt or not process.is_alive())
    os.kill(process.pid, signal.SIGTERM)
    code, output = ended(process, tmp_path / "run.log")
    assert code == 75, output
    assert "stopped by SIGTERM after step" in output
    saved = checkpoint.read(checkpoint.published(tmp_path / "run")[0]).manifest["state"]["step"]
    assert 2 <= saved == metrics(tmp_path / "run")[-1]["step"] < 12
    server.fault = lambda path, asked: ""
    assert ended(start(tmp_path, "run", *settings), tmp_path / "run.log")[0] == 0
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize(
    ("verb", "number", "code", "said"),
    [
        (
            ["train", "recipe.yaml", "--run=run"],
            signal.SIGTERM,
            75,
            "plait: stopped by SIGTERM before training began; the same command starts again",
        ),
        (
            ["train", "recipe.yaml", "--run=run"],
            signal.SIGINT,
            130,
            "plait: stopped by SIGINT before training began; the same command starts again",
        ),
        (["data", "inspect", "recipe.yaml", "--out=out"], signal.SIGINT, 130, "plait: interrupted"),
    ],
)
def test_a_start_that_waits_for_a_silent_server_ends_at_the_first_signal(server, straight, tmp_path, verb, number, code, said):
    asked = []
    server.fault = lambda path, _: asked.append(path) or ("stall" if len(asked) > 3 else "")
    process = fresh(tmp_path, *verb, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: len(asked) > 3 or process.poll() is not None)
    time.sleep(1)  # into the wait for the answer
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code and errors.splitlines()[-1] == said
    assert time.monotonic() - began < web.SILENCE_S / 2
    server.fault = lambda path, asked: ""
    if verb[0] == "train":
        assert ended(start(tmp_path, "run"), tmp_path / "run.log")[0] == 0
        assert_same(tmp_path / "run", straight)


STUCK = """
import pathlib, threading
class Stuck:
    def load(self):
        return list(range(48))
    def get(self, idx, rng):
        if idx == 41 and pathlib.Path("run/metrics.jsonl").exists():
            pathlib.Path("stuck").touch()
            threading.Event().wait()
        return {"messages": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": str(idx)}]}
"""


def test_a_dataset_that_waits_for_ever_keeps_no_process_from_ending(server, tmp_path):
    (tmp_path / "mine.py").write_text(STUCK)
    settings = (
        "data.train=[{source: dataset, name: mine.py:Stuck}]",
        "data.validation=[]",
        "evaluate=[]",
        "train.steps=100",
        "guard.no_input=continue",
        "guard.no_gradient=continue",
    )
    words = ("train", "recipe.yaml", "--run=run", *(f"--{item}" for item in settings))
    process = fresh(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until = time.monotonic() + 100
    while not (tmp_path / "stuck").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    try:
        output, _ = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert output.splitlines()[-1].startswith("plait: stopped by SIGTERM after step")


def test_ranks_stop_together_while_they_wait_for_data(server, tmp_path):
    spoilt = fail_after(server, tmp_path / "run", 2, "stall")
    ranks = processes.start(2, plait, tmp_path, "run", ())
    wait_until(lambda: spoilt or not all(rank.is_alive() for rank in ranks))
    for rank in ranks:
        os.kill(rank.pid, signal.SIGTERM)
    assert processes.codes(ranks) == [0, 0]
    assert (tmp_path / "run.code").read_text() == "75"
    assert checkpoint.read(checkpoint.published(tmp_path / "run")[0]).manifest["state"]["step"] >= 2


def test_a_server_that_is_down_ends_the_run_with_all_saved_and_the_same_command_continues(server, straight, tmp_path):
    fail_after(server, tmp_path / "run", 3, "status 503")
    code, output = ended(start(tmp_path, "run"), tmp_path / "run.log")
    last = output.splitlines()[-1]
    assert code == 1, output
    failed = re.match(rf"plait: {server.url} is down: (\d+) reads in a row failed, the last: cannot read bytes ", last)
    assert failed and int(failed[1]) >= 8, last  # reads of other workers may fail meanwhile
    assert last.endswith("503 Service Unavailable; when it answers again, the same command continues")
    saved = checkpoint.read(checkpoint.published(tmp_path / "run")[0]).manifest["state"]["step"]
    assert f"the data failed after step {saved}, which is saved" in output
    assert output.count("tried again, 4 times at most") == 1
    server.fault = lambda path, asked: ""
    assert ended(start(tmp_path, "run"), tmp_path / "run.log")[0] == 0
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize(("allowed", "code"), [("0.01", 2), ("1", 0)])
def test_a_shard_that_is_gone_costs_its_samples_until_they_are_too_many(server, tmp_path, allowed, code):
    fail_after(server, tmp_path / "run", 1, "status 404", of=("1.tar",))
    process = start(tmp_path, "run", "evaluate=[]", f"guard.max_bad_fraction={allowed}")
    got, output = ended(process, tmp_path / "run.log")
    assert got == code, output
    assert ("samples could not be used, more than guard.max_bad_fraction = 0.01 allows" in output) is bool(code)
    assert f"there is no file {server.url}/1.tar" in (tmp_path / "run" / "quarantine.jsonl").read_text()


def test_a_signature_is_in_nothing_that_a_run_says_or_writes(server, straight, tmp_path, monkeypatch):
    """Nor in the cache; and what is trained is what it is without a signature."""
    signed = (tmp_path / "recipe.yaml").read_text().replace(".tar", ".tar?id=1&${SIGNATURE}")
    (tmp_path / "recipe.yaml").write_text(signed.replace(f"{server.url}/held.tar?id=1&${{SIGNATURE}}", "$ADDRESS"))
    monkeypatch.setenv("SIGNATURE", "X-Amz-Signature=sesame")
    monkeypatch.setenv("ADDRESS", f"{server.url}/held.tar?sig=sesame")
    fail_after(server, tmp_path / "run", 8, "status 403", of=("1.tar",))
    code, output = ended(start(tmp_path, "run", f"data.cache={tmp_path}/blocks", "guard.max_bad_fraction=1"), tmp_path / "run.log")
    assert code == 0, output
    assert {path.partition("?")[2] for path, _ in server.asked} == {"id=1&X-Amz-Signature=sesame", "sig=sesame"}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if "sesame" in path.name or b"sesame" in path.read_bytes()] == []
    assert [row["loss"] for row in metrics(tmp_path / "run")[:6] if "loss" in row] == [
        row["loss"] for row in metrics(straight)[:6] if "loss" in row
    ]
