"""What `plait prove` does: run a configuration undisturbed and with kills at random times, and compare the two runs bit by bit.

The configuration is the user's, shortened (smoke_config.py). A killed run is a sequence of `plait train` processes (launch.py), each
watched through its heartbeat, a file with its phase (data, step, save, ...), and ended by SIGKILL, SIGTERM, or the kill of a data worker.
The comparison is in compare.py.
"""

import functools
import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.commands.actions.passport import proofs
from plait.commands.prove import compare, smoke_config
from plait.config.resolved import Resolved
from plait.engine.checkpoints import integrity
from plait.engine.monitoring import beats
from plait.engine.monitoring.signals import EARLY, Paused
from plait.errors import PlaitError, Stopped
from plait.keys import rng
from plait.training import launch
from plait.training.launch import Launcher, Process

log = logging.getLogger(__name__)

MOMENTS = (
    ("SIGKILL", "step"),
    ("SIGKILL", "save"),
    ("SIGTERM", "evaluate"),
    ("worker", "data"),
    ("SIGKILL", "stage"),
    ("SIGTERM", "step"),
    ("SIGKILL", "evaluate"),
    ("SIGTERM", "save"),
    ("SIGKILL", "data"),
    ("worker", "step"),
    ("SIGTERM", "stage"),
    ("SIGTERM", "data"),
)
"""Planned kills in turn: what ends the process, and the phase of the run in which it comes."""

LATE = "after its end"
"""The moment of a kill that came when the run had ended."""
_POLL_S = 0.001
_SLACK_S = 120.0
_SLOWER = 10
_EXPECTED = {"SIGTERM": ("the same command continues", EARLY), "worker": ("data worker",), "SIGKILL": ("",)}
"""What the last line of a process that was ended in a way says, any of these."""
_WITH_WORKERS = ("--data.worker_kind=processes", "--data.workers=1")


