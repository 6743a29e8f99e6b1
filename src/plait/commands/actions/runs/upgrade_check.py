"""Compare a checkpoint's model under the libraries at hand with what was saved of it: what `plait upgrade-check` does.

Every start compares frozen weights and the probe loss, and stops; this goes on to the end, and names versions, parameters and blocks. A
block is a module such as a transformer layer; the probe samples are the first four of the stage's data (training/probes.py).
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from plait import __version__
from plait.assembly import saved as saved_models
from plait.assembly.model import ModelBundle, build_model
from plait.assembly.saved import SavedModel
from plait.commands.actions.findings import Finding, require
from plait.engine import blocks as engine_blocks
from plait.engine import precision
from plait.engine.checkpoints import checkpoint, integrity, reference, renames
from plait.engine.monitoring.json_output import show_json
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.placing import load_weights
from plait.errors import PlaitError, first_names
from plait.training import start
from plait.training.probes import probe_loss
from plait.training.stage_plan import installed_versions, plan_stage

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Relative difference of a loss or an output up to which it counts as that of another device or number of threads, as at every start."""


@dataclass(frozen=True)
class Block:
    """What a block puts out on the probe samples: its name, and the root mean square of that then and now."""

    name: str
    then: float
    now: float

    @property
    def gap(self) -> float:
        """Return the difference as a share of the value then."""
        return abs(self.now - self.then) / max(abs(self.then), 1e-12)


def show(spec: str, *, as_json: bool = False) -> None:
    """Check the checkpoint that `spec` names; print a line per finding. Raises Unwell with what to do where something is not the same."""
    saved = saved_models.locate(spec)
    folder = saved.checkpoint.folder
    faults = integrity.verify(folder)
    if faults:
        raise PlaitError(faults[0])
    log.info(str(folder))
    before, now = saved.checkpoint.manifest.get("versions", {}), {"plait": __version__, **installed_versions(), "torch": torch.__version__}
    versions = {name: [before.get(name), now.get(name)] for name in {**before, **now} if before.get(name) != now.get(name)}
    found = [Finding("versions", _versions(versions, before))]
    blocks: list[Block] = []
    with distributed.join(saved.config.distributed.device) as ranks:
        found += _parameters(saved, ranks, blocks)
    for finding in found:
        log.info(f"  {finding.line()}")
    cures = [finding.cure for finding in found if finding.cure is not None]
    if as_json:
        told = {"checkpoint": str(folder), "versions": versions, "findings": [asdict(finding) for finding in found]}
        show_json({**told, "blocks": [asdict(block) for block in blocks], "same": not cures})
    require(cures)


def _versions(changed: Mapping[str, Sequence[str | None]], before: Mapping[str, str]) -> str:
    """Return a line of the versions that differ."""
    if not before:
        return "the checkpoint does not say which it was made with"
    pairs = [f"{name} {then or 'absent'} -> {now or 'absent'}" for name, (then, now) in sorted(changed.items())]
    return ", ".join(pairs) or f"the same, torch {before.get('torch')} and transformers {before.get('transformers')} among them"


def _parameters(saved: SavedModel, ranks: Ranks, blocks: list[Block]) -> list[Finding]:
    """Build the model, compare its parameters' names, frozen weights, inputs and outputs; `blocks` gets those that changed."""
    manifest, run = saved.checkpoint.manifest, checkpoint.run_of(saved.checkpoint.folder)
    bundle = build_model(saved.resolved.config, run, ranks)
    former = renames.of_checkpoint(bundle.section.renames, manifest, bundle.base_hashes)
    listed = {former.get(name, name) for part in manifest["components"].values() for name in part.get("names", part["weights"])}
    gone, added = sorted(listed - bundle.base_hashes.keys()), sorted(bundle.base_hashes.keys() - listed)
    found = [_names(former, gone, added, len(listed))]
    if gone:
        return found
    trained = {former.get(name, name) for name in manifest["state"]["trained"]}
    found.append(_frozen(manifest, bundle, trained, former))
    try:
        load_weights(bundle.model, renames.mapped({"weights": saved.checkpoint.stored("weights")}, former)["weights"])
    except PlaitError as error:
        return [*found, Finding("weights", str(error), "go back to the versions that the run was made with")]
    if bundle.adapters is not None:
        bundle.adapters.begin(trained)
    return [*found, *_outputs(saved, bundle, trained, ranks, blocks)]


def _names(former: Mapping[str, str], gone: Sequence[str], added: Sequence[str], count: int) -> Finding:
    """Return the finding on parameters' names: known renames are mapped, others are told with what they may be called now."""
    known = f"; {len(former)} renamed since, and read under their new names: {_moves(former)}" if former else ""
    if not gone:
        more = f"; {len(added)} more now, which start as the model draws them: {first_names(added)}" if added else ""
        return Finding("parameters", f"{count:,} with the names that were saved{known}{more}")
    guessed = guess(gone, added)
    moved = f"; perhaps renamed: {_moves(guessed)}" if guessed else ""
    return Finding(
        "parameters",
        f"{len(gone)} of {count:,} are not in the model: {first_names(gone)}{moved}{known}",
        "go back to the versions that the run was made with" + (", or add the renames to `renames` of the family's Config" * bool(guessed)),
    )


