"""`plait doctor`: what must be right before a run, from versions to data, with a line and a cure for each.

Under torchrun every rank looks for itself, and what differs between them is compared. Nothing stays behind but the run's folder and the
indices of data, which a run would make too.
"""

import fcntl
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import constants, try_to_load_from_cache
from packaging.requirements import Requirement

from plait import files
from plait.assembly.data import open_training
from plait.config.resolved import Resolved
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import registry

SKEW_S = 1.0
FREE_GB = 10.0
SHARED_MEMORY_GB = 1.0
OPEN_WITHIN_S = 15.0
_GB = 1e9


class Unwell(PlaitError):
    """Something is to be mended before a run. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it (None: it is right)."""

    what: str
    said: str
    cure: str | None = None


def examine(resolved: Resolved | None, folder: Path) -> None:
    """Print every finding of all ranks. Raises Unwell when something is to be mended."""
    with distributed.join() as ranks:
        found = list(look(resolved, folder, ranks))
        everywhere = ranks.gather(found)
        if ranks.first:
            for finding in found:
                print(f"{'ok  ' if finding.cure is None else 'MEND'}  {finding.what:<10} {finding.said}")
            for rank, theirs in enumerate(everywhere[1:], 1):
                for finding in theirs:
                    if finding.cure is not None and finding not in found:
                        print(f"MEND  {finding.what:<10} rank {rank}: {finding.said}")
        cures = list(dict.fromkeys(finding.cure for theirs in everywhere for finding in theirs if finding.cure is not None))
        ranks.barrier()
    if cures:
        raise Unwell(f"{len(cures)} thing{'s' * (len(cures) > 1)} to mend: " + "; ".join(cures))


def look(resolved: Resolved | None, folder: Path, ranks: Ranks) -> Iterator[Finding]:
    """All findings of this rank, in the same order on every rank: some are collectives."""
    yield from versions(importlib.metadata.requires("plait") or [])
    yield device(ranks)
    yield reach(ranks)
    yield clocks(ranks)
    yield storage(folder, ranks)
    yield disk(folder)
    yield shared_memory()
    yield hub()
    if resolved is not None:
        yield from weights(resolved)
        yield data(resolved)


