"""The contracts of two modules that a family may have beside family.py: `export.py` and `catalogue/datasets.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Check:
    """How `plait export --check` loads a layout, and what it asks it.

    `library`: "transformers" or "diffusers"; `register`: what of plait loading imports; `trust`: whether code of the export is run.
    `weights(model, config, assets)` returns the weights as the library has them, by its names. `asked(inputs, pictures)` returns questions
    as JSON, given picture files: chats for transformers, arguments of a call for diffusers. `results(model, inputs, question)` returns what
    the model makes of one: `ids`, `logits` and `answer`, or `pictures` (n, H, W, 3) uint8. `settings(model, inputs)` returns values, as
    JSON, that the library's model or pipeline must have under these names. `autocast`: compute in the run's precision, as `plait generate`.
    `unused`: pattern of names of weights that no export holds, as nothing uses them.
    """

    library: str
    weights: Callable[[Any, Any, Path], Mapping[str, Tensor]]
    asked: Callable[[Any, Sequence[Path]], list[Any]]
    results: Callable[[Any, Any, Any], Mapping[str, Any]]
    settings: Callable[[Any, Any], Mapping[str, Any]]
    register: str | None = None
    trust: bool = False
    autocast: bool = False
    unused: str | None = None


class Publisher(Protocol):
    """`export.py` of a family: writes and reads other layouts. A start refuses read weights that do not fit; missing ones stay as built."""

    exports: Mapping[str, Callable[..., list[str]]]
    """By layout, as in `plait export --to LAYOUT`: functions from (model, config, assets, folder to create) to lines to print.

    One with an argument `run`, with a default, is given by it what plait.json tells of the run, such as its `train.precision`.
    """

    checks: Mapping[str, Check]
    """Optional: how those of these layouts that a library loads are checked."""

    def imported(self, weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Return `weights` by `model`'s names and shapes; unknown ones keep theirs. May raise PlaitError for missing or misshapen ones."""


class Catalogue(Protocol):
    """`catalogue/datasets.py` of a family: public datasets that a configuration can name. DATASETS: {name: any}; ALIASES: {alias: name}."""

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
