"""Count what each source of a mixture contributes: its share of samples, tokens and loss weight of a stage so far.

A source is a training data set. Amounts are totals of the state, `drawn/SOURCE/QUANTITY`: summed over ranks with the step's weights, saved
with each checkpoint, reset at the start of each stage. Sources that are sampled equally often can differ tenfold in supervised tokens.
"""

from collections.abc import Mapping, Sequence

from plait.engine.loss import Loss, MicroBatch, by_sample_of

PREFIX, SAMPLES = "drawn/", "samples"
"""The beginning of the names of amounts among the state's totals, and the quantity that is counted with every loss."""


def amounts(loss: Loss, micros: Sequence[MicroBatch], sources: Sequence[str]) -> dict[str, float]:
    """Return the amounts of every source in this rank's micro-batches, such as {"drawn/vqa/samples": 3.0}; {} where there is one source.

    Amounts are samples and what `loss.amounts` names; 0 for a source that is absent. `sources`: names, indexed by `SampleId.source`.
    """
    if len(sources) <= 1:
        return {}
    totals = {f"{PREFIX}{source}/{quantity}": 0.0 for source in sources for quantity in (SAMPLES, *loss.amounts)}
    for micro in micros:
        if micro.padding:
            continue
        names = [sources[sample.source] for sample in micro.ids]
        by_sample = {name: values.tolist() for name, values in by_sample_of(loss, micro.batch, len(names)).items()}
        for quantity, values in {SAMPLES: [1.0] * len(names), **by_sample}.items():
            for source, value in zip(names, values, strict=True):
                totals[f"{PREFIX}{source}/{quantity}"] += value
    return totals


def shares(totals: Mapping[str, float]) -> dict[str, float]:
    """Return each source's share of each quantity, as {"share/vqa/samples": 0.25}; a quantity whose sum is 0 is left out."""
    amount = {name: value for name, value in totals.items() if name.startswith(PREFIX)}
    sums: dict[str, float] = {}
    for name, value in amount.items():
        quantity = name.rpartition("/")[2]
        sums[quantity] = sums.get(quantity, 0.0) + value
    denominators = {name: sums[name.rpartition("/")[2]] for name in amount}
    return {f"share/{name.removeprefix(PREFIX)}": value / denominators[name] for name, value in amount.items() if denominators[name] > 0}


def reset(totals: Mapping[str, float]) -> dict[str, float]:
    """Return a copy of the totals without the sources' amounts (`drawn/SOURCE/...`), which a new stage counts from zero."""
    return {name: value for name, value in totals.items() if not name.startswith(PREFIX)}
