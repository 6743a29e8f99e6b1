"""Open a folder of weights outside of a run, such as an export, as a model, by what `plait.json` tells.

The settings are those of its run (`saved.settings`), the hash of the weights that are not in the folder, as they come from a base, and the
components whose trained weights it leaves out. It tells too by which templates and columns the run's sources made conversations.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from plait.assembly import checkpoint_specs, overwritten, saved, weight_files
from plait.assembly.model import ModelBundle, build_model, write_assets
from plait.config.messages import one_line
from plait.config.schema import RunConfig, SourceEntry
from plait.engine import blocks
from plait.engine.checkpoints import checkpoint
from plait.engine.evaluation import moment_of
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.placing import load_weights
from plait.errors import PlaitError, first_names
from plait.families import offers, registry

MOMENT = "export"
"""What stands for a step in names of results."""
_FROZEN = "frozen_xxh3"
_READS, _OWN_TEXT = "reads", ("template", "templates", "captions", "columns")
"""Key of what `reads_of` returns, and the settings that it has."""


@dataclass(frozen=True)
class ExportedModel:
    """A folder of weights outside of a run, not opened yet. `config`: settings of its run, as far as they decide what the model is.

    `frozen_xxh3`: hash of the weights that are not in the folder. `reads`: the run's training sources, each with its kind and what makes
    its conversations; None of an export that does not tell.
    """

    folder: Path
    config: RunConfig
    frozen_xxh3: str
    reads: tuple[SourceEntry, ...] | None = None

    def open(self, ranks: Ranks) -> ModelBundle:
        """Return the model with the folder's weights, in evaluation mode on the rank's device; frozen parts come from their base.

        Raises PlaitError where weights are missing that no base has, where a base is another, and for files that are damaged or of another
        model.
        """
        run = self._run()
        bundle = build_model(self.config, run, ranks, lambda: overwritten.shapes_of_start(self.config, run, ranks))
        bundle.model.eval()
        weights = _imported(weight_files.read(self.folder), bundle)
        _check_missing(self.folder, bundle, set(weights))
        if _frozen(bundle, set(weights)) != self.frozen_xxh3:
            names = " or ".join(dict.fromkeys(str(part["name"]) for part in bundle.family.base(bundle.section)))
            raise PlaitError(f"{self.folder} does not hold all weights, and those of {names} are not what its run was built over")
        load_weights(bundle.model, weights)
        bundle.model.to(ranks.device)
        blocks.cast_inputs(bundle.blocks, self.config.train.residual_dtype)
        return bundle

    def _run(self) -> Path:
        """Return the folder that has what a run's has for the model in `assets`, and gets the pictures that it draws.

        It is the export itself, or a temporary one where the export has a tokenizer in another place.
        """
        work = Path(tempfile.mkdtemp(prefix="plait-"))
        atexit.register(shutil.rmtree, work, ignore_errors=True)
        write_assets(self.config, work / "assets")
        return work if (work / "assets").is_dir() and not (self.folder / "assets").is_dir() else self.folder


def _imported(weights: Mapping[str, Tensor], bundle: ModelBundle) -> Mapping[str, Tensor]:
    """Return weights of a folder, of whatever layout, under the model's names."""
    publisher = offers.publisher(bundle.family.name)
    return weights if publisher is None else publisher.imported(weights, bundle.model)


def _frozen(bundle: ModelBundle, given: set[str]) -> str:
    """Return a hash of the weights as built that are not in a folder, those `given`; of a component that never trains none counts."""
    never = {name for component in bundle.family.never_trained for name in bundle.component_names.get(component, ())}
    return bundle.frozen_xxh3(given | never)


def settings(folder: Path, bundle: ModelBundle, config: RunConfig, trained: set[str]) -> dict[str, Any]:
    """Return the content of plait.json for a folder that was just written of a run's model.

    `bundle`: the model; `trained`: names of the weights that its run ever trained. `left_out` lists the components of which the folder
    lacks some.
    """
    given = set(_imported(weight_files.empty(folder), bundle))
    lost = [component for component, names in bundle.component_names.items() if (trained - given) & set(names)]
    reads = {_READS: reads_of(config)} if config.data.train else {}
    return {**saved.settings(config), _FROZEN: _frozen(bundle, given), saved.LEFT_OUT: lost, **reads}


def reads_of(config: RunConfig) -> list[dict[str, Any]]:
    """Return of each training source its kind, and the settings by which it makes conversations: what reads other data of its form."""
    return [entry.model_dump(mode="json", include={"source", *_OWN_TEXT}, exclude_defaults=True) for entry in config.data.train]