def versions(requirements: list[str], installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """The packages that plait needs, against the versions it was made for."""
    needed = [one for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate({"extra": ""})]
    right = []
    for one in needed:
        try:
            version = installed(one.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", f"{one.name} is not installed", f"pip install '{one}'")
            continue
        if one.specifier.contains(version, prereleases=True):
            right.append(f"{one.name} {version}")
        else:
            yield Finding("versions", f"{one.name} is {version}, plait needs {one.specifier}", f"pip install '{one}'")
    yield Finding("versions", f"{len(right)} of {len(needed)} packages as needed: {', '.join(right[:3])}, ...")


def device(ranks: Ranks) -> Finding:
    """GPUs, and whether there are enough for the ranks of this machine."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this torch is built without CUDA)"
        return Finding("devices", f"no GPU{built}: everything runs on {os.cpu_count()} processors")
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    shown = torch.cuda.get_device_properties(0)
    said = f"{count} GPUs, the first {shown.name} with {shown.total_memory / _GB:.0f} GB"
    if local > count:
        return Finding("devices", f"{said}, for {local} ranks", f"start at most {count} ranks per machine: --nproc {count}")
    return Finding("devices", said)


def reach(ranks: Ranks) -> Finding:
    """Whether ranks reach each other, on the host and between GPUs."""
    backends = "gloo" if dist.is_gloo_available() else "no gloo"
    if torch.cuda.is_available():
        backends += f", NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}" if dist.is_nccl_available() else ", no NCCL"
    if "no " in backends:
        return Finding("ranks", backends, "install a torch that is built with gloo, and NCCL for GPUs")
    if ranks.size == 1:
        return Finding("ranks", f"{backends}; one rank: start this under torchrun or with --nproc to try several")
    began = time.perf_counter()
    total = float(ranks.sum(torch.tensor(float(ranks.rank), dtype=torch.float64)))
    took_ms = (time.perf_counter() - began) * 1e3
    if ranks.device.type == "cuda":
        value = torch.tensor(float(ranks.rank), device=ranks.device)
        dist.all_reduce(value)
        total = min(total, float(value))
    if total != ranks.size * (ranks.size - 1) / 2:
        return Finding(
            "ranks", f"{ranks.size} ranks sum to {total}", "ranks do not agree on a sum: look at the network cards that NCCL uses"
        )
    return Finding("ranks", f"{backends}; {ranks.size} ranks reach each other, a sum takes {took_ms:.1f} ms")


def clocks(ranks: Ranks) -> Finding:
    """Whether the clocks of all ranks agree."""
    ranks.barrier()
    told = ranks.gather(time.time())
    skew_s = max(told) - min(told)
    if skew_s > SKEW_S:
        return Finding(
            "clocks", f"they differ by {skew_s:.1f} s", "set the machines' clocks (chrony, ntp): logs and heartbeats tell the time"
        )
    return Finding("clocks", f"they agree within {skew_s:.2g} s" if ranks.size > 1 else "one rank, one clock")


def storage(folder: Path, ranks: Ranks) -> Finding:
    """Whether the run's folder takes what a checkpoint needs: write, flush, rename, lock; and whether every rank sees it soon."""
    name, said, cure = ".plait-doctor", "", None
    try:
        if ranks.first:
            said, cure = _write(folder, name)
        said, cure = ranks.agree((said, cure))
        deadline = time.monotonic() + OPEN_WITHIN_S
        while not (seen := (folder / name).is_file()) and cure is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if cure is None and not all(ranks.gather(seen)):
            blind = [str(rank) for rank, sees in enumerate(ranks.gather(seen)) if not sees]
            return Finding("storage", f"rank {', '.join(blind)} does not see {folder}", "put --run on storage that every machine sees")
        return Finding("storage", said, cure)
    finally:
        ranks.barrier()
        if ranks.first and (folder / name).is_file():
            (folder / name).unlink()


def _write(folder: Path, name: str) -> tuple[str, str | None]:
    """What rank 0 tries, and what it is to be told."""
    try:
        began = time.perf_counter()
        files.write_whole(folder / name, b"x" * (1 << 20))
        took_ms = (time.perf_counter() - began) * 1e3
        behind_s = time.time() - (folder / name).stat().st_mtime
        with open(folder / name, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with tempfile.TemporaryDirectory(dir=folder) as old:
            os.rename(old, f"{old}-renamed")
            os.rename(f"{old}-renamed", old)
    except OSError as error:
        return f"{folder}: {error}", f"give another --run: {folder} must allow writing, fsync, rename and flock"
    if abs(behind_s) > SKEW_S + took_ms / 1e3:
        return f"{folder}: its clock is {behind_s:.1f} s behind", "set the clock of the file server"
    return f"{folder}: 1 MB written, flushed and renamed in {took_ms:.0f} ms, locked; its clock is right", None


def disk(folder: Path) -> Finding:
    """Free space where the run is written."""
    free_gb = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free / _GB
    if free_gb < FREE_GB:
        return Finding("disk", f"{free_gb:.1f} GB free in {folder}", f"free space to {FREE_GB:g} GB, or give another --run")
    return Finding("disk", f"{free_gb:.0f} GB free in {folder}; a checkpoint takes 12 bytes per trained parameter, 16 with optim.ema")


def shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """Where data worker processes hand over batches."""
    free_gb = shutil.disk_usage(place).free / _GB if place.is_dir() else 0.0
    if free_gb < SHARED_MEMORY_GB:
        cure = (
            f"give the container more shared memory (--shm-size, or an emptyDir of medium Memory at {place}), or keep worker_kind: threads"
        )
        return Finding("memory", f"{free_gb:.2f} GB of shared memory", cure)
    return Finding("memory", f"{free_gb:.0f} GB of shared memory for data workers")


def hub() -> Finding:
    """The Hub's cache and whether it is asked at all."""
    cache = Path(constants.HF_HUB_CACHE)
    place = next(path for path in (cache, *cache.parents) if path.exists())
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no token is set"
    if not os.access(place, os.W_OK):
        return Finding("hub", f"its cache {cache} cannot be written", "set HF_HOME to a folder that can be written")
    return Finding("hub", f"{'offline' if constants.HF_HUB_OFFLINE else 'online'}, {token}; cache {cache}")


def weights(resolved: Resolved) -> Iterator[Finding]:
    """The weights to start from: is their directory here, or their Hub repository in the cache, or can it be fetched?"""
    config = resolved.config
    family = registry.load(config.family)
    for part in family.base(family.Config.model_validate(config.model)):
        name = str(part["name"])
        if name.startswith((".", "~", "/")) or name.count("/") > 1:
            there = Path(name).exists()  # as the libraries look: none of them takes ~ for the home directory
            yield Finding("weights", f"{name} is {'here' if there else 'not here'}", None if there else f"save the part as {name}")
            continue
        if name.count("/") != 1 or Path(name).exists():
            continue
        here = isinstance(try_to_load_from_cache(name, "config.json", revision=part["revision"]), str)
        if not here and constants.HF_HUB_OFFLINE:
            yield Finding("weights", f"{name} is not in the cache, and the Hub is offline", f"download it first: hf download {name}")
        else:
            yield Finding("weights", f"{name} is {'in the cache' if here else 'to be downloaded when the run starts'}")


def data(resolved: Resolved) -> Finding:
    """Whether the training data opens."""
    try:
        counts = [len(source) for view in resolved.stages for source in open_training(view.config).sources]
    except PlaitError as error:
        return Finding("data", str(error), "mend data.train: see the line on data")
    return Finding("data", f"{len(counts)} sources of all stages open, with {sum(counts):,} samples")
