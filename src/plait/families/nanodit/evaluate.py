"""Benches, all from fixed noise and none with anything to download: held-out loss by t, what each condition does, and pictures.

`validation`: loss at fixed t, and how well one step restores the sample. `edit`, `swap`: another caption, or another image, from the same
noise. `divergence`: text alone against image alone. `toy`: two-colour pictures with exact labels. `grid`: pictures per size.
`distance`: drawn and held-out pictures as sets.
Samples of one size form a batch; partners are looked for among the samples of one rank.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.engine.evaluation import Bench, Row
from plait.errors import PlaitError
from plait.families.nanodit import distances, flow, pictures
from plait.families.nanodit.config import Sampling
from plait.families.nanodit.inputs import Conditions, Inputs, Sample, caption, noise
from plait.families.nanodit.model import NanoDiT
from plait.families.nanodit.sampler import Request, draw
from plait.keys import key
from plait.nn import encoders

Rows = Sequence[Mapping[str, Any]]

T_FIXED = (0.1, 0.3, 0.5, 0.7, 0.9)
_RESTORED_FROM = 0.5
ALONE_TEXT, ALONE_IMAGE = 4.0, 2.0
"""Scales of the divergence test: text (4, 0), image (0, 2)."""
_FEWEST = 4  # samples of a set
LABELS = ("position", "colour")
"""Fields of a two-colour sample: set by the text, and by the reference image."""


@dataclass(frozen=True)
class _Portion:
    """Samples of one size: where they stand in the bench's list, their clean latents and their conditions."""

    places: list[int]
    x0: Tensor
    conditions: list[Conditions]
    keys: list[int]

    def requests(self, conditions: Sequence[Conditions]) -> list[Request]:
        channels, high, wide = self.x0.shape[1:]
        return [Request(shown, (channels, high, wide), one) for shown, one in zip(conditions, self.keys, strict=True)]


def _portions(samples: Sequence[Sample], inputs: Inputs, batch: int) -> Iterator[_Portion]:
    sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    clean = [inputs.clean(sample) for sample in samples]
    for place, x0 in enumerate(clean):
        sizes[tuple(x0.shape)].append(place)
    for places in sizes.values():
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            keys = [key("bench", samples[place]["id"]) for place in part]
            yield _Portion(part, torch.stack([clean[place] for place in part]), [inputs.conditions(samples[place]) for place in part], keys)


def _placed(found: Mapping[int, Row]) -> list[Row]:
    return [found[place] for place in sorted(found)]


