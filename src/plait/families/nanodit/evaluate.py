"""Benches (evaluations) of nanodit, all from fixed noise: held-out loss by time, the effect of each condition, and generated pictures.

`validation`: loss at fixed t, and how well one step restores the sample. `edit`, `swap`: another caption, or another image, from the same
noise. `divergence`: text alone against image alone. `toy`: two-colour pictures with exact labels. `grid`: pictures by size.
`distance`: generated and held-out pictures as sets.
Each `predict_*` returns one row (a dict of JSON values with the sample's `id`) per sample, in order; each `summarise_*` turns all rows into
figures by name. `batch`: samples per forward pass, all of one size. `moment`: name of the step, such as step-00000100, in paths of files.
Where samples are compared, each gets another sample of the list as its partner.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from plait.engine.evaluation import Bench, Predict, Row
from plait.errors import BadSample, PlaitError, sample_errors
from plait.families.nanodit import distances, flow, pictures
from plait.families.nanodit.config import Config, Sampling
from plait.families.nanodit.inputs import Conditions, Inputs, Sample, caption, noise
from plait.families.nanodit.model import NanoDiT
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key
from plait.nn import encoders

Rows = Sequence[Mapping[str, Any]]

T_FIXED = (0.1, 0.3, 0.5, 0.7, 0.9)
_RESTORED_FROM = 0.5  # the t at which one step restores the sample
_ALONE_TEXT, _ALONE_IMAGE = 4.0, 2.0  # guidance scales of the divergence test: text (4, 0), image (0, 2)
_FEWEST = 50
"""Samples of a set, by convention: the kernel distance is unbiased at any number, and its spread large at a small one."""
LABELS = ("position", "colour")
"""Fields of a two-colour sample: the first is determined by its text, the second by its reference image."""


@dataclass(frozen=True)
class _Batch:
    """Samples of one size: their indices in the bench's list, clean latents (B, C, H, W), conditions, and keys of their noise."""

    indices: list[int]
    x0: Tensor
    conditions: list[Conditions]
    keys: list[int]

    def requests(self, conditions: Sequence[Conditions]) -> list[Request]:
        channels, height, width = self.x0.shape[1:]
        return [Request(shown, (channels, height, width), noise_key) for shown, noise_key in zip(conditions, self.keys, strict=True)]


def _batches(samples: Sequence[Sample], inputs: Inputs, size: int) -> Iterator[_Batch]:
    """Group the samples by shape into batches of at most `size`."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    clean = [inputs.clean(sample) for sample in samples]
    for index, x0 in enumerate(clean):
        by_shape[tuple(x0.shape)].append(index)
    for group in by_shape.values():
        for start in range(0, len(group), size):
            indices = group[start : start + size]
            chosen = [samples[index] for index in indices]
            x0 = torch.stack([clean[index] for index in indices])
            keys = [key("bench", sample["id"]) for sample in chosen]
            yield _Batch(indices, x0, [inputs.conditions(sample) for sample in chosen], keys)


def _in_order(rows: Mapping[int, Row]) -> list[Row]:
    return [rows[index] for index in sorted(rows)]


@torch.no_grad()
def predict_validation(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Measure the loss at each fixed t, and `restored`: relative squared error of the sample estimated in one step from t = 0.5."""
    device, rows = next(model.parameters()).device, {}
    for part in _batches(samples, inputs, batch):
        x0 = part.x0.to(device)
        noises = torch.stack([noise(x0.shape[1:], noise_key) for noise_key in part.keys]).to(device)
        conditions = {name: value.to(device) for name, value in inputs.pack(part.conditions).items()}
        errors = []
        for t in T_FIXED:
            t_B = torch.full((len(x0),), t, device=device)
            z = flow.interpolate(x0, noises, t_B)
            v = flow.velocity(model({**conditions, "z": z, "t": t_B}).float(), z, t_B, inputs.config.prediction)
            errors.append((v - (noises - x0)).square().flatten(1).mean(1))
            if t == _RESTORED_FROM:
                restored = (z - t * v - x0).square().flatten(1).sum(1) / x0.square().flatten(1).sum(1)
        for row, index in enumerate(part.indices):
            losses = [float(error[row]) for error in errors]
            rows[index] = {"id": samples[index]["id"], "losses": losses, "restored": float(restored[row])}
    return _in_order(rows)


