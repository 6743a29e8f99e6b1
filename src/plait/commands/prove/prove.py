"""Run a configuration straight, and again with kills at random moments; hold the two runs against each other to the bit.

The configuration is the user's own, shortened (shorten.py). Each generation is a process of `plait train` (launch.py) that is watched
through its heartbeat and ended in one of three ways: SIGKILL, SIGTERM, or the death of a data worker. What is compared is in compare.py.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.commands.prove import compare, smoke_config
from plait.config.resolved import Resolved
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring import heartbeat
from plait.engine.monitoring.signals import Paused
from plait.errors import PlaitError
from plait.keys import rng
from plait.training import launch
from plait.training.launch import Launcher, Process

WAYS = ("SIGKILL", "SIGTERM", "worker")
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
"""Ways of ending and the phase they fall into; the first six are what six kills cover."""

_POLL_S = 0.001
_SLACK_S = 120.0
_SLOWER = 10
_WITH_WORKERS = ("--data.worker_kind=processes", "--data.workers=1")


class Diverged(PlaitError):
    """The killed run is not the straight one. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Event:
    """A phase that the straight run was in, and for how long."""

    phase: str
    step: int
    seconds: float


@dataclass
class Kill:
    """One planned end, and what came of it."""

    way: str
    phase: str
    step: int
    delay_s: float
    found: str = ""
    exit_code: int | None = None
    took_s: float = 0.0
    since: int | None = None
    """The step that the killed generation had started from."""
    left: int | None = None
    """The step that the next one starts from."""


@dataclass(frozen=True)
class Trial:
    """What all generations share."""

    config: Path
    launcher: Launcher
    limit_s: float = field(default=3600.0)

    def start(self, run: Path, extra: Sequence[str] = ()) -> Process:
        """One generation of `run`."""
        return self.launcher.start(["train", str(self.config), f"--run={run}", *extra], run.with_suffix(".log"))


def prove(
    resolved: Resolved, *, kills: int = 6, seed: int = 0, ranks: int = 1, steps: int = 8, warm: bool = False, out: Path | None = None
) -> None:
    """Run the proof and print its tables. Raises Diverged naming the first divergence; the runs are then kept.

    `steps`: of each stage. `warm`: fork the generations from one process that has imported everything. `out`: keep the runs here.
    """
    if out is not None and out.exists() and any(out.iterdir()):
        raise PlaitError(f"{out} is not empty; give --out a new folder")
    folder = out or Path(tempfile.mkdtemp(prefix="plait-prove-"))
    short = smoke_config.shorten(resolved, steps, folder / "short.yaml")
    print("shortened:", *smoke_config.changes(resolved, short), sep="\n  ")
    modules = ["plait.training.run", f"plait.families.{resolved.config.family}.family"]
    launcher: Launcher = launch.Warm(modules) if warm and ranks == 1 else launch.Fresh(ranks)
    try:
        lines, plan = rehearse(Trial(folder / "short.yaml", launcher), folder, kills, seed)
    except Diverged as error:
        raise Diverged(f"{error}; the runs are in {folder}") from error
    finally:
        launcher.close()
    print(table(lines))
    said = compare.divergence(lines)
    if said:
        raise Diverged(f"the two runs part {where(lines, plan)}: {said}; the runs are in {folder}")
    print(f"bit-exact: {kills} kills, {kills + 1} generations, {resolved.config.family}, {len(short.stages)} stages")
    if out is None:
        shutil.rmtree(folder)


def rehearse(
    trial: Trial, folder: Path, kills: int, seed: int, say: Callable[[str], None] = print
) -> tuple[list[compare.Line], list[Kill]]:
    """One straight and one killed run of a configuration, compared. Raises Diverged when a generation fails to go on."""
    straight, killed = folder / "straight", folder / "killed"
    began = time.monotonic()
    events = run_straight(trial, straight)
    took_s = time.monotonic() - began
    say(f"straight run: {events[-1].step} steps in {took_s:.1f} s")
    plan = choose(events, kills, seed)
    run_killed(Trial(trial.config, trial.launcher, _SLOWER * took_s + _SLACK_S), killed, plan, say)
    return compare.runs(straight, killed), plan


def where(lines: Sequence[compare.Line], plan: Sequence[Kill]) -> str:
    """Between which resumes the runs part. Before any, resuming is not at fault."""
    first = min(line.step for line in lines if line.first is not None)
    resumed = [kill.left for kill in plan if kill.left is not None and kill.left < first]
    if resumed:
        return f"after going on from step {max(resumed)}"
    return "before anything was resumed, so something is drawn without a key or computed in no fixed order"


