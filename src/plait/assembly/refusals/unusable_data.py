"""Say why data is refused before the first step: bad samples, or none with text or with what a component learns from.

Where at least half of the samples looked at are bad, that comes first, since what the few others lack is then no reason.
"""

from collections import Counter
from collections.abc import Mapping

from plait.data.field_names import field_list
from plait.data.figures.reasons import commonest


def all_bad(bad: Counter[str]) -> str:
    """Return that no sample can be used. `bad`: how many cannot, by reason."""
    return f"none of the {bad.total()} samples looked at can be used: {commonest(bad)[1]}"


def without_text(bad: Counter[str], usable: int, fields: Mapping[str, None]) -> str:
    """Return that samples with pictures have no text. `fields`: the names that their records have."""
    return _after(
        bad,
        usable,
        f"has a caption or an answer; name its field with `columns` or `template` (the records have {field_list(fields)}), or say "
        "`allow_blank: true` to train on pictures alone",
    )


def without_input(name: str, needs: str, bad: Counter[str], usable: int, *, fields: Mapping[str, None], idle: object) -> str:
    """Return that no usable sample has what the component or setting `name` needs, such as "images or frames".

    `fields`: the names that their records have; `idle`: the value of a setting that asks for nothing.
    """
    setting = name.startswith("model.")
    verb, cure = ("asks for them", f"set {name} to {idle}") if setting else ("trains", f"leave {name} out of trainable")
    which = f"has {needs}"
    if "images" in needs.split() and fields:
        which += f" (the records have {field_list(fields)}; where one is the picture, name it: columns: {{image: NAME}})"
    return _after(bad, usable, f"{which}: {cure}, or say guard.no_input=continue", about=f"{name} {verb}")


def _after(bad: Counter[str], usable: int, lacking: str, about: str = "") -> str:
    """Return what no usable sample has, after the reason for which the others are bad where these are half of them or more."""
    if bad.total() < usable:
        return f"{about}{', but ' if about else ''}none of the {usable} samples looked at {lacking}"
    count, reason = commonest(bad)
    share = "all for one reason" if count == bad.total() else f"{count} for one reason"
    first = f"{bad.total()} of the {bad.total() + usable} samples looked at cannot be used, {share}, such as `{reason}`: mend that first"
    return f"{first}. {about}{', and of' if about else 'Of'} the other {usable} none {lacking}"
