"""Failing and full disks during training, saving and resuming: a run ends in one line, and the same command continues to the same bits."""

import errno
import json
import shutil
import signal
import subprocess
from pathlib import Path

from fault_rows import bench
from fault_rows.bench import Bench, Row
from fault_rows.kills import trained_config
from plait.engine.checkpoints import checkpoint
from plait.files import read_rows
from plait.keys import rng
from plait.training import launch

_WRITING = ("open", "write", "pwrite", "fsync", "replace", "rename", "mkdir")
_CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


def told(code: int, log: Path) -> str | None:
    """Return what is wrong with how a run ended that a disk failed: it ends well, or with one line and no traceback."""
    if code == 0 or (code in (1, 2) and not bench.traceback_in(log)):
        return None
    return f"exit code {code}, told as {bench.last_error(log)}"


def finished(setting: Bench, config: Path, straight: Path, run: Path, log: Path) -> str | None:
    """Continue a run whose disk has been mended; returns how it differs from the run that was left alone."""
    code = setting.run(["train", config, f"--run={run}"], log)
    return bench.run_difference(straight, run) if code == 0 else f"exit code {code} afterwards: {bench.last_error(log)}"


class Faulty:
    """A run whose calls fail by plan: it starts anew, or from a copy of one that was stopped half way (`half`)."""

    def __init__(self, setting: Bench, place: Path, plan: Path) -> None:
        self.setting, self.place, self.plan = setting, place, plan
        self.config, self.straight = trained_config(place)
        self.half = place / "half"
        self.run, self.log, self.fired = place / "run", place / "run.log", place / "fired"

    def prepare(self) -> None:
        """Run once undisturbed, and once up to the middle."""
        assert self.setting.run(["train", self.config, f"--run={self.straight}"], self.log) == 0, bench.last_error(self.log)

        def stop(process: launch.Process) -> None:
            while process.poll() is None and not list(self.half.glob("stage-1-*/step-00000004/manifest.json")):
                pass
            process.signal(signal.SIGKILL)

        self.setting.run(["train", self.config, f"--run={self.half}"], self.log, stop)
        checkpoint.clear_unfinished(self.half)

    def attempt(self, *, resumes: bool, **plan: object) -> int:
        """Train with a plan of faults, from the start or from the middle; returns the exit code."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        self.fired.unlink(missing_ok=True)
        if resumes:
            shutil.copytree(self.half, self.run)
        self.plan.write_text(json.dumps({"under": [str(self.run)], "fired": str(self.fired), **plan}))
        try:
            return self.setting.run(["train", self.config, f"--run={self.run}"], self.log)
        finally:
            self.plan.unlink()

    def calls(self, *, resumes: bool, under: Path) -> list[str]:
        """Return the names of all calls below a folder of an undisturbed run, in order."""
        counted = self.place / "calls"
        counted.unlink(missing_ok=True)
        assert self.attempt(resumes=resumes, under=[str(under)], counted=str(counted)) == 0, bench.last_error(self.log)
        return [line.split()[0] for line in counted.read_text().splitlines()]


def faults(setting: Bench) -> list[Row]:
    """One call fails with EIO or ENOSPC, in a run's directory or while its data are read; small disks that are full."""
    place = setting.place("disks")
    plan = place / "plan.json"
    with (
        bench.environment(PLAIT_FAULTS=str(plan), PYTHONPATH=str(Path(__file__).parents[1])),
        bench.warm(["fault_rows.injector"]) as launcher,
    ):
        own = Bench(setting.folder, launcher, setting.seed, setting.share)
        faulty = Faulty(own, place, plan)
        faulty.prepare()
        rows = [failing(own, faulty, name) for name in _CODES]
        rows.append(failing_data(own, faulty))
    return [*rows, full(setting, faulty)]


def failing(setting: Bench, faulty: Faulty, name: str) -> Row:
    """One call in the run's directory fails, half of the times in a run that is continued."""
    row, draw = Row(f"{name} at one call in the run's directory"), rng(setting.seed, "disk", name)
    kinds = {resumes: faulty.calls(resumes=resumes, under=faulty.run) for resumes in (False, True)}
    for number in range(setting.count(30)):
        resumes = number % 2 == 1
        fitting = [i for i, kind in enumerate(kinds[resumes], 1) if name == "EIO" or kind in _WRITING]
        at = int(draw.choice(fitting))
        code = faulty.attempt(resumes=resumes, at=at, errno=_CODES[name])
        if not faulty.fired.is_file():  # this time there were fewer calls: no try
            continue
        loss = told(code, faulty.log) or finished(setting, faulty.config, faulty.straight, faulty.run, faulty.log)
        where = f"call {at} ({kinds[resumes][at - 1]}) {'of a continued run' if resumes else 'of a new run'}"
        row.add(f"{where}: {loss}" if loss else None, ended_in_one_line=int(code != 0), went_on=int(code == 0))
    return row


def failing_data(setting: Bench, faulty: Faulty) -> Row:
    """One read of the training data fails: the run's bits are the same, or that sample is listed as a bad one with this reason."""
    row, draw = Row("EIO at one read of the data"), rng(setting.seed, "disk", "data")
    data = faulty.place / "data"
    reads = [i for i, kind in enumerate(faulty.calls(resumes=False, under=data), 1) if kind in ("pread", "read")]
    for _ in range(setting.count(10)):
        at = int(draw.choice(reads))
        code = faulty.attempt(resumes=False, under=[str(data)], at=at, errno=errno.EIO)
        if not faulty.fired.is_file():
            continue
        loss = told(code, faulty.log)
        listed = [entry for entry in read_rows(faulty.run / "quarantine.jsonl") if "Input/output error" in str(entry)]
        if loss is None and not (code == 0 and len(listed) == 1):
            loss = finished(setting, faulty.config, faulty.straight, faulty.run, faulty.log)
        row.add(f"call {at}: {loss}" if loss else None, bad_samples_listed=len(listed), ended_in_one_line=int(code != 0))
    return row


def full(setting: Bench, faulty: Faulty) -> Row:
    """A small file system is full in the middle of a run; with room made, the same command continues."""
    row, draw = Row("a disk that is full during a run (tmpfs)"), rng(setting.seed, "disk", "full")
    size = sum(path.stat().st_size for path in faulty.straight.rglob("*") if path.is_file())
    disk = faulty.place / "small"
    disk.mkdir()
    for _ in range(setting.count(10)):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size * draw.uniform(0.05, 0.9))}", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            row.notes["not_permitted_to_mount"] = 1
            return row
        try:
            log = faulty.place / "full.log"
            log.unlink(missing_ok=True)
            code = setting.run(["train", faulty.config, f"--run={disk / 'run'}"], log)
            subprocess.run(["mount", "-o", f"remount,size={20 * size}", disk], check=True)
            loss = told(code, log) or finished(setting, faulty.config, faulty.straight, disk / "run", log)
            row.add(loss, ended_in_one_line=int(code != 0))
        finally:
            subprocess.run(["umount", disk], check=True)
    return row
