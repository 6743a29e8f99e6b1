"""Look at samples in Python, `plait.samples`: what the model is given of the data of a configuration or a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.api.configuration import load_config
from plait.commands.actions.inspection.seen_samples import Seen, StageSamples, assets_of, showing
from plait.config.messages import CONFIGURATION, TEXT, WHOLE, Wanted, check_arguments, optional
from plait.config.resolved import Resolved
from plait.errors import PlaitError


@dataclass(frozen=True)
class Sample:
    """A sample as the model sees it. `id`: the source's name of it; `source`: the name of the source.

    `images`: pixels (H, W, 3) uint8 of what the encoders are given, and `labels` what each is; `text`: pieces of (text, whether the loss
    counts it); `notes`: values by name, such as the number of tokens; `cut`: whether `data.max_tokens` cut its end off; `fields`: the raw
    record; `example`: the family's own encoding.
    """

    id: str
    source: str
    images: Sequence[np.ndarray]
    labels: Sequence[str]
    text: Sequence[tuple[str, bool]]
    notes: Mapping[str, Any]
    cut: bool
    fields: Mapping[str, Any]
    example: Any

    def __repr__(self) -> str:
        shapes = ", ".join("x".join(map(str, image.shape[:2])) for image in self.images) or "none"
        return f"Sample({self.id!r}, images {shapes}, text {''.join(text for text, _ in self.text)[:80]!r})"

    @property
    def supervised(self) -> str:
        """The text that the loss counts, joined."""
        return "".join(text for text, counts in self.text if counts)


def samples(
    config: Resolved | str | Path | Mapping[str, Any], *, stage: str | None = None, n: int = 12, split: str = "train"
) -> list[Sample]:
    """Return the first `n` samples of a stage as its model sees them, in the order in which a run takes them.

    What `plait data inspect` draws; no weights are read. `config`: what `load_config` returned, or takes; `stage`: its name (None: the
    first); `split`: "train", augmented as in training, or "validation". Samples that cannot be used are replaced, as in training. Raises
    PlaitError for a faulty configuration, data that cannot be read and an unknown stage.
    """
    check_arguments(
        "plait.samples",
        config=(config, Wanted((Resolved, *CONFIGURATION.kinds), f"{CONFIGURATION.words}, or what load_config returned")),
        stage=(stage, optional(TEXT)),
        n=(n, WHOLE),
        split=(split, TEXT),
    )
    if n < 1 or split not in ("train", "validation"):
        raise PlaitError(f'samples(n={n}, split={split!r}): n is at least 1, split "train" or "validation"')
    resolved = config if isinstance(config, Resolved) else load_config(config)
    views = {view.name: view for view in reversed(resolved.stages)}
    if stage is not None and stage not in views:
        raise PlaitError(f"samples(stage={stage!r}): the configuration has no such stage; it has {', '.join(reversed(views))}")
    view, family = resolved.stages[0] if stage is None else views[stage], showing(resolved)
    section = family.Config.model_validate(resolved.config.model)
    with assets_of(resolved.config) as assets:
        opened = StageSamples.of(view, family, section, assets, split)
        names = opened.data.names()
        return [_sample(seen, names[seen.id.source]) for seen in opened.first(n).seen]


def _sample(seen: Seen, source: str) -> Sample:
    shown = seen.shown
    return Sample(
        id=str(seen.sample["id"]),
        source=source,
        images=list(shown["images"]),
        labels=list(shown.get("labels", ())),
        text=list(shown["text"]),
        notes=dict(shown["notes"]),
        cut=seen.cut,
        fields=seen.sample["fields"],
        example=seen.example,
    )
