"""Refuse options of `plait generate` that would change nothing, so that nobody takes an answer for one that they made."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from plait.config.messages import flag
from plait.errors import PlaitError


def refuse_idle(given: Collection[str], idle: Mapping[str, str], called: Callable[[str], str] = flag) -> None:
    """Raise PlaitError for the first option that was given though it changes nothing.

    `given`: the names of the options that were given; `idle`: why options change nothing, by name; `called`: what messages call one.
    """
    for name, why in idle.items():
        if name in given:
            raise PlaitError(f"generate: {called(name)} changes nothing: {why}; leave it out")


def of_draw(options: Any) -> dict[str, str]:
    """Return the options of a draw of tokens, with the reason, where nothing is drawn: `temperature` of `options` is 0."""
    why = "at temperature 0 the likeliest token is always taken, and nothing is drawn"
    return {} if options.temperature else {"top_p": why, "seed": why}
