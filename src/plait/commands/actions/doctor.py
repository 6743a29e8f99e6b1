"""What `plait doctor` does: check what a run needs, from package versions to data. A Finding is the result of a check.

A finding has a `cure`, text that says what to do, if something is wrong. Under torchrun every rank makes its own checks, and some compare
the ranks. Only the run's folder and index files of the data are left behind, which a run would make as well.
"""

import fcntl
import importlib.metadata
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import constants
from packaging.requirements import Requirement

from plait import files
from plait.commands.actions import hub_access, run_needs
from plait.commands.actions.findings import Finding, Unwell, gigabytes
from plait.config import secrets
from plait.config.resolved import Resolved
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import registry
from plait.families.limits import check_max_tokens

log = logging.getLogger(__name__)

SKEW_S = 1.0
FREE_GB = 10.0
SHARED_MEMORY_GB = 1.0
OPEN_WITHIN_S = 15.0
_GB = 1e9


def examine(resolved: Resolved | None, folder: Path) -> None:
    """Make all checks on all ranks and print a line for each. Raises Unwell (a PlaitError), with all cures, if something is wrong.

    `resolved`: a configuration whose weights and data are checked too, or None; `folder`: where the run would be written.
    """
    with distributed.join() as ranks:
        findings = ranks.gather(list(check(resolved, folder, ranks)))
        for finding in findings[0]:
            log.info(f"{'ok  ' if finding.cure is None else 'MEND'}  {finding.what:<10} {finding.result}")
        for rank, of_rank in enumerate(findings[1:], 1):
            for finding in of_rank:
                if finding.cure is not None and finding not in findings[0]:
                    log.info(f"MEND  {finding.what:<10} rank {rank}: {finding.result}")
        cures = list(dict.fromkeys(finding.cure for of_rank in findings for finding in of_rank if finding.cure is not None))
        ranks.barrier()
    if cures:
        raise Unwell(f"{len(cures)} thing{'s' * (len(cures) > 1)} to mend: " + "; ".join(cures))


def check(resolved: Resolved | None, folder: Path, ranks: Ranks) -> Iterator[Finding]:
    """Yield the findings of all checks on this rank, in the same order on every rank, because some are collectives.

    `resolved`: a configuration to check too, or None; `folder`: where the run would be written.
    """
    yield from versions(importlib.metadata.requires("plait") or [])
    yield device(ranks)
    yield reach(ranks)
    yield clocks(ranks)
    yield storage(folder, ranks)
    if resolved is None:
        yield disk(folder)
    yield shared_memory()
    yield hub()
    if resolved is not None:
        yield from run_findings(resolved, folder, ask=os.environ.get("LOCAL_RANK", "0") == "0")


