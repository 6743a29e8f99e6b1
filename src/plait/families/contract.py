"""The contract of a family: the members that plait calls, checked when it is loaded.

A family is one kind of model with its data preparation. It is a package of these modules; all but the first two may be missing:

    config.py              Config, its typed `model:` section; imports no torch
    family.py              what trains: the members of `Family` below, by these names
    evaluate.py            benches (evaluations of generated output): name to plait.engine.evaluation.Bench
    export.py              exports and imported: weights in the layouts of other software (`Publisher`)
    catalogue/datasets.py  public datasets that are known by name (`Catalogue`)
    presets/, mixtures/    YAML files: whole configurations, and lists of datasets with their sampling rates

`assets` is a run's folder for files that belong to its model, such as a tokenizer. An example is the encoded form of a sample, as
`Inputs.encode` returns it. A component is a named part of the model that trains or stays frozen as a whole.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from pydantic import BaseModel
from torch import Tensor, nn

from plait.config import plugins
from plait.config.schema import ModelSection
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families.limits import Limits, no_limits

Sample = dict[str, Any]
"""One raw item of data: `id`, `images` (encoded files), `messages` ([{"role", "content"}]), `fields` (a dict), for clips `frames`."""
Texts = Callable[[], Iterable[str]]
Parameters = dict[str, nn.Parameter]
Monitor = Callable[[Mapping[str, Any]], list[str]]
"""Called with each logged row of metrics, {name: value}, in order; returns warnings to print, sentences with advice."""


class Inputs(Protocol):
    """Turns samples into batches of tensors; runs in data workers, without the model."""

    def encode(self, sample: Sample, key: int) -> Any:
        """Return the example of a sample. All randomness comes from `key`, a 64-bit seed. Raises BadSample if it cannot be used."""

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return a batch of examples as tensors by name; optionally `cut` (B,): how many tokens of each example's text were cut off."""


class MakeInputs(Protocol):
    """Type of a family's member `Inputs`: a class, or a function that returns such an object. `config`: the `model:` section.

    `max_tokens`: longest sequence; `pad`: "longest", "to_128", "to_max" or "none" (`data.pad`); `train`: whether samples are augmented.
    """

    def __call__(self, config: Any, assets: Path, *, max_tokens: int | None, pad: str, train: bool) -> Inputs:
        """Return inputs, with augmentation if `train`. `max_tokens`: per sample, None for no limit. `pad`: a value of `data.pad`."""


class Build(Protocol):
    """Type of a family's function `build`. `config`: the `model:` section; `assets`: the run's folder for the model's files."""

    def __call__(self, config: Any, assets: Path, *, seed: int) -> nn.Module:
        """Return the model on the CPU, or without weights under `torch.device('meta')`. Random weights depend on `seed` alone."""


class BuildOver(Protocol):
    """Type of a family's optional function `build_over`; its parameters' names begin with that of their part, as in "language."."""

    def __call__(self, config: Any, assets: Path, *, seed: int, parts: frozenset[str]) -> nn.Module:
        """Return what `build` does, without reading the weights of `parts`, names of `base`: the caller overwrites them all."""


def _nothing_to_prepare(config: Any, assets: Path, texts: Texts) -> None:
    """Make nothing."""


def _no_base(config: Any) -> list[dict[str, str | None]]:
    return []


def _no_monitors(config: Any) -> list[Monitor]:
    return []


@dataclass(frozen=True)
class Family:
    """A loaded family: the members of its `family.py`, with defaults for the optional ones. `config` below is the `model:` section."""

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
    base: Callable[[Any], list[dict[str, str | None]]] = _no_base
    """From config to pretrained parts: [{'part', 'name': Hub name or path, 'revision', optional 'folder': the only one read}]."""
    build_over: BuildOver | None = None
    """Build without the weights of pretrained parts that a start overwrites; None: every start reads them."""
    never_trained: frozenset[str] = frozenset()
    """Components that no setting may train."""
    limits: Callable[[Any], Limits] = no_limits
    """From config to the limits of its input: the longest sequence, the size of images, and what each component learns from."""
    monitors: Callable[[Any], list[Monitor]] = _no_monitors
    GenerateOptions: type[BaseModel] | None = None
    generate: Callable[[Any, Any, Any, Path | None, str], Iterable[str]] | None = None
    """Work of `plait generate`: (model, inputs, options, folder or None, name such as step-00000100 of the step) to lines to print."""
    inspect: Callable[[Any, Sample, Any], dict[str, Any]] | None = None
    """From (inputs, sample, example) to a dict of what the model sees: `images` (uint8, H x W x 3), `text` ([(text, whether the loss
    counts it)]), `notes` ({name: value to show}), and optionally `labels`, a name per image, such as "SigLIP, 896 px".
    """
    legend: str = "On colour: the supervised text, which the model learns to say. Everything else is given to it."
    """Text above the samples of `plait data inspect` that says which part of them the loss counts."""