class Diverged(PlaitError):
    """Raised when the killed run differs from the undisturbed one, or did not continue. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Event:
    """A `phase` (data, step, save, ...) of the undisturbed run, the `step` in which it occurred, and how many `seconds` it took."""

    phase: str
    step: int
    seconds: float


@dataclass
class Kill:
    """One planned kill, `delay_s` after `phase` of `step` begins, and its outcome. `way`: SIGKILL, SIGTERM, or worker (a data worker dies).

    Its outcome: `moment`: the phase and step in which it really came; `exit_code` of the process; `took_s`: from the kill to its end.
    `since`: the step from which the killed process had started; `left`: the step from which the next process starts (None: from the
    beginning).
    """

    way: str
    phase: str
    step: int
    delay_s: float
    moment: str = ""
    exit_code: int | None = None
    took_s: float = 0.0
    since: int | None = None
    left: int | None = None


@dataclass(frozen=True)
class Trial:
    """What all processes of both runs have in common: the configuration file, how they are started, and the time limit of each."""

    config: Path
    launcher: Launcher
    limit_s: float = field(default=3600.0)

    def start(self, run: Path, extra: Sequence[str] = ()) -> Process:
        """Start a process that trains the run directory `run`, or continues it, with output to `run`.log; `extra`: further arguments."""
        return self.launcher.start(["train", str(self.config), f"--run={run}", *extra], run.with_suffix(".log"))


def prove(
    resolved: Resolved,
    *,
    kills: int = 6,
    seed: int = 0,
    ranks: int = 1,
    steps: int = 8,
    warm: bool = False,
    out: Path | None = None,
    run: Path | None = None,
) -> None:
    """Run a configuration undisturbed and with kills, compare the two runs bit by bit, and print the result.

    `ranks`: processes of each run, under torchrun if several. `steps`: at most, of each stage (part of a run). `seed`: chooses the moments
    of the kills. `warm`: fork the processes from one that has imported everything. `out`: folder in which the runs are kept; without it
    they are removed if they are equal. `run`: the run directory of this configuration, where the verdict is kept. Raises
    Diverged, a PlaitError, if they differ, and PlaitError if `out` is not empty or the undisturbed run fails.
    """
    if out is not None and out.exists() and any(out.iterdir()):
        raise PlaitError(f"{out} is not empty; give --out a new folder")
    folder = out or Path(tempfile.mkdtemp(prefix="plait-prove-"))
    short = smoke_config.make_smoke_config(resolved, steps, folder / "short.yaml")
    log.info("\n  ".join(["shortened:", *smoke_config.changes(resolved, short)]))
    keep = functools.partial(proofs.keep, run, seed=seed, ranks=ranks, steps=steps)
    modules = ["plait.training.run", f"plait.families.{resolved.config.family}.family"]
    launcher: Launcher = launch.Warm(modules) if warm and ranks == 1 else launch.Fresh(ranks)
    try:
        lines, plan = rehearse(Trial(folder / "short.yaml", launcher), folder, kills, seed)
    except Diverged as error:
        keep(str(error), kills)
        raise Diverged(f"{error}; the runs are in {folder}") from error
    finally:
        launcher.close()
    log.info(table(lines))
    difference = compare.divergence(lines)
    ways = [kill.way for kill in plan if kill.moment != LATE]
    keep(f"the runs part {where(lines, plan)}" if difference else proofs.BIT_EXACT, len(ways), ways)
    if difference:
        raise Diverged(f"the two runs part {where(lines, plan)}: {difference}; the runs are in {folder}")
    log.info(f"bit-exact: {kills} kills, {kills + 1} generations, {resolved.config.family}, {len(short.stages)} stages")
    if out is None:
        shutil.rmtree(folder)


def rehearse(trial: Trial, folder: Path, kills: int, seed: int) -> tuple[list[compare.Line], list[Kill]]:
    """Run the trial undisturbed and with `kills` kills; return (the comparison's lines, the kills with their outcomes).

    `folder`: where both runs are written; `seed` chooses the moments. Raises PlaitError if the undisturbed run fails, and Diverged, a
    PlaitError, if the killed run does not continue.
    """
    straight, killed = folder / "straight", folder / "killed"
    began = time.monotonic()
    events = run_straight(trial, straight)
    took_s = time.monotonic() - began
    log.info(f"straight run: {events[-1].step} steps in {took_s:.1f} s")
    plan = choose(events, kills, seed)
    run_killed(Trial(trial.config, trial.launcher, _SLOWER * took_s + _SLACK_S), killed, plan)
    return compare.runs(straight, killed), plan


def where(lines: Sequence[compare.Line], plan: Sequence[Kill]) -> str:
    """Return after which restart two runs begin to differ, as the end of a sentence ("after going on from step 6").

    `lines`: the comparison of the runs, with at least one difference; `plan`: the kills that were carried out.
    """
    first = min(line.step for line in lines if line.first is not None)
    resumed = [kill.left for kill in plan if kill.left is not None and kill.left < first]
    if resumed:
        return f"after going on from step {max(resumed)}"
    return "before anything was resumed, so something is drawn without a key or computed in no fixed order"


def run_straight(trial: Trial, run: Path) -> list[Event]:
    """Train the trial's configuration once to its end, undisturbed, as the reference that killed runs are compared with.

    `run` is the new run directory. Returns the phases (data, step, evaluate, save, ...) that its heartbeat went through, with their
    durations. Raises PlaitError when training fails.
    """
    process, events, before = trial.start(run), [], None
    while (code := process.poll()) is None:
        now = beats.read(run)
        if now is not None and (before is None or beats.position(now) != beats.position(before)):
            if before is not None:
                events.append(Event(before["phase"], before["step"], now["time_s"] - before["time_s"]))
            before = now
        time.sleep(_POLL_S)
    if code != 0 or before is None:
        raise PlaitError(f"the run does not end well even without a kill (exit code {code}): {_last_line(run)}")
    last = beats.read(run)
    assert last is not None, "a run that ended well has a heartbeat"
    return [*events, Event("done", last["step"], 0.0)]


def choose(events: Sequence[Event], kills: int, seed: int) -> list[Kill]:
    """Return `kills` planned kills, in order of time, at events of the undisturbed run that `seed` chooses.

    Each takes the next item of MOMENTS, how to kill and in which phase; where no event has that phase, any event.
    """
    draw = rng(seed, "prove")
    last = events[-1].step
    chosen = []
    for number in range(kills):
        way, phase = MOMENTS[(number + seed * kills) % len(MOMENTS)]
        fitting = [i for i, event in enumerate(events) if event.phase == phase and (event.step > 0 or phase in ("step", "data"))]
        early = [i for i in fitting if events[i].step < last]
        position = int(draw.choice(early or fitting or range(len(events) - 1)))
        chosen.append((position, way))
    plan = []
    for position, way in sorted(chosen, key=lambda item: item[0]):
        event = events[position]
        plan.append(Kill(way, event.phase, event.step, float(draw.uniform(0, 1.2 * event.seconds))))
    return plan


def run_killed(trial: Trial, run: Path, plan: Sequence[Kill]) -> None:
    """Train the run directory `run` with every planned kill, then to its end; fill in the outcome of each kill in `plan`.

    `trial`: how to start the processes. Raises Diverged, a PlaitError, if the run does not continue after a kill.
    """
    for number, kill in enumerate(plan, 1):
        before, _ = integrity.newest_intact(run)
        kill.since = before.step if before else None
        _generation(trial, run, kill)
        ended = f"exit {kill.exit_code} after {kill.took_s:.1f} s"
        log.info(f"  {number:3d}  {kill.way:7s}  {kill.moment:24s}  from step {kill.since or 0:<6d} {ended}")
        after, faults = integrity.newest_intact(run)
        kill.left = after.step if after else None
        if faults or (after.step if after else -1) < (kill.since if kill.since is not None else -1):
            raise Diverged(f"kill {number} ({kill.way} in {kill.moment}) cost a checkpoint: {faults[:1] or 'the newest is gone'}")
    process = trial.start(run)
    code = _wait(process, run, trial.limit_s)
    if code != 0:
        raise Diverged(f"the last generation did not reach the end (exit code {code}): {_last_line(run)}")


def _generation(trial: Trial, run: Path, kill: Kill) -> None:
    """Start a process, kill it at its moment, and check its exit code. Raises Diverged for a code that this kill must not give."""
    old = beats.read(run)
    process = trial.start(run, _WITH_WORKERS if kill.way == "worker" else ())
    kill.moment = _until(process, run, kill, old, trial.limit_s)
    began = time.monotonic()
    if kill.moment != LATE:
        _deliver(process, kill)
    kill.exit_code = _wait(process, run, trial.limit_s)
    kill.took_s = time.monotonic() - began
    allowed = {"SIGKILL": {-signal.SIGKILL, 0}, "SIGTERM": {Paused.exit_code, 0, -signal.SIGTERM}, "worker": {Stopped.exit_code, 0}}[
        kill.way
    ]
    if trial.launcher.ranks > 1:  # torchrun has exit codes of its own
        allowed = allowed | {1, -signal.SIGTERM}
    line = _last_line(run)
    if kill.exit_code not in allowed or (kill.exit_code > 0 and not any(words in line for words in _EXPECTED[kill.way])):
        raise Diverged(f"the generation that was to end by {kill.way} in {kill.moment} did not go on (exit code {kill.exit_code}): {line}")


def _until(process: Process, run: Path, kill: Kill, old: dict[str, Any] | None, limit_s: float) -> str:
    """Wait for the moment of the kill, or the first one past it, and return it. Raises Diverged at the time limit."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        now = beats.read(run)
        if now is not None and now["pid"] != (old or {}).get("pid") and _reached(now, kill):
            time.sleep(kill.delay_s)
            now = beats.read(run) or now
            return f"{now['phase']} after step {now['step']}"
        if time.monotonic() > deadline:
            process.signal(signal.SIGKILL)
            raise Diverged(f"a generation hangs: {limit_s:.0f} s without reaching {kill.phase} of step {kill.step}; it is in {now}")
        time.sleep(_POLL_S)
    return LATE


def _reached(now: dict[str, Any], kill: Kill) -> bool:
    """Return whether the heartbeat `now` is at the moment of the kill or past it."""
    return bool(now["phase"] == "done" or now["step"] > kill.step or (now["step"] == kill.step and now["phase"] == kill.phase))


def _deliver(process: Process, kill: Kill) -> None:
    if kill.way == "worker":
        workers = launch.data_workers(process.pid)
        for pid in workers[:1]:
            launch.kill(pid)
        if workers:
            return
        kill.way = "SIGKILL"  # between two stages there is no worker to kill
    process.signal(signal.Signals[kill.way])


def _wait(process: Process, run: Path, limit_s: float) -> int:
    deadline = time.monotonic() + limit_s
    while (code := process.poll()) is None:
        if time.monotonic() > deadline:
            process.signal(signal.SIGKILL)
            raise Diverged(f"a generation hangs: it has not ended for {limit_s:.0f} s; it is in {beats.read(run)}")
        time.sleep(_POLL_S)
    return code


def _last_line(run: Path) -> str:
    log = run.with_suffix(".log")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("plait: ")]
    return (errors or lines or [""])[-1]


def table(lines: Sequence[compare.Line]) -> str:
    """Return the lines of the comparison as aligned text: what, how many, and "equal to the bit" or the first difference."""
    rows = [(line.what, f"{line.compared:,}", line.first or "equal to the bit") for line in lines]
    return "\n".join(f"  {what:18s}{count:>10s}  {result}" for what, count, result in rows)
