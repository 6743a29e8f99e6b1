"""What `plait doctor` does: check what a run needs, from package versions to data. A Finding is the result of a check.

A finding has a `cure`, text that says what to do, if something is wrong. Under torchrun every rank makes its own checks, and some compare
the ranks. Only the run's folder and index files of the data are left behind, which a run would make as well.
"""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import constants

from plait import files
from plait.commands.actions import hub_access, run_needs
from plait.commands.actions.findings import Finding, compared, gigabytes, installed_versions, require, versions
from plait.config import secrets
from plait.config.resolved import Resolved
from plait.engine.monitoring.json_output import show_json
from plait.engine.parallel import distributed, network
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families import registry
from plait.families.limits import check_max_tokens

log = logging.getLogger(__name__)

SKEW_S = 1.0  # by which clocks of ranks may differ
FREE_GB = 10.0  # that a disk has to have
SHARED_MEMORY_GB = 1.0  # that has to be free for data workers
OPEN_WITHIN_S = 15.0  # a file that another rank wrote
RESOLVE_WITHIN_S = 5.0  # the name of a machine
JOIN_WITHIN_S = 120.0  # all ranks
_COLLECTIVE = {"versions", "ranks", "clocks", "storage"}
"""Checks in which ranks wait for each other."""
_TRIED = ".plait-doctor"
Sent = Callable[[Resolved], Iterable[Finding]]
"""Checks whether a run could be sent where its configuration says."""
_GB = 1e9


def examine(resolved: Resolved | None, folder: Path, sent: Sent, *, as_json: bool = False) -> None:
    """Make all checks on all ranks and log each finding as it comes. Raises Unwell (a PlaitError), with all cures, if something is wrong.

    `resolved`: a configuration whose weights and data are checked too, or None; `folder`: where the run would be written; `sent`: checks
    where the run would be sent; `as_json`: print all findings as one JSON object at the end.
    """
    told: list[tuple[int, Finding]] = []
    met = names(dict(os.environ))
    if met.cure is not None:
        told.append((0, met))
        log.info(met.line())
    else:
        _examine(resolved, folder, sent, told, met=met)
    cures = list(dict.fromkeys(finding.cure for _, finding in told if finding.cure is not None))
    if as_json:
        show_json({"findings": [{**asdict(finding), "rank": rank} for rank, finding in told], "cures": cures})
    require(cures)


def _examine(resolved: Resolved | None, folder: Path, sent: Sent, told: list[tuple[int, Finding]], *, met: Finding) -> None:
    """Make the checks after `names`, whose result is `met`; log each finding, and append it to `told` with the rank that made it."""
    with distributed.join(timeout_s=JOIN_WITHIN_S) as ranks:
        for what, make in [*checks(resolved, folder, ranks, met), *_sent(resolved, sent)]:
            by_rank = ranks.gather(list(_survived(what, make)))
            for rank, found in enumerate(by_rank):
                for finding in found:
                    if rank == 0 or (finding.cure is not None and finding not in by_rank[0]):
                        told.append((rank, finding))
                        log.info(finding.line(rank))
        ranks.barrier()


def _sent(resolved: Resolved | None, sent: Sent) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    if resolved is not None:
        yield "push", lambda: sent(resolved)