def read_as(source: SourceEntry, trained: SourceEntry) -> SourceEntry:
    """Return `source` with the settings by which `trained` makes conversations: template, columns and the like."""
    return source.model_copy(update={name: getattr(trained, name) for name in _OWN_TEXT})


def merged(bundle: ModelBundle, config: RunConfig, trained: set[str]) -> tuple[ModelBundle, RunConfig, set[str]]:
    """Return model, settings and names of trained weights without adapters, which are added to the weights of their layers, in place.

    What has none is returned as it is. Raises PlaitError for adapters that are not finite.
    """
    if bundle.adapters is None:
        return bundle, config, trained
    hashes = {name: value for name, value in bundle.base_hashes.items() if name not in bundle.adapters.names}
    moved = bundle.adapters.merge()
    bundle = replace(bundle, adapters=None, base_hashes=hashes)
    return bundle, config.model_copy(update={"adapters": {}}), {moved.get(name, name) for name in trained}


def find(spec: str | Path) -> ExportedModel | None:
    """Return the model of the folder that `spec` names, or None if it is none outside of a run with a plait.json.

    Raises PlaitError for a plait.json that is damaged, or says too little, and for a folder that leaves out what its run has trained, or
    holds adapters alone.
    """
    folder, mark = checkpoint_specs.split(str(spec))
    path = folder / saved.MODEL_SETTINGS
    if mark or checkpoint.is_step(folder) or (folder / "config.yaml").is_file():
        return None
    if not path.is_file():
        weight_files.refuse_adapters(folder)
        return None
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        frozen, left_out, reads = told.pop(_FROZEN, None), told.pop(saved.LEFT_OUT, []), told.pop(_READS, None)
        sources = None if reads is None else tuple(map(SourceEntry.model_validate, reads))
        config = RunConfig.model_validate({**told, "from": str(folder.absolute())})
    except ValidationError as error:
        raise PlaitError(f"{path} is damaged, or of another version of plait: {one_line(error.errors()[0]['msg'])}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PlaitError(f"{path} is damaged: {error}") from error
    if frozen is None:
        raise PlaitError(f"{path} does not tell what the folder lacks: `plait export` of this version writes folders that can be opened")
    if left_out:
        raise PlaitError(f"{folder} leaves out what its run trained of {', '.join(left_out)}: export the run in a layout that holds it")
    return ExportedModel(folder, _within(config, folder.absolute(), path), frozen, sources)


def _within(config: RunConfig, folder: Path, path: Path) -> RunConfig:
    """Return the settings with the folder in place of the sources of parts that it holds. Raises PlaitError for a damaged `path`."""
    try:
        section = registry.model_config(config.family).model_validate(config.model)
    except ValidationError as error:
        raise PlaitError(f"{path} is damaged, or of another version of plait: {one_line(error.errors()[0]['msg'])}") from error
    own = section.within(folder)
    return config if own is section else config.model_copy(update={"model": own.model_dump(mode="json")})


class Opened(NamedTuple):
    """An opened model. `config`: of its run; `moment`: the name of its step; `step`: None of an export."""

    bundle: ModelBundle
    config: RunConfig
    moment: str
    step: int | None


def open_named(spec: str | Path, ranks: Ranks, *, averaged: bool = True, length: float | None = None) -> Opened:
    """Open what `spec` names: a checkpoint (RUN, RUN@STEP, ...), with the weights of `saved.open_checkpoint`, or the folder of an export.

    Raises PlaitError if there is neither, and where an export is asked for other weights than it has.
    """
    if (model := find(spec)) is not None:
        check_weights(spec, averaged=averaged, length=length)
        return Opened(model.open(ranks), model.config, MOMENT, None)
    located = saved.locate(spec)
    bundle = saved.open_checkpoint(located, ranks, averaged=averaged, length=length)
    return Opened(bundle, located.config, moment_of(located.checkpoint.step), located.checkpoint.step)


def check_weights(spec: str | Path, *, averaged: bool, length: float | None) -> None:
    """Raise PlaitError where other weights than an export's only ones are asked for: the last ones, or an average of a length."""
    if not averaged or length is not None:
        raise PlaitError(f"{spec} is an export, with one set of weights: leave {'--raw' if length is None else '--ema-length'} out")


def _check_missing(folder: Path, bundle: ModelBundle, given: set[str]) -> None:
    """Raise PlaitError for parameters without weights that are of no pretrained part, such as a projector: they would know nothing."""
    parts = {str(part["part"]) for part in bundle.family.base(bundle.section)}
    missing = sorted(name for name, _ in bundle.model.named_parameters() if name not in given and name.partition(".")[0] not in parts)
    if missing:
        raise PlaitError(f"{folder} lacks {len(missing)} of the model's weights, which no base has: {first_names(missing)}")