def guess(gone: Collection[str], added: Collection[str]) -> dict[str, str]:
    """Return {name that is gone: new name that it may have}. They end alike, in as many parts as possible, and without doubt."""
    pairs: dict[str, str] = {}
    for name in gone:
        scores = {other: _common_end(name, other) for other in added}
        best = max(scores.values(), default=0)
        likely = [other for other, score in scores.items() if score == best]
        if best and len(likely) == 1:
            pairs[name] = likely[0]
    taken = list(pairs.values())
    return {name: other for name, other in pairs.items() if taken.count(other) == 1}


def _common_end(first: str, second: str) -> int:
    """Return how many parts between dots two names have in common at their ends."""
    pairs = zip(reversed(first.split(".")), reversed(second.split(".")), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(first.count("."), second.count(".")) + 1)


def _moves(renamed: Mapping[str, str]) -> str:
    """Return renames by what differs at the beginnings of names, with the number of parameters of each: "a.b. -> a. (12)"."""
    moves: dict[str, int] = {}
    for then, now in renamed.items():
        end = _common_end(then, now)
        old, new = (".".join(name.split(".")[: name.count(".") + 1 - end]) for name in (then, now))
        moves[f"{old or '(nothing)'} -> {new or '(nothing)'}"] = moves.get(f"{old or '(nothing)'} -> {new or '(nothing)'}", 0) + 1
    return first_names([f"{move} ({count})" for move, count in sorted(moves.items(), key=lambda item: -item[1])])


def _frozen(manifest: Mapping[str, Any], bundle: ModelBundle, trained: set[str], former: Mapping[str, str]) -> Finding:
    """Return the finding on weights that never trained, which come from their source again."""
    then_of = {now: then for then, now in former.items()}
    if bundle.frozen_xxh3(trained, then_of) == manifest["frozen_xxh3"]:
        return Finding("frozen", "weights that never trained are the same")
    kept = manifest.get("reference", {}).get("frozen", {})
    now = reference.frozen(bundle.component_names, bundle.base_hashes, trained, then_of)
    changed = [name for name in kept if kept[name] != now.get(name)]
    base = ", ".join(
        f"{part['part']}: {part['name']}" + (f" @ {part['revision']}" if part["revision"] else "") for part in manifest["base"]
    )
    which = f" of {', '.join(changed)}" if changed else ""
    return Finding(
        "frozen", f"weights{which} are not those that the run was trained with ({base})", "give the base weights of then, or their revision"
    )


def _outputs(saved: SavedModel, bundle: ModelBundle, trained: set[str], ranks: Ranks, blocks: list[Block]) -> list[Finding]:
    """Compare what the probe samples become, and what the model makes of them, with what the checkpoint kept."""
    manifest = saved.checkpoint.manifest
    stage = manifest["state"]["stage"]
    for view in saved.resolved.stages[:stage]:
        start.round_frozen(bundle.model, trained, view.config.train.precision)
    try:
        plan = plan_stage(saved.resolved.stages[stage - 1], bundle, manifest["state"].get("batches", []))
        if plan.data.fingerprints() != manifest["data"]:
            return [Finding("outputs", "not compared: the data is not that of the checkpoint, so its probe samples are others")]
        precision.set_precision(bundle.model, trained | plan.trained_names, plan.config.train.precision)
        bundle.model.to(ranks.device)
        engine_blocks.cast_inputs(bundle.blocks, plan.config.train.residual_dtype)
        probe = probe_loss(plan, bundle, ranks)
    except PlaitError as error:
        return [Finding("outputs", f"not compared: {error}")]
    loss, measured = reference.measure(probe.measure, probe.batches, reference.named(bundle.model, bundle.blocks))
    kept, stored = manifest.get("reference"), manifest["state"]["probe"]
    found = [_inputs(kept["inputs"], measured["inputs"])] if kept else []
    found.append(_loss(stored, loss))
    if kept and kept["blocks"]:
        pairs = [(renames.now(bundle.section.renames, name), then) for name, then in kept["blocks"].items()]
        compared = [Block(name, then, measured["blocks"][name]) for name, then in pairs if name in measured["blocks"]]
        blocks += [block for block in compared if not block.gap <= TOLERANCE]
        found.append(_blocks(blocks, len(compared)))
    return found


def _inputs(then: Mapping[str, str], now: Mapping[str, str]) -> Finding:
    """Return the finding on what the samples are encoded to."""
    changed = [name for name in then if now.get(name) != then[name]]
    if not changed:
        return Finding("inputs", "the probe samples are encoded as they were")
    cure = "a tokenizer, picture processor or template is another: go back to its version"
    return Finding("inputs", f"the probe samples are encoded otherwise: {', '.join(changed)} differ", cure)


def _loss(stored: float | None, now: float | None) -> Finding:
    """Return the finding on the probe loss."""
    if stored is None or now is None:
        return Finding(
            "loss", "not compared: the checkpoint holds no probe loss" if stored is None else "not compared: a probe sample is bad"
        )
    gap = abs(now - stored) / max(abs(stored), 1e-12)
    line = f"probe loss {now:.6f}, stored {stored:.6f}: " + ("exact" if now == stored else f"{gap:.1e} apart")
    return Finding("loss", line, None if gap <= TOLERANCE else "the model computes something else: go back to the versions of then")


def _blocks(changed: Sequence[Block], count: int) -> Finding:
    """Return the finding on the outputs of blocks: the first that changed, in the order of the forward pass."""
    if not changed:
        return Finding("blocks", f"all {count} put out what they did")
    first = changed[0]
    line = f"{len(changed)} of {count} put out something else; the first is {first.name}: {first.then:.6g} then, {first.now:.6g} now"
    return Finding("blocks", line, f"look at what changed in {first.name}, or before it")
