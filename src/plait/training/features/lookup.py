"""Look up the stored features of a batch's pictures, in data workers.

A key is a hash of exactly what the encoder would be given (uint8, after all preprocessing and augmentation), its shape, and whether it
would be encoded with others, or with how many: the same picture otherwise prepared has another key, and never another picture's features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from plait.families.frozen import FrozenEncoder
from plait.families.signatures import Inputs
from plait.training.features.store import FeatureStore


class StoredInputs:
    """The family's `inputs`, whose batches also hold what each of `stores` has: (keys, values or None, alike), under `found_in(encoder)`.

    `stores`: for each encoder by name. `alike`: whether on this device one picture is taken to give the same features to the bit in any
    batch of two or more; a store says where that does not hold.
    """

    def __init__(self, inputs: Inputs, encoders: Sequence[FrozenEncoder], stores: Mapping[str, FeatureStore], *, alike: bool) -> None:
        self.inputs, self.encoders, self.stores, self.alike = inputs, list(encoders), dict(stores), alike

    def encode(self, sample: dict[str, Any], key: int) -> Any:
        """Return what `Inputs.encode` of the family returns, and raise what it raises."""
        return self.inputs.encode(sample, key)

    def collate(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return the family's batch with the stored features, as host tensors, and the number of pictures that have none."""
        batch = self.inputs.collate(examples)
        for encoder in self.encoders:
            if self.stores[encoder.name].stopped:
                continue
            alike = self.alike and not self.stores[encoder.name].is_by_number()
            keys = keys_of(encoder.pictures(batch), alike=alike)
            values = self.stores[encoder.name].read(keys)
            batch[found_in(encoder)] = (keys, values, alike)
            batch[f"{encoder.name}.missing"] = torch.empty(sum(value is None for value in values))  # its shape tells what is computed
        return batch


def found_in(encoder: FrozenEncoder) -> str:
    """Return the name of a batch's entry that holds the keys of an encoder's pictures, and what is stored of them."""
    return f"{encoder.name}.found"


def keys_of(pictures: Sequence[Tensor], *, alike: bool) -> list[bytes]:
    """Return 16 bytes for each uint8 tensor. Of equal pictures they differ where these are encoded in batches that may round otherwise."""
    shapes = [picture.shape for picture in pictures]
    together = [str(min(shapes.count(shape), 2)) if alike else f"of {shapes.count(shape)}" for shape in shapes]
    return [_key(picture, f"{tuple(picture.shape)} {number}") for picture, number in zip(pictures, together, strict=True)]


def _key(picture: Tensor, circumstances: str) -> bytes:
    digest = xxhash.xxh3_128(circumstances.encode())
    digest.update(picture.contiguous().view(-1).numpy().data)
    return digest.digest()


def groups(pictures: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of the pictures of each shape: those that are encoded at once."""
    by_shape: dict[torch.Size, list[int]] = {}
    for i, picture in enumerate(pictures):
        by_shape.setdefault(picture.shape, []).append(i)
    return list(by_shape.values())