def run_straight(trial: Trial, run: Path) -> list[Event]:
    """The run without a kill, to its end; returns the phases it went through. Raises PlaitError when it fails."""
    process, events, before = trial.start(run), [], None
    while (code := process.poll()) is None:
        now = heartbeat.read(run)
        if now is not None and (before is None or heartbeat.position(now) != heartbeat.position(before)):
            if before is not None:
                events.append(Event(before["phase"], before["step"], now["time_s"] - before["time_s"]))
            before = now
        time.sleep(_POLL_S)
    if code != 0 or before is None:
        raise PlaitError(f"the run does not end well even without a kill (exit code {code}): {_last_line(run)}")
    return [*events, Event("done", heartbeat.read(run)["step"], 0.0)]  # type: ignore[index]


def choose(events: Sequence[Event], kills: int, seed: int) -> list[Kill]:
    """`kills` moments of the straight run, drawn by `seed`: each kind of MOMENTS in its turn, at a random event of its phase."""
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


def run_killed(trial: Trial, run: Path, plan: Sequence[Kill], say: Callable[[str], None]) -> None:
    """The run with every planned kill, then to its end. Fills in what came of each; raises Diverged when a generation fails."""
    for number, kill in enumerate(plan, 1):
        found, _ = checkpoint.newest_intact(run)
        kill.since = found.step if found else None
        _generation(trial, run, kill)
        ended = f"exit {kill.exit_code} after {kill.took_s:.1f} s"
        say(f"  {number:3d}  {kill.way:7s}  {kill.found:24s}  from step {kill.since or 0:<6d} {ended}")
        after, faults = checkpoint.newest_intact(run)
        kill.left = after.step if after else None
        if faults or (after.step if after else -1) < (kill.since if kill.since is not None else -1):
            raise Diverged(f"kill {number} ({kill.way} in {kill.found}) cost a checkpoint: {faults[:1] or 'the newest is gone'}")
    process = trial.start(run)
    code = _wait(process, run, trial.limit_s)
    if code != 0:
        raise Diverged(f"the last generation did not reach the end (exit code {code}): {_last_line(run)}")


def _generation(trial: Trial, run: Path, kill: Kill) -> None:
    """Start, wait for the moment, deliver, and hold the exit code against what that way of ending must give."""
    old = heartbeat.read(run)
    process = trial.start(run, _WITH_WORKERS if kill.way == "worker" else ())
    kill.found = _until(process, run, kill, old, trial.limit_s)
    began = time.monotonic()
    if kill.found != "after its end":
        _deliver(process, kill)
    kill.exit_code = _wait(process, run, trial.limit_s)
    kill.took_s = time.monotonic() - began
    allowed = {"SIGKILL": {-signal.SIGKILL, 0}, "SIGTERM": {Paused.exit_code, 0, -signal.SIGTERM}, "worker": {PlaitError.exit_code, 0}}[
        kill.way
    ]
    if trial.launcher.ranks > 1:  # torchrun has exit codes of its own
        allowed = allowed | {1, -signal.SIGTERM}
    line = _last_line(run)
    told = {"SIGTERM": "the same command continues", "worker": "data worker"}.get(kill.way, "")
    if kill.exit_code not in allowed or (kill.exit_code > 0 and told not in line):
        raise Diverged(f"the generation that was to end by {kill.way} in {kill.found} did not go on (exit code {kill.exit_code}): {line}")


def _until(process: Process, run: Path, kill: Kill, old: dict[str, Any] | None, limit_s: float) -> str:
    """Wait for the kill's moment, or the first one past it; returns the moment that it became."""
    deadline = time.monotonic() + limit_s
    while process.poll() is None:
        now = heartbeat.read(run)
        if now is not None and now["pid"] != (old or {}).get("pid") and _reached(now, kill):
            time.sleep(kill.delay_s)
            now = heartbeat.read(run) or now
            return f"{now['phase']} after step {now['step']}"
        if time.monotonic() > deadline:
            process.signal(signal.SIGKILL)
            raise Diverged(f"a generation hangs: {limit_s:.0f} s without reaching {kill.phase} of step {kill.step}; it is in {now}")
        time.sleep(_POLL_S)
    return "after its end"


def _reached(now: dict[str, Any], kill: Kill) -> bool:
    return now["phase"] == "done" or now["step"] > kill.step or (now["step"] == kill.step and now["phase"] == kill.phase)


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
            raise Diverged(f"a generation hangs: it has not ended for {limit_s:.0f} s; it is in {heartbeat.read(run)}")
        time.sleep(_POLL_S)
    return code


def _last_line(run: Path) -> str:
    log = run.with_suffix(".log")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    own = [line for line in lines if line.startswith("plait: ")]
    return (own or lines or [""])[-1]


def table(lines: Sequence[compare.Line]) -> str:
    """The comparison as aligned text."""
    rows = [(line.what, f"{line.compared:,}", line.first or "equal to the bit") for line in lines]
    return "\n".join(f"  {what:18s}{count:>10s}  {said}" for what, count, said in rows)