class Publisher(Protocol):
    """`export.py` of a family: writes and reads weights in the layouts of other software."""

    exports: Mapping[str, Callable[..., list[str]]]
    """By layout, as in `plait export --to LAYOUT`: functions from (model, config, assets, folder to create) to lines to print."""

    def imported(self, weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Return weights read from files of another layout, {name: tensor}, with this model's parameter names and shapes."""


class Catalogue(Protocol):
    """`catalogue/datasets.py` of a family: public datasets that a configuration can name. DATASETS: by name; ALIASES: {alias: name}."""

    DATASETS: Mapping[str, Any]
    ALIASES: Mapping[str, str]

    def open_dataset(self, entry: Any, split: str, *, root: Path | None, cache: Path | None) -> Any:
        """Open `split` (train, validation or test) of the dataset that `entry.name` names; return a plait.data.sources.contract.Source.

        `entry`: an item of `data.train` or `data.validation`. `root`: folder of all datasets, None for the family's default; `cache`:
        folder of index files, None for the user's cache. Raises Absent, which says how to get them, if its files are missing.
        """

    def rule_of(self, name: str) -> str:
        """Return the name of the bench (evaluation), such as `vqa`, that scores answers to a dataset. Raises PlaitError if none does."""

    def split_of(self, name: str, split: str) -> str:
        """Check that dataset `name` has `split`, and return it. Raises PlaitError with the splits that it has."""

    def evaluation_split(self, name: str) -> str:
        """Return the split, such as `validation`, that a dataset is evaluated on when the user names none."""

    def scored(self) -> list[str]:
        """Return the names of the datasets for which `rule_of` returns a bench."""


REQUIRED: Mapping[str, str] = {
    "Config": "Config, the model: section of config.py",
    "build": "build(config, assets, *, seed)",
    "components": "components(model)",
    "blocks": "blocks(model)",
    "Inputs": "Inputs(config, assets, *, max_tokens, pad, train)",
    "Loss": "Loss(config)",
}
OPTIONAL: Mapping[str, str] = {
    "prepare": "prepare(config, assets, texts)",
    "base": "base(config)",
    "build_over": "build_over(config, assets, *, seed, parts)",
    "never_trained": "never_trained, a frozenset of component names",
    "limits": "limits(config)",
    "monitors": "monitors(config)",
    "GenerateOptions": "GenerateOptions, a pydantic model",
    "generate": "generate(model, inputs, options, out, moment)",
    "inspect": "inspect(inputs, sample, example)",
    "legend": "legend, a text",
}
CATALOGUE: Mapping[str, str] = {
    "open_dataset": "open_dataset(entry, split, *, root, cache)",
    "rule_of": "rule_of(name)",
    "split_of": "split_of(name, split)",
    "evaluation_split": "evaluation_split(name)",
    "scored": "scored()",
}
"""Functions of `Catalogue`."""
METHODS: Mapping[str, Sequence[str]] = {
    "Inputs": ("encode(sample, key)", "collate(examples)"),
    "Loss": ("weights(batch)", "sums(model, batch)"),
}
"""Methods, with their arguments, that these members must have if they are classes; a function may return any object with them."""


def check(name: str, module: ModuleType) -> Family:
    """Return the members of `module`, a family.py, as a Family. Raises PlaitError naming all that are missing or of another signature."""
    members = vars(module)
    faults = [f"it lacks {wanted}" for member, wanted in REQUIRED.items() if member not in members]
    given = {member: members[member] for member in (*REQUIRED, *OPTIONAL) if member in members}
    faults += [fault for member, value in given.items() if (fault := _fault(member, value)) is not None]
    if ("generate" in given) != ("GenerateOptions" in given):
        faults.append("generate and GenerateOptions belong together, and it has one of them")
    if faults:
        raise PlaitError(f"family {name!r} ({module.__name__}) does not fulfil the contract: {'; '.join(faults)}")
    return Family(name=name, **given)


def check_catalogue(name: str, module: ModuleType) -> None:
    """Raise PlaitError where a family's `catalogue/datasets.py` lacks what `Catalogue` has, or has it otherwise."""
    tables = {table: vars(module).get(table) for table in ("DATASETS", "ALIASES")}
    faults = [f"it lacks {table}, a mapping by name" for table, value in tables.items() if not isinstance(value, Mapping)]
    if faults := [*faults, *plugins.function_faults(vars(module), CATALOGUE)]:
        raise PlaitError(f"family {name!r} ({module.__name__}) does not fulfil the contract: {'; '.join(faults)}")


def check_built(family: Family, model: nn.Module, components: Mapping[str, Mapping[str, nn.Parameter]], loss: Loss) -> None:
    """Raise PlaitError unless components hold each parameter once, blocks are modules of the model, and the loss has its types.

    `components`: what the family returned for this model.
    """
    name = f"family {family.name!r}"
    what = f"{name}: components(model)"
    if not (isinstance(components, Mapping) and all(isinstance(part, Mapping) for part in components.values())):
        raise PlaitError(f"{what} is to return {{component: {{parameter's name: parameter}}}}")
    parameters, held = dict(model.named_parameters()), Counter[str]()
    for part in components.values():
        held.update(part.keys())
    if unknown := sorted(held.keys() - parameters.keys()):
        raise PlaitError(f"{what} names {unknown[0]!r}, which is no parameter of the model")
    if twice := [parameter for parameter, count in held.items() if count > 1]:
        raise PlaitError(f"{what} has {twice[0]!r} in two components: each parameter belongs to one")
    if missing := [parameter for parameter in parameters if parameter not in held]:
        raise PlaitError(f"{what} leaves out {len(missing)} of {len(parameters)} parameters, the first {missing[0]!r}: add them to one")
    blocks, modules = family.blocks(model), set(model.modules())
    if not isinstance(blocks, Sequence | nn.ModuleList) or any(block not in modules for block in blocks):
        raise PlaitError(f"{name}: blocks(model) is to return a list of modules of the model")
    if "coefficients" not in {**vars(type(loss)), **vars(loss)}:
        raise PlaitError(f"{name}: its Loss sets no coefficients, the factor of each term by name")
    if not isinstance(loss.coefficients, Mapping):
        raise PlaitError(f"{name}: coefficients of its Loss is to be a mapping, the factor of each term by name")
    for member, value in (("counts", loss.counts), ("may_idle", loss.may_idle), ("amounts", loss.amounts)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise PlaitError(f"{name}: {member} of its Loss is to be a sequence of names, not {value!r}: a tuple of one is written (name,)")


def _fault(member: str, value: Any) -> str | None:
    """Return what is wrong with one member, or None."""
    wanted = {**REQUIRED, **OPTIONAL}[member]
    if member == "Config":
        return None if _is_a(value, ModelSection) else "Config is to be a subclass of plait.config.schema.ModelSection"
    if member == "GenerateOptions":
        return None if _is_a(value, BaseModel) else "GenerateOptions is to be a pydantic model"
    if member == "never_trained":
        return None if isinstance(value, frozenset) else "never_trained is to be a frozenset of component names"
    if member == "legend":
        return None if isinstance(value, str) else "legend is to be a text"
    if member == "Loss" and callable(value) and not _is_a(value, Loss):
        return "Loss is to be a subclass of plait.engine.loss.Loss"
    methods = METHODS.get(member, ()) if isinstance(value, type) else ()
    lacking = [name for name in (method.partition("(")[0] for method in methods) if _lacks(value, name)]
    if lacking:
        return f"{member} lacks {' and '.join(lacking)}"
    faults = [plugins.call_fault(f"{member}.{method}", getattr(value, method.partition("(")[0]), ("self",)) for method in methods]
    return next(filter(None, [plugins.call_fault(wanted, value), *faults]), None)


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def _lacks(kind: type, method: str) -> bool:
    """Return whether a class has no such method, or only the abstract one."""
    return method not in dir(kind) or method in getattr(kind, "__abstractmethods__", ())
