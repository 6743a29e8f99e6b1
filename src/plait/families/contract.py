"""The contract of a family: the members that plait calls; signatures.py has the types of the functions that make inputs and model.

Those of another package's family are checked when it is loaded (members.py), and what they return when they are called (returned.py).
A family is one kind of model with its data preparation. It is a package of these modules; all but the first two may be missing:

    config.py              Config, its typed `model:` section; imports no torch
    family.py              what trains: the members of `Family` below, by these names
    evaluate.py            benches (evaluations of generated output): name to plait.engine.evaluation.Bench
    export.py              exports and imported: weights in the layouts of other software (module_contracts.py)
    futures.py             open_futures: what predicts futures of samples, for `plait data rollout` (futures.py)
    catalogue/datasets.py  public datasets that are known by name (module_contracts.py)
    presets/, mixtures/    YAML files: whole configurations, and lists of datasets with their sampling rates

`assets` is a run's folder for files that belong to its model, such as a tokenizer. An example is the encoded form of a sample, as
`Inputs.encode` returns it. A component is a named part of the model that trains or stays frozen as a whole.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from torch import nn

from plait.config.schema import ModelSection
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families.frozen import FrozenEncoder
from plait.families.lengths import TokenLengths
from plait.families.limits import Limits, no_limits
from plait.families.signatures import Build, BuildOver, MakeInputs, Sample

Texts = Callable[[], Iterable[str]]
"""A function that yields the texts of training samples."""
Parameters = dict[str, nn.Parameter]
"""{full name: parameter} of one component."""
Monitor = Callable[[Mapping[str, Any]], list[str]]
"""Called with each logged row of metrics, {name: value}, in order; returns warnings to print, sentences with advice."""


def _nothing_to_prepare(config: Any, assets: Path, texts: Texts) -> None:
    """Make nothing."""


def _none(config: Any) -> list[Any]:
    return []


@dataclass(frozen=True)
class Family:
    """A loaded family: the members of its `family.py`, with defaults for the optional ones. `config` below is the `model:` section.

    `name`: in a configuration. `Config`: class of that section. `build`: makes the model. `Inputs`: makes batches. `Loss`: config to loss.
    `monitors`: from config to functions from a logged row to warnings. `GenerateOptions`: options of `plait generate`; None: it has none.
    """

    name: str
    Config: type[ModelSection]
    build: Build
    components: Callable[[nn.Module], dict[str, Parameters]]
    """From model to {component: {full name: parameter}}; each parameter once. Freezing and learning rates are set per component."""
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    """From model to the modules that are sharded, recomputed in backward and compiled one by one, in the order of the forward pass."""
    Inputs: MakeInputs
    Loss: Callable[[Any], Loss]
    prepare: Callable[[Any, Path, Texts], None] = _nothing_to_prepare
    """(config, assets, texts): write what the model needs, such as a tokenizer, into `assets`; `texts()` yields training texts."""
    base: Callable[[Any], list[dict[str, str | None]]] = _none
    """From config to pretrained parts: [{'part', 'name': Hub name or path, 'revision', optional 'folder': the only one read}]."""
    build_over: BuildOver | None = None
    """Build without the weights of pretrained parts that a start overwrites; None: every start reads them."""
    recomputed: Callable[[nn.Module], Sequence[nn.Module]] = _none
    """From model to further modules, in order, that are recomputed in backward as blocks are, but neither sharded nor compiled."""
    never_trained: frozenset[str] = frozenset()
    """Components that no setting may train: nothing uses their weights."""
    limits: Callable[[Any], Limits] = no_limits
    """From config to the limits of its input: the longest sequence, the size of images, and what each component learns from."""
    monitors: Callable[[Any], list[Monitor]] = _none
    frozen_features: Callable[[Any], list[FrozenEncoder]] = _none
    """From config to the encoders of pictures whose outputs `data.feature_cache` can keep while they are frozen."""
    token_lengths: Callable[[Any], TokenLengths] | None = None  # from inputs to the lengths of their rows; None: they have none
    GenerateOptions: type[BaseModel] | None = None
    generate: Callable[[Any, Any, Any, Path | None, str], Iterable[str]] | None = None
    """Work of `plait generate`: (model, inputs, options, folder or None, name such as step-00000100 of the step) to lines to print."""
    inspect: Callable[[Any, Sample, Any], dict[str, Any]] | None = None
    """From (inputs, sample, example) to a dict of what the model sees: `images` (uint8, H x W x 3), `text` ([(text, whether the loss
    counts it)]), `notes` ({name: value to show}), and optionally `labels`, a name per image, such as "SigLIP, 896 px".
    """
    legend: str = "On colour: the supervised text, which the model learns to say. Everything else is given to it."
    """Text above the samples of `plait data inspect` that says which part of them the loss counts."""


def family_of(name: str, module: ModuleType) -> Family:
    """Return the members of `module`, a family.py, as a Family of this name. Raises TypeError if a required one is missing."""
    members = vars(module)
    return Family(name=name, **{field.name: members[field.name] for field in fields(Family) if field.name in members})


def require_known(family: str, member: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise PlaitError for the first of the `names` in a family's member that is not among the `known` ones."""
    if unknown := sorted(str(name) for name in names if name not in known):
        raise PlaitError(f"family {family!r}: {member} names {unknown[0]!r}, which there is not: known: {', '.join(known) or 'none'}")
