"""The results of the checks of `plait doctor`, and its checks of installed packages.

This file imports nothing that a wrong version could break, only `packaging`.
"""

import importlib
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement

from plait.errors import PlaitError

log = logging.getLogger(__name__)

_IMPORTED = ("numpy", "torch", "transformers", "diffusers.models.autoencoders.autoencoder_kl_wan")
"""Modules that plait cannot do without and that fail to import beside wrong versions of others."""


class Unwell(PlaitError):
    """Raised when a check failed, so that a run would fail too; its message says what to do. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was checked (a word), what was found, and what to do (`cure`; None: nothing is wrong)."""

    what: str
    result: str
    cure: str | None = None

    def line(self, rank: int = 0) -> str:
        """Return the finding as a line for the log, which begins with "MEND" if it has a cure. `rank`: that made the check, if not 0."""
        return f"{'ok  ' if self.cure is None else 'MEND'}  {self.what:<10} {f'rank {rank}: ' if rank else ''}{self.result}"


def require(cures: Sequence[str]) -> None:
    """Raise Unwell, a PlaitError, with these cures, each once; do nothing if there are none."""
    once = list(dict.fromkeys(cures))
    if once:
        raise Unwell(f"{len(once)} thing{'s' * (len(once) > 1)} to mend: " + "; ".join(once))


def gigabytes(count: float) -> str:
    """Return a number of bytes as text, such as "8.6 GB" or "340 kB". The unit is the largest that leaves at least 1; a GB is 1e9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.{1 if count < 1e5 else 0}f} kB"


def versions(requirements: list[str], installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Check installed packages against `requirements` such as "torch>=2.6"; yield a finding for each that is wrong, and a summary.

    `installed`: function that returns a package's version, or raises importlib.metadata.PackageNotFoundError.
    """
    needed = _needed(requirements)
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


def imports(names: Sequence[str] = _IMPORTED) -> Iterator[Finding]:
    """Import the modules of these names, and yield a finding for each that raises, whatever it raises. Default: those plait needs most."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  code of others, of a version that was not meant to be here
            package = name.partition(".")[0]
            reason = (str(error).splitlines() or [""])[0]
            cure = f"install the versions that plait needs: pip install --force-reinstall {package} plait"
            yield Finding("imports", f"{name} cannot be imported: {type(error).__name__}: {reason}", cure)


def require_imports(names: Sequence[str] = _IMPORTED) -> None:
    """Raise Unwell, a PlaitError, if one of the modules `names` cannot be imported. Logs a line for each such and for package versions."""
    broken = list(imports(names))
    if broken:
        found = [*versions(importlib.metadata.requires("plait") or []), *broken]
        for finding in found:
            log.info(finding.line())
        require([finding.cure for finding in found if finding.cure is not None])


def installed_versions(requirements: list[str]) -> dict[str, str]:
    """Return the version of Python and of each package that `requirements` name, "none" for one that is not installed."""
    known = {"python": platform.python_version()}
    for package in _needed(requirements):
        try:
            known[package.name] = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            known[package.name] = "none"
    return known


def compared(by_rank: Sequence[Mapping[str, str]]) -> Iterator[Finding]:
    """Yield a finding for each package whose version is not the same on all ranks, and one for all others.

    `by_rank`: what `installed_versions` returned on each rank, {name: version}; all have the same names.
    """
    differing = [name for name in by_rank[0] if len({versions[name] for versions in by_rank}) > 1]
    for name in differing:
        ranks: dict[str, list[str]] = {}
        for rank, versions in enumerate(by_rank):
            ranks.setdefault(versions[name], []).append(str(rank))
        told = "; ".join(f"{version} on rank {', '.join(having)}" for version, having in ranks.items())
        yield Finding("versions", f"{name} is not the same on all ranks: {told}", f"install one version of {name} on all machines")
    if len(by_rank) > 1:
        yield Finding("versions", f"{len(by_rank[0]) - len(differing)} packages are the same on {len(by_rank)} ranks")


def _needed(requirements: list[str]) -> list[Requirement]:
    """Return the requirements that hold without extras."""
    return [item for item in map(Requirement, requirements) if item.marker is None or item.marker.evaluate({"extra": ""})]
