"""Refuse options that would change nothing, so that nobody takes an answer or a run for one that they made.

They are those of `plait generate`, and predicted futures (`rollout` of a data entry, `--rollout`) of a model that sees none.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from plait.config.messages import flag
from plait.config.schema import RunConfig
from plait.data.rollouts.stored import open_rolled
from plait.data.sources.contract import Source
from plait.errors import PlaitError
from plait.families import registry


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


def no_futures(family: str, model: Mapping[str, Any]) -> str | None:
    """Return why a model of this family with this `model:` section sees no predicted futures, or None."""
    if not registry.has_module(family, "futures.py"):
        return f"family {family!r} learns from no futures"
    world = registry.ablations(family).get("world")
    lacking = None if world is None else world.lacks(registry.model_config(family).model_validate(model))
    return lacking and f"{lacking}, so that this model sees no futures"


def with_futures(source: Source, folder: str, config: RunConfig) -> Source:
    """Return `source` with the predicted futures in `folder`, which an entry of the data names.

    Raises PlaitError where the model sees no futures, and where they are not of this source.
    """
    if (why := no_futures(config.family, config.model)) is not None:
        raise PlaitError(f"rollout: {folder} changes nothing: {why}; leave `rollout` out of the data")
    return open_rolled(source, folder, config.seed)