@torch.no_grad()
def predict_validation(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Per sample: the loss at each fixed t, and the error of x0 restored in one step from half noise, over x0's mean square."""
    device, found = next(model.parameters()).device, {}
    for part in _portions(samples, inputs, batch):
        x0 = part.x0.to(device)
        noises = torch.stack([noise(x0.shape[1:], one) for one in part.keys]).to(device)
        conditions = {name: value.to(device) for name, value in inputs.pack(part.conditions).items()}
        errors = []
        for t in T_FIXED:
            at = torch.full((len(x0),), t, device=device)
            z = flow.interpolate(x0, noises, at)
            v = flow.velocity(model({**conditions, "z": z, "t": at}).float(), z, at, inputs.config.prediction)
            errors.append((v - (noises - x0)).square().flatten(1).mean(1))
            if t == _RESTORED_FROM:
                restored = (z - t * v - x0).square().flatten(1).sum(1) / x0.square().flatten(1).sum(1)
        for row, place in enumerate(part.places):
            losses = [float(error[row]) for error in errors]
            found[place] = {"id": samples[place]["id"], "losses": losses, "restored": float(restored[row])}
    return _placed(found)


def summarise_validation(rows: Rows) -> dict[str, float]:
    """loss, loss at each t, and `reconstruction`: the restored samples' relative squared error."""
    by_t = {f"loss/t_{t:g}": _mean([row["losses"][place] for row in rows]) for place, t in enumerate(T_FIXED)}
    return {"loss": _mean(list(by_t.values())), **by_t, "reconstruction": _mean([row["restored"] for row in rows])}


def _exchange(what: str) -> Callable[..., list[Row]]:
    """A bench that draws each sample thrice from one noise: as it is, with the partner's text (or image), and with all of the partner's."""

    def predict(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
        if what == "image" and not inputs.config.image_dim:
            raise PlaitError("bench swap exchanges reference images, but model.image_dim is 0")
        every, found = [inputs.conditions(sample) for sample in samples], {}
        for part in _portions(samples, inputs, batch):
            partners = [_partner(samples, every, place, what) for place in part.places]
            theirs = [every[partner] for partner in partners]
            mixed = [
                Conditions(their.text, own.image) if what == "text" else Conditions(own.text, their.image)
                for own, their in zip(part.conditions, theirs, strict=True)
            ]
            shown = [draw(model, inputs, part.requests(one), inputs.config.sampling) for one in (part.conditions, mixed, theirs)]
            for row, place in enumerate(part.places):
                own, changed, other = (one[row] for one in shown)
                said = {"id": samples[place]["id"], "partner": samples[partners[row]]["id"]}
                found[place] = {**said, "change": _distance(changed, own), "toward": _cosine(changed - own, other - own)}
        return _placed(found)

    return predict


def _partner(samples: Sequence[Sample], every: Sequence[Conditions], place: int, what: str) -> int:
    """A sample far away in the list that shows something else; the same one every time."""
    for step in range(len(samples)):
        other = (place + len(samples) // 2 + step) % len(samples)
        mine, theirs = (getattr(every[one], what) for one in (place, other))
        if theirs is not None and (mine is None or mine.shape != theirs.shape or not torch.equal(mine, theirs)):
            return other
    raise PlaitError(f"no two of {len(samples)} samples differ in their {what}: raise evaluate.samples")


def summarise_exchange(rows: Rows) -> dict[str, float]:
    """change: RMS distance over the samples' RMS. toward: cosine of that change with the way to the partner's own picture."""
    return {"change": _mean([row["change"] for row in rows]), "toward": _mean([row["toward"] for row in rows])}


def predict_divergence(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Text alone (4, 0), image alone (0, 2) and both, from one noise."""
    if not inputs.config.image_dim:
        raise PlaitError("bench divergence sets text against image, but model.image_dim is 0")
    sampling = inputs.config.sampling.model_copy(update={"guidance": "two_scale", "interval": (0.0, 1.0)})
    text = sampling.model_copy(update={"text_scale": ALONE_TEXT, "image_scale": 0.0})
    image = sampling.model_copy(update={"text_scale": 0.0, "image_scale": ALONE_IMAGE})
    found = {}
    for part in _portions(samples, inputs, batch):
        ways = [draw(model, inputs, part.requests(part.conditions), one) for one in (text, image, sampling)]
        for row, place in enumerate(part.places):
            by_text, by_image, by_both = (one[row] for one in ways)
            gap, to_text, to_image = _distance(by_text, by_image), _distance(by_both, by_text), _distance(by_both, by_image)
            found[place] = {"id": samples[place]["id"], "divergence": gap, "dominance": to_text / max(to_text + to_image, 1e-12)}
    return _placed(found)


def summarise_divergence(rows: Rows) -> dict[str, float]:
    """divergence: 0 where the conditions say nothing, 1.41 for unrelated samples. dominance: 0 text decides alone, 1 the image does."""
    return {name: _mean([row[name] for row in rows]) for name in ("divergence", "dominance")}


def predict_toy(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Two-colour samples drawn by both conditions, by each alone, and with text and image of samples with other labels."""
    missing = [sample["id"] for sample in samples if not set(LABELS) <= sample["fields"].keys()]
    if missing:
        raise PlaitError(f"bench toy judges fields {' and '.join(LABELS)}, which sample {missing[0]} has not")
    means = _prototypes(samples, inputs)
    found: dict[int, Row] = {}
    for part in _portions(samples, inputs, batch):
        partners = [_crossed(samples, place) for place in part.places]
        crossed = [Conditions(own.text, inputs.conditions(samples[one]).image) for own, one in zip(part.conditions, partners, strict=True)]
        ways = {
            "both": part.conditions,
            "text": [one.only(text=True, image=False) for one in part.conditions],
            "image": [one.only(text=False, image=True) for one in part.conditions],
            "crossed": crossed,
        }
        drawn = {way: draw(model, inputs, part.requests(shown), inputs.config.sampling).cpu() for way, shown in ways.items()}
        for row, (place, partner) in enumerate(zip(part.places, partners, strict=True)):
            own, other = samples[place]["fields"], samples[partner]["fields"]
            seen = {way: _nearest(means, drawn[way][row]) for way in ways}
            right = {
                "both": seen["both"] == (own["position"], own["colour"]),
                "text": seen["text"][0] == own["position"],
                "image": seen["image"][1] == own["colour"],
                "crossed": seen["crossed"] == (own["position"], other["colour"]),
            }
            said = {"question": caption(samples[place]), "answer": " ".join(seen["both"]), "gold": f"{own['position']} {own['colour']}"}
            found[place] = {"id": samples[place]["id"], **said, "correct": right["both"], "right": right}
    return _placed(found)


def _prototypes(samples: Sequence[Sample], inputs: Inputs) -> dict[tuple[str, str], Tensor]:
    """The mean clean sample of each pair of labels: what a drawn one is compared with."""
    groups: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for sample in samples:
        groups[sample["fields"]["position"], sample["fields"]["colour"]].append(inputs.clean(sample))
    wanted = list(product(*(sorted({sample["fields"][name] for sample in samples}) for name in LABELS)))
    if lacking := [pair for pair in wanted if pair not in groups]:
        raise PlaitError(f"bench toy needs a sample of every pair of labels; none is {' '.join(lacking[0])}: raise evaluate.samples")
    return {pair: torch.stack(group).mean(0) for pair, group in groups.items()}


def _nearest(means: Mapping[tuple[str, str], Tensor], drawn: Tensor) -> tuple[str, str]:
    return min(means, key=lambda pair: float((drawn - means[pair]).square().sum()))


def _crossed(samples: Sequence[Sample], place: int) -> int:
    """A sample with the other position and the other colour."""
    own = samples[place]["fields"]
    for step in range(len(samples)):
        other = (place + step) % len(samples)
        if all(samples[other]["fields"][name] != own[name] for name in LABELS):
            return other
    raise PlaitError(f"bench toy needs both positions and both colours among its {len(samples)} samples: raise evaluate.samples")


def summarise_toy(rows: Rows) -> dict[str, float]:
    """Shares of right pictures: `text` judges the position, `image` the colour, `both` and `crossed` the two together."""
    return {name: _mean([float(row["right"][name]) for row in rows]) for name in ("both", "text", "image", "crossed")}


def predict_grid(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """A picture per sample from its own conditions, written to `inputs.pictures`; the row tells where."""
    show, found = pictures.decoder(inputs, next(model.parameters()).device), {}
    sampling: Sampling = inputs.config.sampling
    for part in _portions(samples, inputs, batch):
        drawn = show(draw(model, inputs, part.requests(part.conditions), sampling))
        for place, picture in zip(part.places, drawn, strict=True):
            name = pictures.file_name(samples[place]["id"])
            said = {"id": samples[place]["id"], "caption": caption(samples[place]), "size": f"{picture.shape[1]}x{picture.shape[0]}"}
            path = inputs.pictures_folder(moment) / f"{name}.png"
            pictures.write(path, picture, {**said, "sampling": sampling.model_dump()})
            found[place] = {**said, "picture": str(path)}
    return _placed(found)


def predict_distance(model: NanoDiT, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "latest") -> list[Row]:
    """Features of each held-out picture (its clean latents, decoded) and of the one drawn from its conditions."""
    device = next(model.parameters()).device
    show, sampling = pictures.decoder(inputs, device), inputs.config.sampling
    look, found = encoders.open_images(sampling.extractor, str(device)), {}
    for part in _portions(samples, inputs, batch):
        pair = (part.x0, draw(model, inputs, part.requests(part.conditions), sampling))
        real, drawn = (look.encode(torch.tensor(np.stack(show(one))).permute(0, 3, 1, 2)).tolist() for one in pair)
        for row, place in enumerate(part.places):
            found[place] = {"id": samples[place]["id"], "real": real[row], "drawn": drawn[row]}
    return _placed(found)


def summarise_distance(rows: Rows) -> dict[str, float]:
    """`frechet` (FID's formula) and `kernel` (CMMD's) between drawn and held-out pictures; 0 is the same."""
    real, drawn = (np.array([row[name] for row in rows]) for name in ("real", "drawn"))
    if len(rows) < _FEWEST:
        raise PlaitError(f"bench distance compares sets, and {len(rows)} samples are none: raise evaluate.samples")
    return {"frechet": distances.frechet(real, drawn), "kernel": distances.kernel(real, drawn)}


def summarise_grid(rows: Rows) -> dict[str, float]:
    """How many pictures of each size."""
    sizes: dict[str, float] = defaultdict(float)
    for row in rows:
        sizes[f"pictures/{row['size']}"] += 1
    return dict(sizes)


def _distance(a: Tensor, b: Tensor) -> float:
    """RMS of the difference over the RMS of the two."""
    scale = ((a.square().mean() + b.square().mean()) / 2).sqrt()
    return float((a - b).square().mean().sqrt() / scale.clamp(min=1e-12))


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


benches = {
    "validation": Bench(predict_validation, summarise_validation),
    "edit": Bench(_exchange("text"), summarise_exchange),
    "swap": Bench(_exchange("image"), summarise_exchange),
    "divergence": Bench(predict_divergence, summarise_divergence),
    "toy": Bench(predict_toy, summarise_toy),
    "distance": Bench(predict_distance, summarise_distance),
    "grid": Bench(predict_grid, summarise_grid, pictures.grids),
}
