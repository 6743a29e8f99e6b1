"""A run killed before or after its first checkpoint, or gone back: TensorBoard and W&B have each step as `metrics.jsonl` has it."""

import json
import os
import signal
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plait import cli, files
from plait.engine.monitoring.tracking import Tracker
from tests import processes, toy_family

KILLED = 30
"""The step that kills: so late that the event writer, which holds ten events back, has written many of the dead attempt's."""
SETTINGS = {
    "stages": "[]", "checkpoint.best": "null", "evaluate.0.every_steps": "4", "train.steps": "36",
    "track.tensorboard": "true", "track.wandb": "{project: toy}", "guard.non_finite_steps": "99",
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The toy's recipe, and a `wandb` that writes what it is told to RUN/sent."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "wandb.py").write_text(
        "import json\n"
        "class Session:\n"
        "    url = 'here'\n"
        "    def __init__(self, folder): self.path = folder + '/sent'\n"
        "    def write(self, *what): open(self.path, 'a').write(json.dumps(what) + chr(10))\n"
        "    def define_metric(self, name, step_metric=None): self.write('metric', name, step_metric)\n"
        "    def log(self, values, step=None): self.write('row', values, step)\n"
        "    def finish(self): self.write('end')\n"
        "def Settings(**_): pass\n"
        "def init(**asked): return Session(asked['dir'])\n"
    )
    return toy_family.install(monkeypatch, tmp_path)


def train(recipe, folder, every_steps, *, killed=False, **settings):
    """The exit code of `plait train` in a process of its own, which is killed in step `KILLED` if that is asked for."""
    record = Tracker.row

    def fatal(tracker, row):
        record(tracker, row)
        if row["step"] == KILLED and "loss" in row:
            os.kill(os.getpid(), signal.SIGKILL)

    def body():
        Tracker.row = fatal if killed else record
        options = {**SETTINGS, "checkpoint.every_steps": every_steps, **settings}
        os._exit(cli.main(["train", str(recipe), f"--run={folder}", *(f"--{name}={value}" for name, value in options.items())]))

    process = processes.FORK.Process(target=body)
    process.start()
    (code,) = processes.codes([process])
    return code


def sent(folder, sessions):
    """What W&B was told, once so many sessions have ended: that of a killed run ends some moments after it."""
    path, deadline = folder / "sent", time.monotonic() + 120
    while not path.is_file() or path.read_text().count('["end"]') < sessions:
        assert time.monotonic() < deadline, "a session has not ended"
        time.sleep(0.01)
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(folder):
    """{(tag, step): value} of all that TensorBoard shows, which shows nothing twice."""
    reader = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0}).Reload()
    points = [((tag, event.step), event.value) for tag in reader.Tags()["scalars"] for event in reader.Scalars(tag)]
    assert len(points) == len(dict(points))
    return dict(points)


def recorded(rows):
    """{(name, step): value} of the numbers of rows; of one given twice, the later."""
    numbers = ((name, row["step"], value) for row in rows for name, value in row.items() if name not in ("step", "ids", "spent"))
    return {(name, step): float(value) for name, step, value in numbers}


def assert_each_step_once(folder, sessions):
    expected = recorded(files.read_rows(folder / "metrics.jsonl"))
    assert {step for name, step in expected if name == "loss"} == set(range(1, int(SETTINGS["train.steps"]) + 1))
    points = shown(folder)
    assert points.keys() == expected.keys()
    assert all(np.float32(expected[name]) == np.float32(value) or np.isnan([expected[name], value]).all() for name, value in points.items())
    told = sent(folder, sessions)
    assert [what[1:] for what in told if what[0] == "metric"] == [["step", None], ["*", "step"]] * sessions
    assert {what[2] for what in told if what[0] == "row"} == {None}  # W&B would drop a step lower than its own
    newest = recorded(what[1] for what in told if what[0] == "row")
    assert newest.keys() == expected.keys()
    assert all(newest[name] == value or np.isnan([newest[name], value]).all() for name, value in expected.items())


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(("every_steps", "resumed"), [(100, 0), (16, 16)], ids=["before the first checkpoint", "after a checkpoint"])
def test_steps_of_a_killed_run_are_shown_once_with_their_new_values(recipe, tmp_path, every_steps, resumed):
    run = tmp_path / "run"
    assert train(recipe, run, every_steps, killed=True) == -signal.SIGKILL
    sent(run, 1)
    dead = shown(run)
    assert max(step for name, step in dead if name == "samples_per_s") > resumed
    assert train(recipe, run, every_steps) == 0
    assert_each_step_once(run, 2)
    again = [dead[name] == shown(run)[name] for name in dead if name[0] == "samples_per_s" and name[1] > resumed]
    assert again and not all(again)  # times differ between attempts


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("every_steps", [100, 16])
def test_steps_that_a_rewind_takes_again_are_shown_once(recipe, tmp_path, every_steps):
    path = tmp_path / "train.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"y": 1e39}), *rest]) + "\n")
    assert train(recipe, tmp_path / "run", every_steps, **{"guard.non_finite": "rewind"}) == 0
    rewinds = len(list((tmp_path / "run" / "non-finite").glob("step-*.json")))
    assert rewinds >= 3
    assert_each_step_once(tmp_path / "run", rewinds + 1)
