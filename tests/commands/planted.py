"""Faults planted on purpose, for `plait prove` to find: imported by its launcher, active in runs whose path names them."""

import sys

import torch

from plait.engine.state import State
from plait.families.theworld.inputs import Inputs

encode, tensors = Inputs.encode, State.tensors


def unkeyed(self, sample, key):
    """Training pictures a little brighter by the ambient generator, as a careless augmentation makes them."""
    example = encode(self, sample, key)
    if self.train and "unkeyed" in " ".join(sys.argv):
        example.pixels.add_(int(torch.randint(1, 50, ())))
    return example


def forgetful(self):
    """A state whose checkpoint lacks the moments of one parameter."""
    found = tensors(self)
    if "forgetful" in " ".join(sys.argv):
        lost = min(found["weights"])
        found["moments"] = {name: value for name, value in found["moments"].items() if not name.startswith(f"{lost}.")}
    return found


Inputs.encode, State.tensors = unkeyed, forgetful
