"""What benchmarks run on: processor, cores and load, versions of Python, torch and peers, and the commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PEERS = ("transformers", "accelerate", "lightning-fabric", "webdataset", "datasets")


def processor() -> str:
    """The model of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def about() -> dict[str, Any]:
    """The machine now; of a package that is not installed the version is None."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", *PEERS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        commit = None
    load = round(os.getloadavg()[0], 2)
    return {"processor": processor(), "cores": os.cpu_count(), "usable": usable, "load": load, "versions": versions, "commit": commit}


def line(machine: dict[str, Any], *, load: bool = True) -> str:
    """One line about a machine. Without `load`, equal for all rows that the same machine and versions gave."""
    cores = f"{machine['usable']} of {machine['cores']} cores" if machine["usable"] != machine["cores"] else f"{machine['cores']} cores"
    parts = [machine["processor"], cores, *([f"load {machine['load']:g} before"] if load else [])]
    parts += [f"{name} {version or 'absent'}" for name, version in machine["versions"].items()]
    return ", ".join([*parts, *([f"commit {machine['commit']}"] if machine["commit"] else [])])