def _survived(what: str, make: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of one check. If it fails itself, a finding says how, unless other ranks would wait for it."""
    try:
        yield from make()
    except Exception as error:
        if what in _COLLECTIVE:
            raise
        reason = (str(error).splitlines() or [""])[0]
        yield Finding(what, f"could not be looked at: {type(error).__name__}: {reason}", f"mend what the line on {what} names")


def checks(resolved: Resolved | None, folder: Path, ranks: Ranks, met: Finding) -> Iterator[tuple[str, Callable[[], Iterable[Finding]]]]:
    """Yield (what is checked, function that returns findings), in the same order on every rank, because some are collectives.

    `resolved`: a configuration to check too, or None; `folder`: where the run would be written; `met`: the result of `names`, made before.
    """
    needed = importlib.metadata.requires("plait") or []
    yield "versions", lambda: versions(needed)
    yield "versions", lambda: compared(ranks.gather(installed_versions(needed))) if ranks.size > 1 else ()
    yield "devices", lambda: [device(ranks)]
    yield "names", lambda: [met]
    yield "ranks", lambda: [reach(ranks)]
    yield "clocks", lambda: [clocks(ranks)]
    yield "storage", lambda: [storage(folder, ranks)]
    if resolved is None:
        yield "disk", lambda: [disk(folder)]
    yield "memory", lambda: [shared_memory()]
    yield "hub", lambda: [hub()]
    if resolved is not None:
        yield "run", lambda: run_findings(resolved, folder, ask=os.environ.get("LOCAL_RANK", "0") == "0")


def names(environment: Mapping[str, str]) -> Finding:
    """Check, within a time limit, that ranks on several machines are given names or addresses of each other that work. Return the finding.

    torchrun tells each rank the head (where all meet) as MASTER_ADDR; gloo tells the others this machine's own name, unless
    GLOO_SOCKET_IFNAME names an interface. `environment`: the variables that torchrun set. One machine needs no names.
    """
    own, nodes = socket.gethostname(), int(environment.get("GROUP_WORLD_SIZE", "1"))
    if nodes == 1:
        return Finding("names", f"{own}: one machine, whose name no other has to know")
    head, interface = environment["MASTER_ADDR"], environment.get("GLOO_SOCKET_IFNAME")
    cure = "start with python -m plait.training.torchrun, which finds addresses, and give the head's address and not its name"
    address = _resolved(head)
    if address is None or (network.is_loopback(address) and not network.is_loopback(head if head[0].isdigit() else "0.0.0.0")):
        told = f"not known within {RESOLVE_WITHIN_S:g} s" if address is None else f"{address}, which no other machine reaches"
        return Finding("names", f"ranks meet at {head}, which is {told} on {own}", cure)
    if interface is None:
        address = _resolved(own)
        if address is None or network.is_loopback(address):
            told = f"is {address}" if address else f"is not known within {RESOLVE_WITHIN_S:g} s"
            return Finding("names", f"{own}: its own name {told}, and other machines would be told to look there", cure)
    return Finding(
        "names", f"{own}: ranks of {nodes} machines meet at {head}, and it is reached through {interface or f'its name, {address}'}"
    )


def _resolved(name: str) -> str | None:
    """Return the address of a name; None if that is not known within RESOLVE_WITHIN_S, after which nothing waits for it."""
    answers: list[str] = []

    def ask() -> None:
        with contextlib.suppress(PlaitError):
            answers.append(network.resolve(name, within_s=0.0))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(RESOLVE_WITHIN_S)
    return answers[0] if answers else None


def device(ranks: Ranks) -> Finding:
    """Check that this machine has a GPU for each of its ranks, and return the finding. Without any GPU it says that the CPU is used."""
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
    """Check that ranks can communicate, and return the finding: by an all-reduce through gloo on CPUs, and through NCCL on GPUs."""
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
    """Check that the clocks of all ranks agree within a second, and return the finding. All ranks call this."""
    ranks.barrier()
    times = ranks.gather(time.time())
    skew_s = max(times) - min(times)
    if skew_s > SKEW_S:
        return Finding(
            "clocks", f"they differ by {skew_s:.1f} s", "set the machines' clocks (chrony, ntp): logs and heartbeats tell the time"
        )
    return Finding("clocks", f"they agree within {skew_s:.2g} s" if ranks.size > 1 else "one rank, one clock")


def storage(folder: Path, ranks: Ranks) -> Finding:
    """Check that all ranks can do in the run's folder what checkpoints need, and see what the others wrote. All ranks call this.

    Every rank (rank 0 first) writes a folder with a file, renames it, reads it back, locks it, and compares its time with the clock.
    """
    own = folder / f"{_TRIED}-{ranks.rank}"
    try:
        result, cure = ranks.agree(_write(folder, own, ranks.rank) if ranks.first else None)
        if cure is not None:
            return Finding("storage", result, cure)
        blind = [str(rank) for rank, sees in enumerate(ranks.gather(_sees(folder, 0))) if not sees]
        if blind:
            return Finding("storage", f"rank {', '.join(blind)} does not see {folder}", "put --run on storage that every machine sees")
        written = ranks.gather(_write(folder, own, ranks.rank) if not ranks.first else (result, None))
        for rank, (of_rank, cure) in enumerate(written):
            if cure is not None:
                return Finding("storage", f"rank {rank}: {of_rank}", cure)
        unseen = [next((other for other in range(ranks.size) if not _sees(folder, other)), None)]
        for rank, (other,) in enumerate(ranks.gather(unseen)):
            if other is not None:
                cure = f"mount {folder} so that all machines see what one wrote at once (NFS: noac, lookupcache=none)"
                return Finding("storage", f"rank {rank} does not see what rank {other} wrote in {folder}", cure)
        return Finding("storage", result + (f"; so can all {ranks.size} ranks, and they see each other's" if ranks.size > 1 else ""))
    finally:
        ranks.barrier()
        shutil.rmtree(own, ignore_errors=True)
        shutil.rmtree(own.with_suffix(".new"), ignore_errors=True)


def _sees(folder: Path, rank: int) -> bool:
    """Return whether this rank reads what `rank` wrote, within OPEN_WITHIN_S."""
    deadline = time.monotonic() + OPEN_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            if (folder / f"{_TRIED}-{rank}" / "file").read_bytes() == _content(rank):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _content(rank: int) -> bytes:
    return f"rank {rank}\n".encode().ljust(1 << 20, b"x")


def _write(folder: Path, own: Path, rank: int) -> tuple[str, str | None]:
    """Do what a checkpoint does: write a file into a new folder, rename the full folder, read it back. Returns (result, cure)."""
    new = own.with_suffix(".new")
    try:
        for left in (own, new):
            shutil.rmtree(left, ignore_errors=True)  # of a look that was killed
        began = time.perf_counter()
        files.write_whole(new / "file", _content(rank))
        new.rename(own)
        took_ms = (time.perf_counter() - began) * 1e3
        behind_s = time.time() - (own / "file").stat().st_mtime
        if (own / "file").read_bytes() != _content(rank):
            return f"{folder}: a file reads otherwise than it was written", f"give another --run: {folder} does not keep what is written"
        with (own / "file").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"{folder}: {error}", f"give another --run: {folder} must allow writing, fsync, rename and flock"
    if abs(behind_s) > SKEW_S + took_ms / 1e3:
        return f"{folder}: its clock is {behind_s:.1f} s behind", "set the clock of the file server"
    return f"{folder}: a folder with 1 MB written, flushed, renamed and read back in {took_ms:.0f} ms, locked; its clock is right", None


def disk(folder: Path) -> Finding:
    """Check that 10 GB are free on the disk of `folder`, or if that does not exist, of the current directory. Return the finding."""
    free_gb = shutil.disk_usage(folder if folder.is_dir() else Path.cwd()).free / _GB
    if free_gb < FREE_GB:
        return Finding("disk", f"{free_gb:.1f} GB free in {folder}", f"free space to {FREE_GB:g} GB, or give another --run")
    return Finding("disk", f"{free_gb:.0f} GB free in {folder}; a checkpoint takes 12 bytes per trained parameter, 16 with optim.ema")


def shared_memory(mount: Path = Path("/dev/shm")) -> Finding:
    """Check that there is 1 GB of free shared memory at `mount`, through which data worker processes send batches. Return the finding."""
    free_gb = shutil.disk_usage(mount).free / _GB if mount.is_dir() else 0.0
    if free_gb < SHARED_MEMORY_GB:
        cure = (
            f"give the container more shared memory (--shm-size, or an emptyDir of medium Memory at {mount}), or keep worker_kind: threads"
        )
        return Finding("memory", f"{free_gb:.2f} GB of shared memory", cure)
    return Finding("memory", f"{free_gb:.0f} GB of shared memory for data workers")


def hub() -> Finding:
    """Check that the Hub's cache can be written. Return the finding, which also says whether the Hub is used and a token is set."""
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
        yield from run_needs.services(resolved)
        yield from room(resolved, folder, download)


def room(resolved: Resolved, folder: Path, download: int) -> Iterator[Finding]:
    """Check that disks have room for the checkpoints still to be written into `folder`, and for `download` bytes in the Hub's cache.

    Yields a finding for the run's disk, one for the cache's if that is another and something is to be downloaded, and one if the size of
    checkpoints is not known.
    """
    on, cache = _existing(folder), _existing(Path(constants.HF_HUB_CACHE))
    try:
        count, size = run_needs.checkpoints(resolved)
    except PlaitError as error:
        yield Finding("disk", f"{gigabytes(_free(on))} free in {folder}; the size of checkpoints is not known: {error}")
        count = size = 0
    there = sum(path.stat().st_size for path in folder.glob("stage-*/step-*/**/*") if path.is_file())
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
    """Check that no stage's `data.max_tokens` exceeds the longest sequence that the model has positions for. Return the finding."""
    family = registry.load(resolved.config.family)
    section = family.Config.model_validate(resolved.config.model)
    try:
        limits = family.limits(section)
        for view in resolved.stages:
            check_max_tokens(view.config.data.max_tokens, limits)
    except PlaitError as error:
        return Finding("lengths", str(error), "mend data.max_tokens, or what the line names")
    return Finding("lengths", f"the model has {limits.positions} positions" if limits.positions else "the model has no limit that is known")
