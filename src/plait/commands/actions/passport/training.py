"""Collect what a passport claims of a model in training outside of a run: that of `plait.hf.trainer`, which has no manifests."""

from collections.abc import Mapping
from typing import Any

from plait.commands.actions.passport import claims
from plait.commands.actions.passport.claims import Claims
from plait.config.resolved import StageView
from plait.engine.monitoring.json_output import finite


def of_training(manifest: Mapping[str, Any], view: StageView, lineage: Mapping[str, Any] | None, *, layout: str, weights: str) -> Claims:
    """Return the claims of a model that trains in the stage `view`, without files.

    `manifest`: what a checkpoint of it would say, without files and hashes of its own; `lineage`: the record of where training began, None:
    with nothing but its base; `layout`, `weights`: of the folder that gets the passport.
    """
    state, config = manifest["state"], view.config
    told = {
        "kind": "export",
        "layout": layout,
        "weights": weights,
        "family": config.family,
        "run": None,
        "seed": config.seed,
        "checkpoint": {
            "folder": None,
            "step": state["step"],
            "stage": manifest["stage"],
            "ended": state["stage_done"],
            "parameters": sum(one["values"] for one in manifest["components"].values()),
            "manifest_xxh3": None,
            "frozen_xxh3": manifest["frozen_xxh3"],
            "settings_xxh3": None,
            "files": {},
        },
        "stages": [{"number": view.index, "name": view.name, **claims.of_stage(manifest), "folder": None}],
        "base": claims.base_of(manifest),
        "began_from": None if lineage is None else claims.of_lineage(lineage),
        "continued_at": [],
        "proof": None,
        "versions": {name: str(version) for name, version in manifest["versions"].items()},
    }
    return Claims.model_validate(finite(told))
