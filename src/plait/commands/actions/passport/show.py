"""Show the claims of a passport as a table: stages, steps, samples, data, base models, stops survived, the verdict of a proof."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plait.commands.actions.passport.claims import Claims, Stage, Start

_VERSIONS = ("plait", "python", "torch", "transformers", "diffusers")
_HEAD = ("", "stage", "steps", "samples", "trained", "data", "ended")
_UNKNOWN = "not in the run"


def lines(what: str, claims: Claims | None, digest: str | None, checked: int, not_covered: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table. `checked`: how many files were compared; `not_covered`: files that no claim is made of.

    Newlines and control characters of claims are escaped, so that none makes a line of its own.
    """
    return map(one_line, () if claims is None else _table(what, claims, digest, checked, not_covered))


def one_line(text: str) -> str:
    """Return a text with its control characters and newlines as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _table(what: str, claims: Claims, digest: str | None, checked: int, not_covered: Sequence[str]) -> Iterator[str]:
    origin = claims.checkpoint
    form = f"an export as {claims.layout}" if claims.layout else "weights" if claims.kind == "weights" else "a checkpoint"
    by = f"run {claims.run}" if origin.folder is not None else "by a trainer of transformers"
    yield f"{what}: {form} of step {origin.step:,} of stage {origin.stage}, {by}, family {claims.family}, {claims.weights}"
    rows = [_HEAD, *map(_row, claims.stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    for row in rows:
        yield "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]).rstrip()
    for name, text in _facts(claims, digest, checked, not_covered):
        yield f"  {name:<11} {text}"


def _row(stage: Stage) -> tuple[str, ...]:
    first, last, trained, data = stage.first_step, stage.last_step, stage.trained or {}, stage.data or {}
    steps = f"{first:,} to {last:,}" if first is not None and last is not None else _UNKNOWN
    samples = "" if stage.samples is None else f"{stage.samples:,}"
    what = ", ".join(f"{name} {count:,}" for name, count in trained.items())
    content = ", ".join(f"{name} {print_}" for name, print_ in data.items())
    return str(stage.number), stage.name, steps, samples, what, content, stage.ended or "not yet" if last is not None else ""


def _facts(claims: Claims, digest: str | None, checked: int, not_covered: Sequence[str]) -> Iterator[tuple[str, str]]:
    origin = claims.checkpoint
    for part in claims.base:
        yield "base", f"{part.get('part')}: {part.get('name')}" + (f" @ {part['revision']}" if part.get("revision") else "")
    yield "began", "with nothing but its base" if claims.began_from is None else _start(claims.began_from)
    count = len(claims.continued_at)
    at = ", ".join(f"{step:,}" for step in claims.continued_at)
    stops = "stop or kill" if count == 1 else "stops or kills"
    if origin.folder is None:
        yield "checkpoint", f"none: saved while it trained; frozen weights xxh3 {origin.frozen_xxh3}"
    else:
        yield "survived", f"{count} {stops}, going on from step {at}" if at else "no stop: it ran through"
        yield "proof", "the run keeps no verdict of plait prove" if claims.proof is None else _proof(claims.proof)
        yield "checkpoint", f"{origin.folder}, manifest xxh3 {origin.manifest_xxh3}, frozen weights xxh3 {origin.frozen_xxh3}"
    yield "parameters", f"{origin.parameters:,}; seed {claims.seed}"
    yield "versions", ", ".join(f"{name} {claims.versions[name]}" for name in _VERSIONS if name in claims.versions)
    beyond = f"; not covered: {', '.join(not_covered)}" if not_covered else ""
    yield "files", f"{checked} compared{beyond}"
    if digest is not None:
        yield "digest", digest


def _start(start: Start) -> str:
    kind = "as a fork of" if start.kind == "fork" else "from"
    known = [f"step {start.step:,}"] if start.step is not None else []
    known += [f"run {start.run}"] if start.run else []
    known += [f"manifest xxh3 {start.manifest_xxh3}"] if start.manifest_xxh3 else []
    known += [f"passport {start.passport}"] if start.passport else []
    before = f"; that {_start(start.before)}" if start.before is not None else ""
    more = f" ({', '.join(known)})" if known else ""
    return f"{kind} {start.origin}{more}{before}"


def _proof(proof: Mapping[str, Any]) -> str:
    ways = proof.get("ways")
    how = ", ".join(f"{count} {way}" for way, count in ways.items()) if isinstance(ways, dict) else "kills"
    ranks = proof.get("ranks")
    layout = f"{ranks} rank{'' if ranks == 1 else 's'}, up to {proof.get('steps')} steps a stage, seed {proof.get('seed')}"
    kills = proof.get("kills")
    return f"{proof.get('verdict')}: {kills} kill{'' if kills == 1 else 's'} ({how}), {layout}"
