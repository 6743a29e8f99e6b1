"""Measure the sources of a stage (part of a run), and the tokens that its model is given of some samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait import files
from plait.assembly.data import data_seed
from plait.commands.actions.inspection import source_figures
from plait.commands.actions.inspection.inspect_source import InspectOptions, lines, measured
from plait.commands.actions.inspection.seen_samples import StageSamples
from plait.commands.pages.figures import Section, render_figures
from plait.data.figures.measure import Figures, chosen
from plait.data.loading.micro_batch import collated
from plait.data.sources.contract import Source, read
from plait.engine.loss import weights_of
from plait.engine.schedule import TOKENS
from plait.errors import BadSample, sample_errors
from plait.keys import key

_STORED = 2_000
"""Samples measured of a source on disk, unless it is said: a configuration is mostly inspected for what its model sees."""
_ENCODED = 64  # samples of which tokens are counted: their pictures are prepared for that


@dataclass(frozen=True)
class Measured:
    """How sources are measured: at most `most` samples of each (None: fewer of one that is slow to read); `headers_only`: undecoded."""

    most: int | None = None
    headers_only: bool = False


def measure_stage(stage: StageSamples, section: Any, wanted: Measured, folder: Path) -> tuple[list[str], list[Mapping[str, Any]]]:
    """Measure each source of a stage, and write `folder`/figures.html. Returns lines about them, and their figures as JSON values."""
    told, sections = list[str](), list[Section]()
    figures_told: list[Mapping[str, Any]] = []
    for source, name in zip(stage.data.sources, stage.data.names(), strict=True):
        most = _STORED if wanted.most is None and source.stored else wanted.most
        figures = measured(source, InspectOptions(figures=most, headers_only=wanted.headers_only), None)
        _count_tokens(figures, source, stage, section)
        rows = source_figures.details(figures, source)
        told += [f"{name}: figures", *lines(rows)]
        figures_told.append({**source_figures.as_dict(figures, source), "name": name})
        sections.append(source_figures.section(figures, source, [row for row in rows if row[0]], title=name))
    title = f"{stage.split}, stage {stage.view.index} ({stage.view.name}): figures of its data"
    files.write_whole(folder / "figures.html", render_figures(title, [], sections))
    return told, figures_told


def _count_tokens(figures: Figures, source: Source, stage: StageSamples, section: Any) -> None:
    """Add the tokens of some samples, as the family's inputs make them, to what was measured; none where it counts none."""
    loss = stage.family.Loss(section)
    if TOKENS not in loss.counts:
        return
    for index in chosen(source, _ENCODED):
        sample_key = key(data_seed(stage.view), "sample", stage.data.sources.index(source), int(index), 0)
        try:
            with sample_errors:
                example = stage.inputs.encode(read(source, int(index), sample_key), sample_key)
                tokens = float(weights_of(loss, collated(stage.inputs, [example]))[TOKENS])
        except BadSample:
            continue
        figures.tokens.add(int(np.rint(tokens)))
