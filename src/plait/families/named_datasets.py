"""Look up the public datasets that a family knows by name: their description, splits and bench.

A wrong name is answered with the nearest one that is known.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from plait.errors import PlaitError
from plait.families.published_rows import Spec


@dataclass(frozen=True)
class NamedDatasets:
    """The datasets of a family's catalogue. `specs`: their descriptions by name; `aliases`: {other name: name}."""

    specs: Mapping[str, Spec]
    aliases: Mapping[str, str]

    def spec_of(self, name: str) -> Spec:
        """Return the description (Spec) of a dataset by name or alias. Raises PlaitError, with the nearest name, if unknown."""
        spec = self.specs.get(self.aliases.get(name, name))
        if spec is None:
            near = difflib.get_close_matches(name, [*self.specs, *self.aliases], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self.specs)}"
            raise PlaitError(f"dataset {name!r} is unknown: {hint} (your own is named as module:Class or file.py:Class)")
        return spec

    def rule_of(self, name: str) -> str:
        """Return the name of the bench, such as `vqa`, that scores answers to a dataset. Raises PlaitError for one without, or unknown."""
        rule = self.spec_of(name).rule
        if rule is None:
            loss = f"--bench loss --data=dataset:{name} --split={self.evaluation_split(name)}"
            raise PlaitError(
                f"dataset {name!r} has free answers that no rule scores; measure its loss, {loss}, or one of {', '.join(self.scored())}"
            )
        return rule

    def scored(self) -> list[str]:
        """Return the names of the datasets whose generated answers a bench can score."""
        return [name for name, spec in self.specs.items() if spec.rule is not None]

    def evaluation_split(self, name: str) -> str:
        """Return the split to evaluate a dataset on when none is named: validation if it has one, else test, else its first.

        Raises PlaitError for an unknown dataset.
        """
        known = self.spec_of(name).splits
        return next((split for split in ("validation", "test") if split in known), next(iter(known)))

    def split_of(self, name: str, split: str) -> str:
        """Check that dataset `name` (or alias) has `split`, and return it. Raises PlaitError with its splits, or the nearest name."""
        known = self.spec_of(name).splits
        if split not in known:
            near = difflib.get_close_matches(split, known, 1)
            raise PlaitError(
                f"dataset {name!r} has no split {split!r}: " + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}")
            )
        return split
