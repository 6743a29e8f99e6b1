"""Place saved weights on the parameters of a model, full or sharded over ranks."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from plait.engine.parallel.distributed import StoredTensor, full_tensor, local, reshard_like
from plait.errors import PlaitError


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, StoredTensor], *, mapped: bool = False) -> None:
    """Copy saved weights, in float32, onto the parameters of their names. Raises PlaitError for an unknown name or another shape.

    `mapped`: parameters lie in the memory of whole tensors, uncopied.
    """
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in parameters:
            raise PlaitError(f"the checkpoint holds {name!r}, which this model has not; is `model:` the one it was trained with?")
        if parameters[name].shape != value.shape:
            raise PlaitError(
                f"{name!r} is {tuple(value.shape)} in the checkpoint and {tuple(parameters[name].shape)} in the model; "
                "their `model:` sections differ"
            )
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            local(parameter).copy_(local(reshard_like(value, parameter)))
        else:
            parameter.data = full_tensor(value).to(device=parameter.device, dtype=torch.float32, copy=not mapped)
