"""SIGKILL at random moments: of data workers, of the W&B process, of a first start, and of every command that writes."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fault_rows import bench
from fault_rows.bench import Bench, Row
from plait.commands.prove import prove
from plait.commands.prove.prove import Trial
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError
from plait.files import read_rows
from plait.keys import rng
from plait.training import launch

_STEPS = 10  # of a stage whose data workers are killed: enough that they are not done at once
STAND_IN = '''
"""In the place of W&B: appends every step that it is given to the file `sent` of the run."""
import os
def Settings(**_): pass
class Session:
    url = "here"
    def __init__(self, folder): self.path = os.path.join(folder, "sent")
    def define_metric(self, *_, **__): pass
    def log(self, values):
        with open(self.path, "a") as file: file.write(f"{int(values['step'])}\\n")
    def finish(self): pass
def init(dir, **_): return Session(dir)
'''


@dataclass(frozen=True)
class Command:
    """A command to be killed. `made`: what it writes, removed before a try; `watched`: the folder to compare; `skipped`: names in it."""

    name: str
    arguments: Sequence[object]
    made: Callable[[], Sequence[Path]]
    watched: Path
    skipped: Sequence[str] = ()


def clear(command: Command) -> None:
    for path in command.made():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def kill_command(setting: Bench, command: Command, tries: int) -> Row:
    """Kill a command `tries` times, half of them after its first write; run it again and compare all files with those of no kill."""
    row, draw = Row(f"kill of `plait {command.name}`"), rng(setting.seed, command.name)
    log = setting.folder / f"{command.name.replace(' ', '-')}.log"
    clear(command)
    before = bench.tree(command.watched).keys()
    began, first = time.time(), [0.0]

    def note(process: launch.Process) -> None:
        until_written(process, command.watched, before)
        first[0] = time.time() - began

    if (code := setting.run(command.arguments, log, note)) != 0:
        raise PlaitError(f"{command.name} fails without a kill (exit code {code}): {bench.last_error(log)}")
    total = time.time() - began
    written = max(path.stat().st_ctime for path in [command.watched, *command.watched.rglob("*")]) - began
    wanted = bench.tree(command.watched, without=command.skipped)
    for number in range(tries):
        clear(command)
        log.unlink(missing_ok=True)
        late = number % 2 == 1
        delay = float(draw.uniform(0, 1.1 * max(0.001, written - first[0]) if late else total))

        def end(process: launch.Process, late: bool = late, delay: float = delay) -> None:
            if late:
                until_written(process, command.watched, before)
            time.sleep(delay)
            bench.kill(process)

        killed = setting.run(command.arguments, log, end) != 0
        left = bench.leftovers(command.watched)
        code = setting.run(command.arguments, log)
        done = code == 0 or (code == 2 and "exists already" in bench.last_error(log))
        loss = None if done else f"exit code {code} after the kill: {bench.last_error(log)}"
        loss = loss or bench.difference(wanted, bench.tree(command.watched, without=command.skipped))
        row.add(loss, in_time=int(killed), leftovers_swept=left)
    clear(command)
    return row


def until_written(process: launch.Process, folder: Path, before: Sequence[str]) -> None:
    """Wait until a process has made its first file or folder below `folder`, or has ended."""
    while process.poll() is None and len(list(folder.rglob("*"))) <= len(before):
        time.sleep(0.0005)


def commands(setting: Bench) -> list[Row]:
    """Kills of `data index`, `data shard`, `eval`, `export`, `ckpt consolidate` and `fork`."""
    place = setting.place("commands")
    data, captioned, run = place / "data", place / "captioned", place / "runs" / "run"
    bench.write_tars(data, 3, 16)
    bench.write_tars(captioned, 60, 8, label="txt")
    config = bench.write_config(place, data)
    assert setting.run(["train", config, f"--run={run}"], place / "train.log") == 0, bench.last_error(place / "train.log")
    outs = {name: place / name / "out" for name in ("shard", "export", "consolidate", "fork")}
    for out in outs.values():
        out.parent.mkdir()
    encoders = ["--latents=tiny", "--texts=tiny", "--images=tiny"]
    shard = ["data", "shard", captioned, outs["shard"], *encoders, "--buckets=32x32,64x32", "--batch=8", "--per-shard=16", "--limit=96"]

    def whole(name: str) -> Callable[[], list[Path]]:
        return lambda: list(outs[name].parent.iterdir())

    listed = [
        Command("data index", ["data", "index", captioned / "*.tar", "--beside"], lambda: list(captioned.glob("*.idx")), captioned),
        Command("data shard", shard, whole("shard"), outs["shard"].parent),
        Command("eval", ["eval", run, "--bench=accuracy"], lambda: [run / "eval"], run, (*bench.UNTIMED, "sheet.png")),  # a date drawn
        Command("export", ["export", run, outs["export"]], whole("export"), outs["export"].parent),
        Command("ckpt consolidate", ["ckpt", "consolidate", run, outs["consolidate"]], whole("consolidate"), outs["consolidate"].parent),
        Command("fork", ["fork", run, outs["fork"], "--optim.lr=1e-4"], whole("fork"), outs["fork"].parent, bench.UNTIMED),
    ]
    return [kill_command(setting, command, setting.count(20)) for command in listed]


def first_start(setting: Bench) -> list[Row]:
    """Kills of a new run before its first checkpoint; the same command again must give the bits of a run that was left alone."""
    place, row, draw = setting.place("first-start"), Row("kill in the first start of a run"), rng(setting.seed, "first start")
    config, straight = trained_config(place)
    began = time.monotonic()
    times: list[float] = []

    def note(process: launch.Process) -> None:
        while process.poll() is None and not checkpoint.published(straight):
            time.sleep(0.001)
        times.append(time.monotonic() - began)

    assert setting.run(["train", config, f"--run={straight}"], place / "straight.log", note) == 0
    for number in range(setting.count(20)):
        run, log = place / f"run-{number}", place / f"run-{number}.log"
        delay = float(draw.uniform(0, times[0]))
        code = setting.run(["train", config, f"--run={run}"], log, lambda process, delay=delay: (time.sleep(delay), bench.kill(process)))
        left = bench.leftovers(run)
        again = setting.run(["train", config, f"--run={run}"], log)
        loss = bench.run_difference(straight, run) if again == 0 else f"exit code {again} after the kill: {bench.last_error(log)}"
        row.add(loss, in_time=int(code != 0), leftovers_swept=left)
        shutil.rmtree(run, ignore_errors=True)
    return [row]


def trained_config(place: Path, prefetch: int = 2, **settings: object) -> tuple[Path, Path]:
    """Write data and the recipe of a tiny run, with these sections; returns the recipe and the path of the run to be left alone."""
    bench.write_tars(place / "data", 3, 16)
    return bench.write_config(place, place / "data", prefetch, **settings), place / "straight"


def data_workers(setting: Bench) -> list[Row]:
    """Kills of data worker processes; each run goes on by the same command to the bits of the run that was left alone."""
    place, row, draw = setting.place("workers"), Row("kill of a data worker process"), rng(setting.seed, "workers")
    config, straight = trained_config(place, train={"steps": _STEPS, "global_batch": 8, "micro_batch": 4}, prefetch=1)
    trial = Trial(config, setting.launcher)
    events = [
        event for event in prove.run_straight(trial, straight) if event.phase in ("data", "step") and event.step % _STEPS < _STEPS - 3
    ]
    with bench.no_shared_memory_left(row):
        left, number = setting.count(12), 0
        while left:
            run, kills, number = place / f"run-{number}", min(left, 3), number + 1
            left -= kills
            chosen = sorted((events[int(i)] for i in draw.choice(len(events), kills)), key=lambda event: event.step)
            plan = [prove.Kill("worker", event.phase, event.step, float(draw.uniform(0, event.seconds))) for event in chosen]
            try:
                prove.run_killed(trial, run, plan)
                loss = bench.run_difference(straight, run)
            except prove.Diverged as error:
                loss = str(error)
            for kill in plan:
                row.add(loss, workers_killed=int(kill.way == "worker" and kill.moment != "after its end"))
            shutil.rmtree(run, ignore_errors=True)
    return [row]


def mirror_process(pid: int) -> int | None:
    """Return the process below `pid` that sends metrics to W&B."""
    for child in launch.descendants(pid):
        try:
            if b"tracker_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        except OSError:
            continue
    return None


def wandb(setting: Bench) -> list[Row]:
    """Kills of the process that sends to W&B (a stand-in takes the rows); bits, every row sent, and no process left."""
    place, row, draw = setting.place("wandb"), Row("kill of the W&B process"), rng(setting.seed, "wandb")
    (place / "modules").mkdir()
    (place / "modules" / "wandb.py").write_text(STAND_IN)
    config, straight = trained_config(place, track={"every_steps": 1, "tensorboard": False, "wandb": {"project": "faults"}})
    with bench.environment(PYTHONPATH=str(place / "modules")), bench.warm() as launcher:
        own = Bench(setting.folder, launcher, setting.seed, setting.share)
        began = time.monotonic()
        assert own.run(["train", config, f"--run={straight}"], place / "straight.log") == 0
        total = time.monotonic() - began
        for number in range(setting.count(8)):
            row.add(*wandb_try(own, config, straight, place / f"run-{number}", float(draw.uniform(0, 0.3 * total)), row))
    return [row]


def wandb_try(setting: Bench, config: Path, straight: Path, run: Path, delay: float, row: Row) -> list[str | None]:
    """Kill the mirror of one run `delay` seconds after it has started; returns what was lost."""
    killed: list[int] = []

    def end(process: launch.Process) -> None:
        while process.poll() is None and mirror_process(process.pid) is None:
            time.sleep(0.005)
        time.sleep(delay)
        if (pid := mirror_process(process.pid)) is not None:
            launch.kill(pid)
            killed.append(pid)

    log = run.with_suffix(".log")
    code = setting.run(["train", config, f"--run={run}"], log, end)
    row.notes["in_time"] = row.notes.get("in_time", 0) + len(killed)
    if code != 0:
        return [f"exit code {code}: {bench.last_error(log)}"]
    loss = bench.run_difference(straight, run)
    sent = set(map(int, (run / "sent").read_text().split())) if (run / "sent").is_file() else set()
    lacking = {entry["step"] for entry in read_rows(run / "metrics.jsonl")} - sent
    told = "was killed by signal 9" in log.read_text()
    loss = loss or (f"W&B lacks steps {sorted(lacking)[:3]}" if lacking else None)
    return [loss or ("the kill was not told" if killed and not told else None)]


def steps_of(events: Sequence[prove.Event], draw: np.random.Generator, count: int) -> list[prove.Event]:
    """Return `count` random moments inside of steps, in order."""
    inside = [event for event in events if event.phase == "step" and 0 < event.step < events[-1].step]
    return sorted((inside[int(i)] for i in draw.choice(len(inside), count)), key=lambda event: event.step)
