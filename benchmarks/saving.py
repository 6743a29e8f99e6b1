"""What a save withstands and what it costs: kills while writing, full disks, failing disks, flipped bytes, the stall of training.

    OMP_NUM_THREADS=1 python benchmarks/saving.py [--kills 50] [--full 25] [--failing 25] [--flips 2000] [--rounds 7]
        [--megabytes 200 2000] [--only stall] [--dir DIR]

kills:   a process writes a checkpoint, every other time over one of the same step, and gets SIGKILL at a random moment of it; half of them
         32 MB on disk, where most moments fall into flushing, half 200 MB in memory (/dev/shm), where most fall into writing.
full:    the same on a file system (tmpfs) too small for two; without the right to mount one, under a limit on file size.
failing: fsync or rename gives EIO, at a random one of their calls.
flips:   every byte of a manifest and random bytes of the tensors are changed, one at a time; each must be found.
stall:   how long a save holds up training with 200 MB and 2 GB of state, written behind (the wait for the copy counts) or on the spot,
         and the three steps after it, by the clock and by the processor time of the thread that trains.
After every fault the newest intact checkpoint must be the old or the new one, bit for bit, and the next save must succeed.
Writes benchmarks/results/saving.json.
"""

import argparse
import errno
import functools
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.saver import Saver
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.files import write_json
from plait.keys import rng

RESULTS = Path(__file__).resolve().parent / "results" / "saving.json"
SAVED = {"weights": 1, "ema": 1, "moments": 2}
"""Tensor groups and how many times the weights' size each has."""


def groups(value: float, megabytes: int) -> dict[str, dict[str, torch.Tensor]]:
    """A state of `megabytes` in all, every number of it `value`."""
    numbers = megabytes * 250_000 // sum(SAVED.values()) // 10
    return {group: {f"{i:02d}": torch.full((numbers,), value) for i in range(10 * times)} for group, times in SAVED.items()}


def write(run: Path, step: int, value: float, megabytes: int = 32, begun: Callable[[], object] = lambda: None) -> float:
    """A checkpoint of `step` in which every number is `value`; the seconds that writing it took. `begun` is called just before."""
    state = groups(value, megabytes)
    run.mkdir(exist_ok=True)
    begun()
    began = time.perf_counter()
    checkpoint.write(checkpoint.folder_of(run, 1, "only", step), state, {"state": {"step": step, "value": value}})
    return time.perf_counter() - began


def intact(run: Path, allowed: list[tuple[int, float]]) -> str | None:
    """What is wrong with the run's newest checkpoint, after the clearing that every start does; None when it is one of `allowed`."""
    checkpoint.clear_unfinished(run)
    found, faults = integrity.newest_intact(run)
    if found is None or faults:
        return f"no intact checkpoint: {faults}"
    step, value = found.manifest["state"]["step"], found.manifest["state"]["value"]
    if (step, value) not in allowed:
        return f"the newest is step {step} with {value}, not one of {allowed}"
    whole = all((tensor == value).all() for group in SAVED for tensor in found.tensors(group).values())
    return None if whole else f"step {step} holds other numbers than {value}"


