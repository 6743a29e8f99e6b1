"""Runs of the toy family on shards of labelled pictures behind a web address, each command in a forked process with a log and a code."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from plait import cli
from plait.commands.prove.compare import CLOCK
from plait.data import remote, web
from plait.engine.checkpoints import checkpoint
from plait.families import registry
from tests import processes, toy_family
from tests.training.labelled_inputs import LabelledInputs

FAMILY = replace(toy_family.FAMILY, Inputs=LabelledInputs, inspect=lambda inputs, sample, example: {"images": [], "text": [], "notes": {}})
RECIPE = """
family: theworld
data:
  train: [{SOURCE, template: {user: "What is it?", assistant: "{label}"}}]
  validation: VALIDATION
  cache: CACHE
trainable: [projector]
optim: {lr: 1.0e-3, schedule: {warmup_steps: 1}, ema: {decay: 0.9}}
track: {every_steps: 1, tensorboard: false}
"""


def as_toy():
    """Put the toy in theworld's place, in this process."""
    registry.load = lambda name: FAMILY
    registry.benches = lambda name: {}
    registry.model_config = lambda name: toy_family.Config


def plait(folder, name, settings, hold_at=None):
    """`plait train` that waits an hour for a server that is silent, and not at all between attempts; its exit code is in NAME.code.

    `hold_at`: the run waits for ever after this step, until it is killed.
    """
    as_toy()
    os.chdir(folder)
    web.SILENCE_S, remote._WAITS_S = 3600.0, (0.0,) * 4
    if hold_at is not None:
        hold(Path(name) / "metrics.jsonl", hold_at)
    log = os.open(f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        code = cli.main(["train", "recipe.yaml", f"--run={name}", *(f"--{item}" for item in settings)])
    (folder / f"{name}.code").write_text(str(code))


def hold(path, step):
    """Have the toy's loss wait for ever once `path` has the row of a step."""
    sums = toy_family.Loss.sums

    def held(self, model, batch):
        while reached(path, step):
            signal.pause()
        return sums(self, model, batch)

    toy_family.Loss.sums = held


def reached(path, step):
    """Whether a run's metrics have the row of a step."""
    return path.is_file() and f'"step": {step},' in path.read_text()


def start(folder, name, *settings, hold_at=None):
    """Start `plait train` in a process of its own; its log begins anew."""
    for kind in ("code", "log"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return processes.forked(plait, folder, name, settings, hold_at)


def ended(process, log):
    """The exit code and output, waited for."""
    assert processes.codes([process]) == [0], log.read_text()
    return int(log.with_suffix(".code").read_text()), log.read_text()


def metrics(folder):
    """The rows of metrics.jsonl without what clocks say."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same(one, other):
    """Weights, averages, moments, plain state and metrics agree to the bit."""
    first, second = (checkpoint.read(checkpoint.published(folder)[0]) for folder in (one, other))
    assert first.manifest["state"] == second.manifest["state"]
    for group in ("weights", "ema", "moments"):
        mine, theirs = first.tensors(group), second.tensors(group)
        assert mine and mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert metrics(one) == metrics(other)
