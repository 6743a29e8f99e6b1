"""Complete a batch with the features of its pictures: stored ones as they were read, the others encoded now, stored, and timed.

Features are to equal those that training without a store computes, to the bit. How they round may depend on how many are encoded at once:
on a CPU on whether a picture is alone, of some convolutions and on a GPU on the number. So a missing one is encoded in such company, its
key tells which, and each batch that is larger than those before shows whether that holds; an encoder with other features among others
(such as one with dropout) is not stored.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.frozen import FrozenEncoder
from plait.training.features.lookup import found_in, groups, keys_of
from plait.training.features.store import FeatureStore

log = logging.getLogger(__name__)

_TRIED_BATCHES = 4  # of which the fastest counts
_WORTH = 0.8  # keeping features is to take less than this share of the time that it saves


@dataclass
class Times:
    """Seconds per picture of each thing that was done in the batches tried: the least, and how many batches there were."""

    least: dict[str, float] = field(default_factory=dict)
    batches: int = 0

    def note(self, name: str, seconds: float, pictures: int) -> None:
        """Note that `pictures` took so long."""
        self.least[name] = min(self.least.get(name, float("inf")), seconds / pictures)


class StoredEncoder:
    """One encoder of `model` with its store. `use` is whether it is stored, as far as is known; `tries`: whether its times decide that.

    `alike`: as in lookup.py; `repeats`: share of the pictures to come that come again.
    """

    def __init__(
        self,
        encoder: FrozenEncoder,
        model: nn.Module,
        store: FeatureStore,
        *,
        device: torch.device,
        alike: bool,
        tries: bool,
        repeats: float,
    ) -> None:
        self.encoder, self.model, self.store = encoder, model, store
        self.device, self.alike, self.tries, self.repeats = device, alike, tries, repeats
        self.use, self.checked, self.times = True, 0, Times()
        self.read = self.seen = 0

    def complete(self, batch: dict[str, Any]) -> None:
        """Put the features of all pictures of `batch` (on the device) into it, unless there are none or they are not stored."""
        keys, values, alike = batch.pop(found_in(self.encoder), ([], [], True))
        batch.pop(f"{self.encoder.name}.missing", None)
        if not keys or not self.use:
            return
        pictures = self.encoder.pictures(batch) if self.alike or self.tries or None in values else []
        if alike != self._alike():  # found since the batch was looked up
            keys = keys_of(pictures, alike=self._alike())
            values, alike = self.store.read(keys), self._alike()
        missing = [i for i, value in enumerate(values) if value is None]
        self.seen, self.read = self.seen + len(keys), self.read + len(keys) - len(missing)
        features = {i: value.to(self.device, non_blocking=True) for i, value in enumerate(values) if value is not None}
        for group in groups(pictures):
            larger = self._alike() and len(group) > self.checked
            features |= self._encoded(pictures, group, group if self.tries or larger else [i for i in group if i not in features])
        batch[self.encoder.name] = torch.cat([features[i] for i in range(len(keys))])
        if alike != self._alike():
            keys, missing = keys_of(pictures, alike=self._alike()), [*range(len(keys))]
        self._keep([keys[i] for i in missing], [features[i] for i in missing])
        if self.tries:
            self.times.batches += 1
            if self.times.batches == _TRIED_BATCHES:
                self._decide(keys)

    def _alike(self) -> bool:
        """Return whether a picture's features are taken to be the same in any batch of two or more."""
        return self.alike and not self.store.is_by_number()

    def _encoded(self, pictures: Sequence[Tensor], group: Sequence[int], missing: Sequence[int]) -> dict[int, Tensor]:
        """Encode the missing pictures of a group of one shape, among as many as their keys say; returns {index: features}."""
        if not missing:
            return {}
        chosen, alike = [*missing], self._alike()
        if not alike:
            chosen = [*group]
        elif len(missing) == 1 and len(group) > 1:
            chosen += [next(i for i in group if i != missing[0])]
        inputs = torch.stack([pictures[i] for i in chosen])
        features, seconds = self._timed(lambda: self._encode(inputs))
        self.times.note("encode", seconds, len(chosen))
        if not self.checked or (alike and len(chosen) > self.checked):
            self._check(inputs, features, alike=alike)
        encoded = dict(zip(chosen, features, strict=True))
        return {i: encoded[i] for i in missing}

    @torch.no_grad()
    def _encode(self, inputs: Tensor) -> Tensor:
        return self.encoder.encode(self.model, inputs)

    def _check(self, inputs: Tensor, features: Tensor, *, alike: bool) -> None:
        """Encode the last two pictures by themselves, and where that differs in a bit all in another order; say what is kept then.

        Of an encoder whose features differ in another order too, nothing is stored. `alike`: whether the first is to be tried.
        """
        self.checked = len(inputs)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            two = self._encode(inputs[-2:]) if alike else features[-2:]
            if alike and torch.equal(two, features[-2:]):
                return
            same = torch.equal(self._encode(inputs.flip(0)), features.flip(0))
        if not same:
            self._stop("a picture's features depend on the others in its batch, or are drawn: they cannot be kept")
        elif alike:
            self.store.keep_by_number()
            apart = float((two - features[-2:]).abs().max())
            log.info(
                f"  {self.encoder.name}: among {len(inputs)} pictures features round otherwise than among 2, by up to {apart:.1e}: they "
                "are kept by the number of pictures that are encoded at once"
            )

    def _keep(self, keys: list[bytes], values: list[Tensor]) -> None:
        """Store new features under their keys."""
        if keys and self.use:
            _, seconds = self._timed(lambda: self.store.add(keys, [value.cpu() for value in values]))
            self.times.note("store", seconds, len(keys))

    def _decide(self, keys: list[bytes]) -> None:
        """Stop where storing and reading takes longer than encoding what comes again. `keys`: of the newest pictures, which are read."""
        self.tries = False
        pending = len(self.store.pending)
        if pending:
            _, seconds = self._timed(lambda: self.store.flush(wait=True))
            self.times.least["store"] = self.times.least.get("store", 0.0) + seconds / pending
        self.store.drop_pages()
        read, seconds = self._timed(lambda: self.store.read(keys))
        self.times.note("read", seconds, len(keys))
        encode, store, fetch = (self.times.least.get(name, 0.0) for name in ("encode", "store", "read"))
        again = max(self.repeats, self.read / self.seen)
        shown = f"a picture takes {encode * 1e3:.3g} ms to encode, {store * 1e3:.3g} ms to store and {fetch * 1e3:.3g} ms to read"
        if any(value is None for value in read) or (1 - again) * store + again * fetch > _WORTH * again * encode:
            self._stop(f"{shown}, and {100 * again:.0f} % come again: it is encoded each time")
        else:
            log.info(f"  {self.encoder.name}: {shown}: its features are kept")

    def _stop(self, reason: str) -> None:
        self.use = self.tries = False
        self.store.stopped = True
        log.info(f"  {self.encoder.name}: {reason}")

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """Return what `work` returned, and the seconds that it took; while nothing is tried, without waiting for the device."""
        began = time.perf_counter()
        value = work()
        if self.tries and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return value, time.perf_counter() - began


class StoredLoss(contract.Loss):
    """The family's `loss`, given batches that hold the features of frozen encoders in place of pictures."""

    def __init__(self, loss: contract.Loss, encoders: Sequence[StoredEncoder]) -> None:
        self.loss, self.encoders = loss, list(encoders)
        self.coefficients, self.counts, self.may_idle, self.amounts = loss.coefficients, loss.counts, loss.may_idle, loss.amounts

    def weights(self, batch: Batch) -> Any:
        """Return what the family's loss returns."""
        return contract.weights_of(self.loss, batch)

    def by_sample(self, batch: Batch) -> Any:
        """Return what the family's loss returns."""
        return self.loss.by_sample(batch)

    def sums(self, model: nn.Module, batch: Batch) -> Any:
        """Complete the batch with features, and return what the family's loss makes of it."""
        completed = dict(batch)
        for encoder in self.encoders:
            encoder.complete(completed)
        return contract.sums_of(self.loss, model, completed)