def versions(requirements: list[str], installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Check installed packages against `requirements` such as "torch>=2.6"; yield a finding for each that is wrong, and a summary.

    `installed`: function that returns a package's version, or raises importlib.metadata.PackageNotFoundError.
    """
    needed = [item for item in map(Requirement, requirements) if item.marker is None or item.marker.evaluate({"extra": ""})]
    right = []
    for package in needed:
        try:
            version = installed(package.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("versions", f"{package.name} is not installed", f"pip install '{package}'")
            continue
        if package.specifier.contains(version, prereleases=True):
            right.append(f"{package.name} {version}")
        else:
            yield Finding("versions", f"{package.name} is {version}, plait needs {package.specifier}", f"pip install '{package}'")
    yield Finding("versions", f"{len(right)} of {len(needed)} packages as needed: {', '.join(right[:3])}, ...")


def device(ranks: Ranks) -> Finding:
    """Check that this machine has a GPU for each of its ranks; without any GPU, report that the CPU is used."""
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else " (this torch is built without CUDA)"
        return Finding("devices", f"no GPU{built}: everything runs on {os.cpu_count()} processors")
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    first = torch.cuda.get_device_properties(0)
    result = f"{count} GPUs, the first {first.name} with {first.total_memory / _GB:.0f} GB"
    if local > count:
        return Finding("devices", f"{result}, for {local} ranks", f"start at most {count} ranks per machine: --nproc {count}")
    return Finding("devices", result)


def reach(ranks: Ranks) -> Finding:
    """Check that ranks can communicate: by an all-reduce through gloo on CPUs, and through NCCL on GPUs."""
    backends = "gloo" if dist.is_gloo_available() else "no gloo"
    if torch.cuda.is_available():
        nccl_version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
        backends += f", NCCL {'.'.join(map(str, nccl_version()))}" if dist.is_nccl_available() else ", no NCCL"
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
    """Check that the clocks of all ranks agree within a second."""
    ranks.barrier()
    times = ranks.gather(time.time())
    skew_s = max(times) - min(times)
    if skew_s > SKEW_S:
        return Finding(
            "clocks", f"they differ by {skew_s:.1f} s", "set the machines' clocks (chrony, ntp): logs and heartbeats tell the time"
        )
    return Finding("clocks", f"they agree within {skew_s:.2g} s" if ranks.size > 1 else "one rank, one clock")


def storage(folder: Path, ranks: Ranks) -> Finding:
    """Check that the run's folder allows writing, fsync, renaming and locking, as checkpoints need, and that all ranks see its files."""
    name, result, cure = ".plait-doctor", "", None
    try:
        if ranks.first:
            result, cure = _write(folder, name)
        result, cure = ranks.agree((result, cure))
        deadline = time.monotonic() + OPEN_WITHIN_S
        while not (seen := (folder / name).is_file()) and cure is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if cure is None and not all(ranks.gather(seen)):
            blind = [str(rank) for rank, sees in enumerate(ranks.gather(seen)) if not sees]
            return Finding("storage", f"rank {', '.join(blind)} does not see {folder}", "put --run on storage that every machine sees")
        return Finding("storage", result, cure)
    finally:
        ranks.barrier()
        if ranks.first and (folder / name).is_file():
            (folder / name).unlink()


def _write(folder: Path, name: str) -> tuple[str, str | None]:
    """Try on rank 0 what a checkpoint does, and return the result and its cure."""
    try:
        began = time.perf_counter()
        files.write_whole(folder / name, b"x" * (1 << 20))
        took_ms = (time.perf_counter() - began) * 1e3
        behind_s = time.time() - (folder / name).stat().st_mtime
        with (folder / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with tempfile.TemporaryDirectory(dir=folder) as old:
            Path(old).rename(f"{old}-renamed")
            Path(f"{old}-renamed").rename(old)
    except OSError as error:
        return f"{folder}: {error}", f"give another --run: {folder} must allow writing, fsync, rename and flock"
    if abs(behind_s) > SKEW_S + took_ms / 1e3:
        return f"{folder}: its clock is {behind_s:.1f} s behind", "set the clock of the file server"
    return f"{folder}: 1 MB written, flushed and renamed in {took_ms:.0f} ms, locked; its clock is right", None


def disk(folder: Path) -> Finding:
    """Check that 10 GB are free on the disk of `folder`, or if that does not exist, of the current directory."""
    free_gb = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free / _GB
    if free_gb < FREE_GB:
        return Finding("disk", f"{free_gb:.1f} GB free in {folder}", f"free space to {FREE_GB:g} GB, or give another --run")
    return Finding("disk", f"{free_gb:.0f} GB free in {folder}; a checkpoint takes 12 bytes per trained parameter, 16 with optim.ema")


def shared_memory(mount: Path = Path("/dev/shm")) -> Finding:
    """Check that there is 1 GB of free shared memory at `mount`, through which data worker processes send batches."""
    free_gb = shutil.disk_usage(mount).free / _GB if mount.is_dir() else 0.0
    if free_gb < SHARED_MEMORY_GB:
        cure = (
            f"give the container more shared memory (--shm-size, or an emptyDir of medium Memory at {mount}), or keep worker_kind: threads"
        )
        return Finding("memory", f"{free_gb:.2f} GB of shared memory", cure)
    return Finding("memory", f"{free_gb:.0f} GB of shared memory for data workers")


def hub() -> Finding:
    """Check that the Hub's cache can be written; report whether the Hub is used and a token is set."""
    cache, origin = Path(constants.HF_HUB_CACHE), hub_access.token_origin()
    token = f"a token of {origin}" if origin else "no token (HF_TOKEN, or `hf auth login`)"
    if not os.access(_existing(cache), os.W_OK):
        return Finding("hub", f"its cache {cache} cannot be written", "set HF_HOME to a folder that can be written")
    where = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else secrets.without_secrets(constants.ENDPOINT)
    return Finding("hub", f"{where}, {token}; cache {cache}")


def run_findings(resolved: Resolved, folder: Path, ask: bool) -> Iterator[Finding]:
    """Check what a configuration needs: weights, data, benches (evaluations), sequence lengths, and disk space; yield the findings.

    `folder`: where the run would be written; `ask`: whether this rank asks the Hub and checks the disks, as one of each machine does.
    """
    here, wanted = run_needs.weights(resolved)
    yield from here
    datasets = run_needs.datasets(resolved)
    findings, download = hub_access.examine([*wanted, *datasets]) if ask else ([], 0)
    yield from findings
    yield from run_needs.data(resolved)
    yield from run_needs.bench_data(resolved)
    yield lengths(resolved)
    if ask:
        yield from room(resolved, folder, download)


def room(resolved: Resolved, folder: Path, download: int) -> Iterator[Finding]:
    """Check that disks have room for the checkpoints still to be written into `folder`, and for `download` bytes in the Hub's cache."""
    on, cache = _existing(folder), _existing(Path(constants.HF_HUB_CACHE))
    try:
        count, size = run_needs.checkpoints(resolved)
    except PlaitError as error:
        yield Finding("disk", f"{gigabytes(_free(on))} free in {folder}; the size of checkpoints is not known: {error}")
        count = size = 0
    there = sum(path.stat().st_size for path in folder.glob("stage-*/step-*/**/*.safetensors"))
    together = on.stat().st_dev == cache.stat().st_dev
    if count:
        needed = max(0, size - there) + (download if together else 0)
        what = f"{count} checkpoint{'s' * (count > 1)} and one being written take up to {gigabytes(size)}"
        what += f", {gigabytes(there)} of them there" if there else ""
        what += f"; downloads {gigabytes(download)}" if together and download else ""
        yield _fits(f"{gigabytes(_free(on))} free in {folder}; {what}", needed, _free(on), "checkpoint.keep")
    if download and not (together and count):
        yield _fits(f"{gigabytes(_free(cache))} free in {cache}; downloads {gigabytes(download)}", download, _free(cache), "HF_HOME")


def _fits(result: str, needed: float, free: float, other: str) -> Finding:
    """Return the finding of a disk that must hold `needed` bytes. `other`: what can be set instead of freeing space."""
    cures = {"checkpoint.keep": "lower checkpoint.keep or give another --run", "HF_HOME": "set HF_HOME to a larger disk"}
    return Finding("disk", result, None if needed <= free else f"free {gigabytes(needed - free)} more, {cures[other]}")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _free(folder: Path) -> float:
    return shutil.disk_usage(folder).free


def lengths(resolved: Resolved) -> Finding:
    """Check that no stage's `data.max_tokens` exceeds the longest sequence that the model has positions for."""
    family = registry.load(resolved.config.family)
    section = family.Config.model_validate(resolved.config.model)
    try:
        limits = family.limits(section)
        for view in resolved.stages:
            check_max_tokens(view.config.data.max_tokens, limits)
    except PlaitError as error:
        return Finding("lengths", str(error), "mend data.max_tokens, or what the line names")
    return Finding("lengths", f"the model has {limits.positions} positions" if limits.positions else "the model has no limit that is known")
