"""What the rows of benchmarks/faults.py share: the tiny run that faults happen to, starts of `plait`, and what is compared afterwards."""

import hashlib
import io
import json
import os
import re
import signal
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from plait.commands.prove import compare
from plait.keys import rng
from plait.training import launch

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "plait.training.run",
    "plait.families.theworld.family",
    "plait.families.theworld.export.gemma",
    "plait.commands.actions.evaluation.evaluate",
)
TINY = {
    **{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4},
    **{"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
}
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
LIMIT_S = 300.0
_DATE = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00| UTC)")
"""The dates in the results of `plait eval`, which no two runs have in common."""
UNTIMED = ("lock", "identity", "heartbeat")
"""Files and folders of a run that hold process ids and random numbers, which no two runs have in common."""


@dataclass
class Row:
    """One line of the table: a kind of fault, how often it was tried and survived, and what was lost where it was not."""

    fault: str
    tries: int = 0
    survived: int = 0
    lost: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, loss: str | None, **notes: int) -> None:
        """Count one try; `loss` says what was lost (None: nothing), `notes` are further counts to sum up."""
        self.tries += 1
        self.survived += loss is None
        self.lost += [loss] if loss else []
        for name, count in notes.items():
            self.notes[name] = self.notes.get(name, 0) + count

    def line(self) -> str:
        """Return the row as it is printed."""
        notes = "".join(f", {name.replace('_', ' ')} {count}" for name, count in self.notes.items())
        return f"{self.fault:<44} {self.survived:>5} of {self.tries:>5}{notes}" + (f"; first loss: {self.lost[0]}" if self.lost else "")


@dataclass(frozen=True)
class Bench:
    """Where the rows work (`folder`), how `plait` is started, the seed of all draws, and the share of a full run's tries to make."""

    folder: Path
    launcher: launch.Launcher
    seed: int
    share: float

    def count(self, full: int) -> int:
        """Return how many of `full` tries to make."""
        return max(1, round(full * self.share))

    def place(self, name: str) -> Path:
        """Return a new folder to work in."""
        place = self.folder / name
        place.mkdir(parents=True)
        return place

    def run(self, arguments: Sequence[object], log: Path, during: Callable[[launch.Process], None] | None = None) -> int:
        """Run `plait` with these arguments to its end and return its exit code; `during` is called once it has started."""
        process = self.launcher.start([str(argument) for argument in arguments], log)
        if during is not None:
            during(process)
        return wait(process)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables in the block; a path list gets its new entry before the old ones."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(
        {name: os.pathsep.join(filter(None, (value, before[name]))) if "PATH" in name else value for name, value in values.items()}
    )
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def warm(modules: Sequence[str] = ()) -> Iterator[launch.Warm]:
    """Yield a launcher that forks `plait` from a process with the family imported, and `modules` before it."""
    launcher = launch.Warm([*modules, *MODULES])
    try:
        yield launcher
    finally:
        launcher.close()


def wait(process: launch.Process) -> int:
    """Return the exit code of a process; one that hangs is killed, which gives -9 and a line on standard output."""
    deadline = time.monotonic() + LIMIT_S
    while (code := process.poll()) is None:
        if time.monotonic() > deadline:
            print(f"  a process hangs: killed after {LIMIT_S:g} s", flush=True)
            process.signal(signal.SIGKILL)
        time.sleep(0.002)
    return code


def kill(process: launch.Process) -> None:
    """Send SIGKILL to a process and to all below it, as when a machine fails."""
    below = launch.descendants(process.pid)
    process.signal(signal.SIGKILL)
    for pid in below:
        launch.kill(pid)