def summarise_validation(rows: Rows) -> dict[str, float]:
    """Return `loss` (mean over the fixed t), `loss/t_0.1` and so on, and `reconstruction`, the mean of the rows' `restored`."""
    by_t = {f"loss/t_{t:g}": _mean([row["losses"][i] for row in rows]) for i, t in enumerate(T_FIXED)}
    return {"loss": _mean(list(by_t.values())), **by_t, "reconstruction": _mean([row["restored"] for row in rows])}


def _exchange(condition: Literal["text", "image"]) -> Predict:
    """Return a bench that exchanges one condition of each sample with that of a partner.

    It generates three pictures from one noise: with the sample's own conditions, with the partner's text (or image), and with all of the
    partner's conditions.
    """

    def predict(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
        if condition == "image" and not inputs.config.image_dim:
            raise PlaitError("bench swap exchanges reference images, but model.image_dim is 0")
        conditions, rows = [inputs.conditions(sample) for sample in samples], {}
        for part in _batches(samples, inputs, batch):
            partners = [_partner(conditions, index, condition) for index in part.indices]
            others = [conditions[partner] for partner in partners]
            mixed = [
                Conditions(other.text, own.image) if condition == "text" else Conditions(own.text, other.image)
                for own, other in zip(part.conditions, others, strict=True)
            ]
            drawn = [draw(model, inputs, part.requests(shown), inputs.config.sampling) for shown in (part.conditions, mixed, others)]
            for row, index in enumerate(part.indices):
                own, changed, target = (batch_drawn[row] for batch_drawn in drawn)
                figures = {"change": _distance(changed, own), "toward": _cosine(changed - own, target - own)}
                rows[index] = {"id": samples[index]["id"], "partner": samples[partners[row]]["id"], **figures}
        return _in_order(rows)

    return predict


def _partner(conditions: Sequence[Conditions], index: int, condition: Literal["text", "image"]) -> int:
    """Return the index of a sample that differs in this condition: the first from half the list onwards.

    Raises PlaitError where there is none.
    """
    features = [shown.text if condition == "text" else shown.image for shown in conditions]
    own = features[index]
    for step in range(len(features)):
        partner = (index + len(features) // 2 + step) % len(features)
        other = features[partner]
        if other is not None and (own is None or own.shape != other.shape or not torch.equal(own, other)):
            return partner
    raise PlaitError(f"no two of {len(features)} samples differ in their {condition}: raise evaluate.samples")


def summarise_exchange(rows: Rows) -> dict[str, float]:
    """Return means of `change`, relative RMS between own and changed picture, and `toward`, its cosine with the partner's direction."""
    return {"change": _mean([row["change"] for row in rows]), "toward": _mean([row["toward"] for row in rows])}


def predict_divergence(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Compare samples drawn by text alone (scales 4, 0), by image alone (0, 2) and by both, from one noise.

    A row has `divergence`, RMS between the first two, and `dominance`, 0 where both equals text alone. Raises PlaitError without images.
    """
    if not inputs.config.image_dim:
        raise PlaitError("bench divergence sets text against image, but model.image_dim is 0")
    sampling = inputs.config.sampling.model_copy(update={"guidance": "two_scale", "interval": (0.0, 1.0)})
    text = sampling.model_copy(update={"text_scale": _ALONE_TEXT, "image_scale": 0.0})
    image = sampling.model_copy(update={"text_scale": 0.0, "image_scale": _ALONE_IMAGE})
    rows = {}
    for part in _batches(samples, inputs, batch):
        drawn = [draw(model, inputs, part.requests(part.conditions), setting) for setting in (text, image, sampling)]
        for row, index in enumerate(part.indices):
            by_text, by_image, by_both = (batch_drawn[row] for batch_drawn in drawn)
            gap, to_text, to_image = _distance(by_text, by_image), _distance(by_both, by_text), _distance(by_both, by_image)
            rows[index] = {"id": samples[index]["id"], "divergence": gap, "dominance": to_text / max(to_text + to_image, 1e-12)}
    return _in_order(rows)


def summarise_divergence(rows: Rows) -> dict[str, float]:
    """Average the rows of `predict_divergence`: how far samples drawn from text alone and from an image alone differ, and which one wins.

    `divergence` is their RMS difference: 0 if conditions have no effect, 1.41 (root 2) for unrelated samples of unit variance. `dominance`
    says which of the two samples drawn with both resemble: 0 text, 1 the image.
    """
    return {name: _mean([row[name] for row in rows]) for name in ("divergence", "dominance")}


def predict_toy(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Generate two-colour samples by both conditions, each alone, and by text and image with different labels; classify what comes out.

    The class is that of the nearest mean of held-out samples; `right` in a row has a bool per variant. Raises PlaitError for samples
    without labels, or too few of them.
    """
    missing = [sample["id"] for sample in samples if not set(LABELS) <= sample["fields"].keys()]
    if missing:
        raise PlaitError(f"bench toy needs the fields {' and '.join(LABELS)}, which sample {missing[0]} has not")
    means = _prototypes(samples, inputs)
    rows: dict[int, Row] = {}
    for part in _batches(samples, inputs, batch):
        partners = [_crossed(samples, index) for index in part.indices]
        variants = _toy_variants(part.conditions, [inputs.conditions(samples[partner]) for partner in partners])
        drawn = {name: draw(model, inputs, part.requests(shown), inputs.config.sampling).cpu() for name, shown in variants.items()}
        for row, (index, partner) in enumerate(zip(part.indices, partners, strict=True)):
            sample, labels, other = samples[index], samples[index]["fields"], samples[partner]["fields"]
            predicted = {name: _nearest(means, batch_drawn[row]) for name, batch_drawn in drawn.items()}
            right = {
                "both": predicted["both"] == (labels["position"], labels["colour"]),
                "text": predicted["text"][0] == labels["position"],
                "image": predicted["image"][1] == labels["colour"],
                "crossed": predicted["crossed"] == (labels["position"], other["colour"]),
            }
            texts = {"answer": " ".join(predicted["both"]), "gold": f"{labels['position']} {labels['colour']}"}
            rows[index] = {"id": sample["id"], "question": caption(sample), **texts, "correct": right["both"], "right": right}
    return _in_order(rows)


def _toy_variants(own: Sequence[Conditions], others: Sequence[Conditions]) -> dict[str, list[Conditions]]:
    """Return the four sets of conditions that bench toy generates from."""
    return {
        "both": list(own),
        "text": [conditions.only(text=True, image=False) for conditions in own],
        "image": [conditions.only(text=False, image=True) for conditions in own],
        "crossed": [Conditions(conditions.text, other.image) for conditions, other in zip(own, others, strict=True)],
    }


def _prototypes(samples: Sequence[Sample], inputs: Inputs) -> dict[tuple[str, str], Tensor]:
    """Return the mean clean sample of each pair of labels, which generated samples are classified by.

    Raises PlaitError where a pair has no sample.
    """
    groups: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for sample in samples:
        groups[sample["fields"]["position"], sample["fields"]["colour"]].append(inputs.clean(sample))
    pairs = product(*(sorted({sample["fields"][name] for sample in samples}) for name in LABELS))
    if missing := [pair for pair in pairs if pair not in groups]:
        raise PlaitError(f"bench toy needs a sample of every pair of labels; none is {' '.join(missing[0])}: raise evaluate.samples")
    return {pair: torch.stack(group).mean(0) for pair, group in groups.items()}


def _nearest(means: Mapping[tuple[str, str], Tensor], drawn: Tensor) -> tuple[str, str]:
    return min(means, key=lambda pair: float((drawn - means[pair]).square().sum()))


def _crossed(samples: Sequence[Sample], index: int) -> int:
    """Return the index of a sample with the other position and the other colour. Raises PlaitError where there is none."""
    labels = samples[index]["fields"]
    for step in range(len(samples)):
        partner = (index + step) % len(samples)
        if all(samples[partner]["fields"][name] != labels[name] for name in LABELS):
            return partner
    raise PlaitError(f"bench toy needs both positions and both colours among its {len(samples)} samples: raise evaluate.samples")


def summarise_toy(rows: Rows) -> dict[str, float]:
    """Return the share of right classes by variant: position for `text`, colour for `image`, both for `both` and `crossed`."""
    return {name: _mean([float(row["right"][name]) for row in rows]) for name in ("both", "text", "image", "crossed")}


def predict_grid(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Generate a picture per sample from its own conditions and write it as PNG; a row holds `picture` (path), `caption` and `size`."""
    show, rows = pictures.decoder(inputs, next(model.parameters()).device), {}
    sampling: Sampling = inputs.config.sampling
    for part in _batches(samples, inputs, batch):
        drawn = show(draw(model, inputs, part.requests(part.conditions), sampling))
        for index, picture in zip(part.indices, drawn, strict=True):
            sample = samples[index]
            name = pictures.file_name(sample["id"])
            row = {"id": sample["id"], "caption": caption(sample), "size": f"{picture.shape[1]}x{picture.shape[0]}"}
            path = inputs.pictures_folder(moment) / f"{name}.png"
            pictures.write(path, picture, {**row, "sampling": sampling.model_dump()})
            rows[index] = {**row, "picture": str(path)}
    return _in_order(rows)


def _distance_needs(config: Config) -> list[str]:
    """Return the names of the extractor of features, and of what decodes latents."""
    return [config.sampling.extractor, *pictures.decoder_name(config)]


def predict_distance(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Return feature vectors of each held-out picture (`real`) and of the one generated by its conditions (`drawn`), to compare sets."""
    device = next(model.parameters()).device
    show, sampling = pictures.decoder(inputs, device), inputs.config.sampling
    extractor, rows = encoders.open_images(sampling.extractor, str(device)), {}
    for part in _batches(samples, inputs, batch):
        pair = (part.x0, draw(model, inputs, part.requests(part.conditions), sampling))
        real, drawn = (extractor.encode(torch.tensor(np.stack(show(latents))).permute(0, 3, 1, 2)).tolist() for latents in pair)
        for row, index in enumerate(part.indices):
            rows[index] = {"id": samples[index]["id"], "extractor": sampling.extractor, "real": real[row], "drawn": drawn[row]}
    return _in_order(rows)


def summarise_distance(rows: Rows) -> dict[str, float]:
    """Return `kernel` (CMMD's distance) between generated and held-out pictures, and `frechet` (FID's formula); 0 for equal sets.

    `frechet` only of more samples than there are features: the covariance of fewer is singular, and the distance says how many there were.
    Raises PlaitError for fewer samples than a kernel distance needs.
    """
    if len(rows) < _FEWEST:
        raise PlaitError(
            f"bench distance compares sets, and {len(rows)} samples are too few for one: raise evaluate.samples to {_FEWEST} or more, and "
            f"for frechet to more than the features of {rows[0]['extractor'] if rows else 'its extractor'}"
        )
    real, drawn = (np.array([row[name] for row in rows]) for name in ("real", "drawn"))
    enough = len(rows) > real.shape[1]
    return {"kernel": distances.kernel(real, drawn), **({"frechet": distances.frechet(real, drawn)} if enough else {})}


def about_distance(rows: Rows) -> dict[str, str]:
    """Return which features are compared, and whether there are samples enough for `frechet`."""
    width = len(rows[0]["real"])
    few = "" if len(rows) > width else f"; no frechet: it needs more than {width} samples, and these are {len(rows)}"
    return {"features": f"{width} of {rows[0]['extractor']}{few}"}


def summarise_grid(rows: Rows) -> dict[str, float]:
    """Count the pictures of each size, as {"pictures/512x512": 8.0}; the pictures themselves are the bench's result."""
    sizes: dict[str, float] = defaultdict(float)
    for row in rows:
        sizes[f"pictures/{row['size']}"] += 1
    return dict(sizes)


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the RMS of the difference over the RMS of the two."""
    scale = ((a.square().mean() + b.square().mean()) / 2).sqrt()
    return float((a - b).square().mean().sqrt() / scale.clamp(min=1e-12))


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _of_usable(predict: Predict) -> Predict:
    """Return `predict` for samples of which some cannot be prepared: those get a row with the reason, the others are predicted."""

    def predict_usable(model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str = "latest") -> list[Row]:
        unread = {position: reason for position, sample in enumerate(samples) if (reason := _fault(sample, inputs)) is not None}
        usable = [sample for position, sample in enumerate(samples) if position not in unread]
        rows = iter(predict(model, usable, inputs, batch=batch, moment=moment) if usable else [])
        bad = {position: {"id": samples[position]["id"], "bad": reason, "unread": True} for position, reason in unread.items()}
        return [bad[position] if position in bad else next(rows) for position in range(len(samples))]

    return predict_usable


def _fault(sample: Sample, inputs: Inputs) -> str | None:
    """Return why a sample cannot be prepared, else None."""
    try:
        with sample_errors:
            inputs.clean(sample)
            inputs.conditions(sample)
    except BadSample as error:
        return str(error)
    return None


benches = {
    "validation": Bench(_of_usable(predict_validation), summarise_validation, means=True),
    "edit": Bench(_of_usable(_exchange("text")), summarise_exchange, means=True),
    "swap": Bench(_of_usable(_exchange("image")), summarise_exchange, means=True),
    "divergence": Bench(_of_usable(predict_divergence), summarise_divergence, means=True),
    "toy": Bench(_of_usable(predict_toy), summarise_toy),
    "distance": Bench(_of_usable(predict_distance), summarise_distance, needs=_distance_needs, about=about_distance),
    "grid": Bench(_of_usable(predict_grid), summarise_grid, pictures.grids, needs=pictures.decoder_name),
}
