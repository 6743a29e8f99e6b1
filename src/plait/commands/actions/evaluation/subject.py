"""The model that `plait eval` measures: a checkpoint of a run, or a configuration's model before its first step (its base)."""

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import xxhash

from plait import files
from plait.assembly import exported, overwritten, saved
from plait.assembly.exported import ExportedModel
from plait.assembly.model import ModelBundle, build_model
from plait.config.resolved import Resolved, StageView, dump
from plait.config.schema import RunConfig, SourceEntry
from plait.engine import blocks, evaluation
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.errors import PlaitError
from plait.families import registry
from plait.keys import key
from plait.nn.pretrained import weights_hash
from plait.training import from_weights


class Subject(ABC):
    """A model to measure. `step`: the run's; `run`: its folder; `shown`: its name in reports; `moment`: its name in paths of results.

    `config`: the run's configuration. `moment` is such as "step-00000100". `without_averages`: name, for reports, of the weights that are
    measured if none are averaged.
    """

    config: RunConfig
    step: int
    run: Path
    shown: str
    moment: str
    without_averages: str
    _built: tuple[tuple[bool, float | None], tuple[ModelBundle, RunConfig]] | None = None

    @abstractmethod
    def identity(self) -> str:
        """Return a hash that differs where the weights differ; builds no model."""

    @property
    def trained_sources(self) -> Sequence[SourceEntry] | None:
        """The sources that the run trained on, as `--data` may be read as they are; None where they are not known."""
        return self.config.data.train

    @abstractmethod
    def has_averages(self) -> bool:
        """Return whether there are averaged (EMA) weights."""

    def open(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Return what `build` returns for the same arguments: built once, and kept until others are asked for."""
        asked = (averaged, length)
        if self._built is None or self._built[0] != asked:
            self._built = (asked, self.build(ranks, averaged=averaged, length=length))
        return self._built[1]

    def close(self) -> None:
        """Let go of the model that `open` built."""
        self._built = None

    @abstractmethod
    def build(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Build the model in eval mode on the rank's device; return it with its configuration. `averaged`: use EMA weights if any.

        `length`: if not None, use a post-hoc average of this length (a share of the run) instead.
        """


class Saved(Subject):
    """A model with the weights of the checkpoint that `spec` names (RUN, RUN@STEP, ...). Raises PlaitError if there is none."""

    without_averages = "last weights"

    def __init__(self, spec: str | Path) -> None:
        self.saved = saved.locate(spec)
        self.checkpoint, self.config = self.saved.checkpoint, self.saved.config
        self.step, self.run = self.checkpoint.step, self.checkpoint.folder.parent.parent
        self.shown, self.moment = str(self.checkpoint.folder), evaluation.moment_of(self.step)

    def identity(self) -> str:
        """Return the hash of the checkpoint's manifest.json, which holds the hashes of its files."""
        return files.xxh3(self.checkpoint.folder / "manifest.json")

    def has_averages(self) -> bool:
        """Return whether the checkpoint has averaged weights."""
        return bool(self.checkpoint.stored("ema"))

    def build(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Build the model with the checkpoint's weights: averaged ones if `averaged`, or a post-hoc average of `length` if not None.

        In eval mode on the rank's device; returned with its configuration. Raises PlaitError if the run kept nothing to make that average
        from.
        """
        return saved.open_checkpoint(self.saved, ranks, averaged=averaged, length=length), self.config


class Exported(Subject):
    """A model in the folder of an export; results are written to its folder `eval`."""

    without_averages = "weights of the export"

    def __init__(self, model: ExportedModel) -> None:
        self.model, self.config, self.step = model, model.config, 0
        self.run, self.shown, self.moment = model.folder, str(model.folder), exported.MOMENT

    @property
    def trained_sources(self) -> Sequence[SourceEntry] | None:
        """What plait.json tells of the run's sources: their kinds, templates and columns; None of an older export."""
        return self.model.reads

    def identity(self) -> str:
        """Return a hash of the folder's weights and settings."""
        settings = files.xxh3(self.run / saved.MODEL_SETTINGS)
        return xxhash.xxh3_64_hexdigest(f"{weights_hash(self.run)} {settings}".encode())

    def has_averages(self) -> bool:
        """Return False: an export has one set of weights."""
        return False

    def build(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Build the model in eval mode on the rank's device. Raises PlaitError where others than its only weights are asked for."""
        exported.check_weights(self.run, averaged=averaged, length=length)
        return self.model.open(ranks), self.config


def named(spec: str | Path) -> Subject:
    """Return the model that `spec` names: a checkpoint, or the folder of an export. Raises PlaitError if there is none."""
    model = exported.find(spec)
    return Saved(spec) if model is None else Exported(model)


class Randomised(Saved):
    """The model of a checkpoint of which one component (a part such as `projector`) knows nothing: its values stand in random order.

    The values of each tensor are permuted by a key, so that they keep their mean and spread. Raises PlaitError for an unknown component.
    """

    def __init__(self, spec: str | Path, component: str) -> None:
        super().__init__(spec)
        known = self.checkpoint.manifest["components"]
        if component not in known:
            raise PlaitError(f"--against random:{component}: the model has no component {component!r}: known: {', '.join(known)}")
        if not known[component]["values"] or component in registry.load(self.config.family).never_trained:
            raise PlaitError(f"--against random:{component}: no weights of it are used: in random order it is the same model")
        self.component, self.shown = component, f"{self.shown} with {component} in random order"

    def identity(self) -> str:
        """Return a hash that depends on the checkpoint and the component."""
        return xxhash.xxh3_64_hexdigest(f"{super().identity()} random {self.component}".encode())

    def build(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Build the model of the checkpoint and put the values of the component's tensors in random order, each within its tensor."""
        bundle, config = super().build(ranks, averaged=averaged, length=length)
        with torch.no_grad():
            for name, value in bundle.components()[self.component].items():
                generator = torch.Generator().manual_seed(key(config.seed, "random order", name) % 2**63)
                order = torch.randperm(value.numel(), generator=generator).to(value.device)
                value.copy_(value.flatten()[order].view_as(value))
        return bundle, config


class Base(Subject):
    """The model of a configuration before its first step: its base weights, or those that `from:` names.

    `begun`: the run's folder, if it is not where the configuration says. Results are written to the run's folder if the run has begun, else
    to RUN-base, because a run begins in an empty folder only.
    """

    without_averages = "weights before the first step"

    def __init__(self, resolved: Resolved, begun: Path | None = None) -> None:
        self.view: StageView = resolved.stages[0]
        self.config, self.step = self.view.config, 0
        whole = dump(self.config)
        named = [whole[name] for name in ("family", "model", "seed", "from")] + [whole["data"]["train"], whole["data"]["mixture"]]
        self._named = json.dumps(named, sort_keys=True)
        mark = xxhash.xxh3_64_hexdigest(self._named.encode())[:6]
        run = begun or Path(str(self.config.run))
        self.run = run if (run / "config.yaml").is_file() and not self.config.from_ else run.with_name(f"{run.name}-base") / mark
        begun_from = f", which began from {self.config.from_}" if self.config.from_ else ""
        self.shown, self.moment = f"{self.config.family} of {run}{begun_from}", f"base-{mark}"

    def identity(self) -> str:
        """Return a hash of what decides the weights: settings, and names, sizes and times of the files that these name."""
        family = registry.load(self.config.family)
        parts = [str(part["name"]) for part in family.base(family.Config.model_validate(self.config.model))]
        named = [Path(name.partition("@")[0]) for name in (*parts, self.config.from_ or "") if name]
        state = [self._named, *(line for path in named if path.exists() for line in _files(path))]
        return xxhash.xxh3_64_hexdigest("\n".join(state).encode())

    def has_averages(self) -> bool:
        """Return False: nothing was averaged yet."""
        return False

    def build(self, ranks: Ranks, *, averaged: bool, length: float | None) -> tuple[ModelBundle, RunConfig]:
        """Build the model as a run does before its first step, in eval mode on the rank's device. `averaged` and `length` are ignored.

        Raises PlaitError for a `from:` that cannot be read.
        """
        bundle = build_model(self.config, self.run, ranks, lambda: overwritten.shapes_of_start(self.config, self.run, ranks))
        if self.config.from_:
            state = State(bundle.model)
            from_weights.begin_from(state, bundle, self.view, run=self.run, ranks=ranks, allow_inexact=True)
            if bundle.adapters is not None:
                bundle.adapters.begin(state.ever_trained)
        bundle.model.to(ranks.device).eval()
        blocks.cast_inputs(bundle.blocks, self.config.train.residual_dtype)
        return bundle, self.config


def _files(path: Path) -> Iterator[str]:
    """Yield name, size and time of every file below `path`."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            status = file.stat()
            yield f"{file} {status.st_size} {status.st_mtime_ns}"