def last_error(log: Path) -> str:
    """Return the last line that plait wrote for a person, or a traceback's last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("plait: ")]
    return (errors or lines or ["nothing was said"])[-1][:300]


def traceback_in(log: Path) -> bool:
    """Return whether a log holds a traceback."""
    return log.is_file() and "Traceback (most recent call last)" in log.read_text(encoding="utf-8", errors="replace")


def tree(folder: Path, *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return {path below `folder`: hash of its bytes, dates left out} of every file; folders are listed as well, with a mark."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not any(part in without for part in Path(name).parts):
            found[name] = "folder" if path.is_dir() else hashlib.blake2b(_DATE.sub(b"", path.read_bytes()), digest_size=8).hexdigest()
    return found


def difference(wanted: dict[str, str], found: dict[str, str]) -> str | None:
    """Return the first difference of two trees in words; None where they are equal."""
    for kind, names in (
        ("missing", wanted.keys() - found.keys()),
        ("stranded", found.keys() - wanted.keys()),
        ("other bytes", {name for name in wanted.keys() & found.keys() if wanted[name] != found[name]}),
    ):
        if names:
            return f"{kind}: {min(names)}"
    return None


def run_difference(straight: Path, other: Path) -> str | None:
    """Return the first difference of two runs: weights, averages, moments, state, ids, numbers, and what is left half written."""
    divergence = compare.divergence(compare.runs(straight, other))
    if divergence:
        return divergence
    left = [
        str(path.relative_to(other)) for path in other.rglob("*") if path.name.startswith((".saving-", ".replaced-")) or temporary(path)
    ]
    return f"stranded: {left[0]}" if left else None


def temporary(path: Path) -> bool:
    """Return whether a path is named as plait names what is being written."""
    return path.name.startswith((".saving-", ".replaced-")) or (path.name.startswith(".") and path.name.endswith(".tmp"))


def leftovers(folder: Path) -> int:
    """Count what a kill left half written below `folder`."""
    return sum(map(temporary, folder.rglob(".*")))


def shared_memory() -> set[str]:
    """Return the names of the machine's blocks of shared memory that are this user's."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir() if path.stat().st_uid == os.getuid()} if folder.is_dir() else set()


@contextmanager
def no_shared_memory_left(row: Row) -> Iterator[None]:
    """Note in `row` how many blocks of shared memory torch left behind in the block."""
    before = shared_memory()
    yield
    time.sleep(0.5)
    row.notes["shared_memory_left"] = sum(name.startswith("torch_") for name in shared_memory() - before)


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> tuple[Image.Image, str]:
    """Return a small noisy picture and the name of its colour."""
    draw = rng(seed, "picture")
    name = list(COLOURS)[int(draw.integers(len(COLOURS)))]
    pixels = np.array(COLOURS[name]) + draw.integers(-30, 31, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), name


def write_tars(folder: Path, tars: int, samples: int, label: str = "json") -> None:
    """Write `tars` shards of `samples` small pictures, each with its colour as a field `label` (json) or as a caption (txt)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(tars):
        with tarfile.open(folder / f"train-{number:03d}.tar", "w") as tar:
            for i in range(samples):
                image, colour = picture(number * samples + i)
                body = io.BytesIO()
                image.save(body, "PNG")
                words = colour if label == "txt" else json.dumps({"label": colour})
                for name, data in ((f"{i:04d}.png", body.getvalue()), (f"{i:04d}.{label}", words.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def write_config(folder: Path, data: Path, prefetch: int = 2, **settings: object) -> Path:
    """Write the recipe of the tiny run (two stages of four steps) and return its path. `settings`: sections to add to or replace."""
    source = {"source": "shards", "path": str(data / "train-*.tar"), "template": {"user": "What is this?", "assistant": "{label}"}}
    recipe: dict[str, object] = {
        "family": "theworld",
        "preset": "tiny",
        "model": {"tiny": TINY, "world": {"image_size": 16}},
        "data": {
            "train": [source],
            "validation": [source | {"limit": 16}],
            "workers": 1,
            "prefetch": prefetch,
            "cache": str(folder / "cache"),
        },
        "stages": [
            {"name": "projector", "trainable": ["projector"]},
            {"name": "language", "trainable": ["projector", "language"]},
        ],
        "train": {"steps": 4, "global_batch": 8, "micro_batch": 4},
        "optim": {"lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 1}, "ema": {"decay": 0.9}},
        "checkpoint": {"every_steps": 2, "keep": 2, "best": "loss"},
        "evaluate": [{"bench": "loss", "every_steps": 2, "samples": 8, "batch": 4}],
        "track": {"every_steps": 1, "tensorboard": False},
    }
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(recipe | settings, sort_keys=False), encoding="utf-8")
    return config
