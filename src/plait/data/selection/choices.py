"""Choose one of several captions, and one of several templates, by weight and from the key of a sample.

The key is one of seed, sample and epoch: the choice is the same on any layout.
Where a sample is read without a key, as held-out ones are, the choice with the greatest weight is taken, the first of equal ones.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from plait.config.schema import WeightedTemplate
from plait.data import text
from plait.errors import BadSample
from plait.keys import key

CAPTION = "caption"
"""The field that the chosen caption becomes, for a template and as the text of a record without one."""


def pick(weights: Sequence[float], sample_key: int | None, purpose: str) -> int:
    """Return the index of one of `weights`, drawn in proportion to them by `sample_key`; None: the first of the greatest ones."""
    if sample_key is None or len(weights) == 1:
        return max(range(len(weights)), key=lambda i: (weights[i], -i))
    ends = list(itertools.accumulate(weights))
    drawn = key(sample_key, purpose) / 2**64 * ends[-1]
    return next((i for i, end in enumerate(ends) if drawn < end), len(ends) - 1)


def caption(fields: Mapping[str, Any], columns: Mapping[str, float], sample_key: int | None, *, allow_blank: bool) -> str:
    """Return one of a record's captions, chosen among those `columns` (name: weight) that hold a text, or a list of texts.

    Of a list each text is equally likely. A null, and unless `allow_blank` a blank text, is no caption. Raises BadSample if there is none,
    and for a column that holds something else.
    """
    texts = {name: _texts(name, fields.get(name), allow_blank=allow_blank) for name in columns}
    present = [name for name, found in texts.items() if found]
    if not present:
        names = " and ".join(f"`{name}`" for name in columns)
        raise text.NoText(f"no caption: {names} {'is' if len(columns) == 1 else 'are'} null, blank or missing (captions)")
    chosen = texts[present[pick([columns[name] for name in present], sample_key, "caption column")]]
    return chosen[pick([1.0] * len(chosen), sample_key, "caption of a list")]


def _texts(name: str, value: Any, *, allow_blank: bool) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    wrong = next((item for item in items if not isinstance(item, str) and not text.is_null(item)), None)
    if wrong is not None:
        raise BadSample(f"`{name}` is {text.kind_of(wrong)}, not a text or a list of texts (captions)")
    return [item for item in items if isinstance(item, str) and (allow_blank or not text.blank(item))]


def template(templates: Sequence[WeightedTemplate], sample_key: int | None) -> WeightedTemplate:
    """Return one of several templates, drawn by their weights."""
    return templates[pick([each.weight for each in templates], sample_key, "template")]