def written(run: Path) -> int:
    """Bytes of tensors that an unfinished save had written."""
    files = [path for folder in run.glob("stage-*/.saving-*") for path in folder.iterdir() if path.suffix != ".json"]
    bodies = [path.read_bytes() for path in files]
    return sum(4 * int(np.count_nonzero(np.frombuffer(body[: len(body) // 4 * 4], np.float32))) for body in bodies)


def killed(run: Path, step: int, value: float, megabytes: int, delay_s: float) -> bool:
    """Write a checkpoint in a process of its own and kill it after `delay_s`; whether it was killed in time."""
    started, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        write(run, step, value, megabytes, lambda: os.write(begin, b"."))
        os._exit(0)
    os.read(started, 1)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    os.close(started)
    os.close(begin)
    return os.WIFSIGNALED(status)


def kills(folder: Path, count: int) -> dict:
    """SIGKILL at random moments of a save, on disk and in memory."""
    with tempfile.TemporaryDirectory(prefix="plait-saving-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as memory:
        parts = {"disk": kills_on(folder, count // 2, 32), "memory": kills_on(Path(memory), count - count // 2, 200)}
    return {"kills": count, "intact": sum(part["intact"] for part in parts.values()), **parts}


def kills_on(folder: Path, count: int, megabytes: int) -> dict:
    """SIGKILL at random moments of a save under `folder`."""
    run, step, value, faults, offsets = folder / "kills", 1, 1.0, [], []
    seconds = [write(run, 1, 1.0, megabytes) for _ in range(5)]
    draw, trial = rng("saving", "kills"), 0
    while len(offsets) < count:
        trial += 1
        new, fresh = (step, step + 1)[trial % 2], value + 1
        if not killed(run, new, fresh, megabytes, float(draw.uniform(0, 1.1 * statistics.median(seconds)))):
            step, value = new, fresh  # it was done before the kill: no trial
            continue
        offsets.append(written(run))
        fault = intact(run, [(step, value), (new, fresh)])
        faults += [fault] if fault else []
        step, value = new, fresh
        write(run, step, value, megabytes)
        checkpoint.prune(run / "stage-1-only", keep=2)
    total = sum(tensor.nbytes for group in groups(1.0, megabytes).values() for tensor in group.values())
    return {"kills": count, "intact": count - len(faults), "faults": faults, "bytes": total, "bytes_written_at_death": sorted(offsets)}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A file system of `size` bytes at `folder`, or a limit on the size of a file where none may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False).returncode == 0:
        try:
            yield "tmpfs"
        finally:
            subprocess.run(["umount", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size % 16_000_000, before[1]))
    try:
        yield "limit on file size"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(action: Callable[[], object]) -> str | None:
    """What is wrong with how a failed save was told; None when it was one line."""
    try:
        action()
    except PlaitError as error:
        return None if "\n" not in str(error) and "earlier checkpoints are intact" in str(error) else f"told as {error}"
    return "the save did not fail"


def full(folder: Path, count: int) -> dict:
    """Saves on a disk with room for one checkpoint and a part of the next."""
    faults, kinds, draw = [], set(), rng("saving", "full")
    for number in range(count):
        run = folder / f"full-{number}"
        with small_disk(run, int(32_000_000 * draw.uniform(1.01, 1.95))) as kind:
            kinds.add(kind)
            if kind == "tmpfs":
                write(run, 1, 1.0)
                found = [refused(lambda run=run: write(run, 2, 2.0)), intact(run, [(1, 1.0)])]
            else:
                found = [refused(lambda run=run: write(run, 2, 2.0))]
            faults += [fault for fault in found if fault]
    return {"full_disks": count, "intact": count - len(faults), "kind": sorted(kinds), "faults": faults}


def failing(folder: Path, count: int) -> dict:
    """Saves during which fsync or rename fails with EIO; every other one over a checkpoint of the same step."""
    run, faults, draw = folder / "failing", [], rng("saving", "failing")
    write(run, 1, 1.0)
    calls = [("fsync", n) for n in range(1, 7)] + [("rename", 1), ("rename", 2), ("replace", 1)]
    done = 0
    while done < count:
        name, at = calls[int(draw.integers(len(calls)))]
        step, real, seen = 1 + done % 2, getattr(os, name), 0

        def broken(*arguments, real=real, at=at, **named):
            nonlocal seen
            seen += 1
            if seen == at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **named)

        with mock.patch.object(os, name, broken):
            told = refused(lambda step=step: write(run, step, 2.0))
        if seen < at:  # the call is not made in this save
            shutil.rmtree(run)
            write(run, 1, 1.0)
            continue
        done += 1
        found = [told, intact(run, [(1, 1.0), (step, 2.0)])]
        faults += [f"{name} {at}: {fault}" for fault in found if fault]
        shutil.rmtree(run)
        write(run, 1, 1.0)
    return {"failing_disks": count, "intact": count - len(faults), "faults": faults}


def flips(folder: Path, count: int) -> dict:
    """Change one byte at a time; `verify` must find each."""
    run, draw, missed, tried = folder / "flips", rng("saving", "flips"), [], 0
    write(run, 1, 1.0, megabytes=1)
    place = checkpoint.folder_of(run, 1, "only", 1)
    for path in sorted(place.iterdir()):
        body = bytearray(path.read_bytes())
        offsets = range(len(body)) if path.suffix == ".json" else draw.integers(len(body), size=count // len(SAVED)).tolist()
        for offset in offsets:
            tried += 1
            mask = int(draw.integers(1, 256))
            with open(path, "r+b") as file:
                os.pwrite(file.fileno(), bytes([body[offset] ^ mask]), offset)
                if not integrity.verify(place):
                    missed.append(f"{path.name}:{offset}")
                os.pwrite(file.fileno(), bytes([body[offset]]), offset)
    assert integrity.verify(place) == []
    return {"flips": tried, "found": tried - len(missed), "missed": missed}


def stall(folder: Path, rounds: int, sizes: Sequence[int]) -> dict:
    """How long a save holds training up, and the three steps after it beside those before it, by the megabytes of the state."""
    return {f"{megabytes} MB": _stall(folder / f"{megabytes}", rounds, megabytes) for megabytes in sizes}


class Training:
    """Linear layers of a width of 1,024 with AdamW and averages: `megabytes` of state; a step is over 256 positions."""

    def __init__(self, megabytes: int) -> None:
        self.net = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(max(1, megabytes // 17))))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-6, fused=True)
        self.averages = [value.detach().clone() for value in self.net.parameters()]
        self.positions = torch.randn(256, 1024)

    def step(self, copied: Callable[[], None] = lambda: None) -> tuple[float, float, float]:
        """Train a step; its seconds, those of processor time of this thread, and those of waiting for a copy."""
        began, own = time.perf_counter(), time.thread_time()
        self.net(self.positions).square().mean().backward()
        waits = time.perf_counter()
        copied()
        waited = time.perf_counter() - waits
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, [value.detach() for value in self.net.parameters()], 0.01)
        self.optimizer.zero_grad()
        return time.perf_counter() - began, time.thread_time() - own, waited

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The state, as a checkpoint has it."""
        named = dict(self.net.named_parameters())
        moments = {f"{name}.{kind}": moment for name, value in named.items() for kind, moment in self.optimizer.state[value].items()}
        return {
            "weights": {name: value.detach() for name, value in named.items()},
            "ema": dict(zip(named, self.averages, strict=True)),
            "moments": moments,
        }


def _stall(folder: Path, rounds: int, megabytes: int) -> dict:
    training, alone = Training(megabytes), Ranks(0, 1, torch.device("cpu"))
    held: dict[str, list[float]] = {"behind": [], "on_the_spot": []}
    steps: dict[str, list[float]] = {"before": [], "after": [], "before_processor": [], "after_processor": []}
    savers = {name: Saver(background, alone, lambda part: None) for name, background in (("behind", True), ("on_the_spot", False))}
    for name in savers:
        (folder / name).mkdir(parents=True)
    training.step()
    for number in range(1 + rounds):  # the first allocates the memory of the copies
        for name, saver in savers.items():
            before = [training.step() for _ in range(3)]
            began, tensors = time.perf_counter(), training.tensors()
            copied = saver.save(
                checkpoint.folder_of(folder / name, 1, "only", 1 + number), tensors, {"state": {"step": 1 + number}}, keep=1
            )
            took = time.perf_counter() - began
            after = [training.step(copied) for _ in range(3)]
            saver.wait()
            if number:
                held[name].append(took + sum(waited for _, _, waited in after))
            if number and name == "behind":
                for part, i in (("", 0), ("_processor", 1)):
                    steps[f"before{part}"] += [step[i] for step in before]
                    steps[f"after{part}"] += [step[i] for step in after]
    for saver in savers.values():
        saver.close()
    shutil.rmtree(folder)
    median = {name: statistics.median(values) for name, values in held.items()}
    size = sum(tensor.nbytes for group in training.tensors().values() for tensor in group.values())
    found = {"bytes": size, "seconds": held, "median_s": median, "share": median["behind"] / median["on_the_spot"]}
    found |= {"steps_s": steps, "step_s": statistics.median(steps["before"]), "step_after_s": statistics.median(steps["after"])}
    return found | {"after_processor": statistics.median(steps["after_processor"]) / statistics.median(steps["before_processor"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("kills", 50), ("full", 25), ("failing", 25), ("flips", 2000), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 2000], help="sizes of the state whose saves are timed")
    names = ("stall", "kills", "full", "failing", "flips")
    parser.add_argument("--only", choices=names, help="one of the parts; the record keeps the others")
    parser.add_argument("--dir", type=Path, help="where to write (default: a temporary folder)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="plait-saving-", dir=given.dir))
    results: dict = json.loads(RESULTS.read_text(encoding="utf-8")) if given.only and RESULTS.exists() else {}
    results["machine"] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    sized = functools.partial(stall, sizes=given.megabytes)
    parts = {"stall": (sized, given.rounds), "kills": (kills, given.kills), "full": (full, given.full)}
    parts |= {"failing": (failing, given.failing), "flips": (flips, given.flips)}
    for name, (part, count) in parts.items():
        if count and given.only in (None, name):
            results[name] = part(folder, count)
            print(name, {key: value for key, value in results[name].items() if not isinstance(value, list)}, flush=True)
            print(*results[name].get("faults", [])[:5], sep="\n")
    shutil.rmtree(folder)
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
