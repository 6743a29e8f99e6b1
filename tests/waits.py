"""Operators that make the host wait for the device, counted on a CPU: by their names, as a GPU's kernels would have to end before them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_READ = {
    _ATEN._local_scalar_dense,  # item, tolist, bool, float, int
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN.masked_scatter_backward,  # selects by the mask
    _ATEN.equal,
    _ATEN.lift_fresh,  # a tensor of values of Python, which are copied to the device from pageable memory
    _ATEN._unique2,
    _ATEN.unique_dim,
    _ATEN.unique_consecutive,
}
_INDEXING = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index, _ATEN._unsafe_index_put}


class Waits(TorchDispatchMode):
    """Context manager: lists the operators inside it that a host would wait for, forward and backward."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket
        masks = name in _INDEXING and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        sized = name is _ATEN.repeat_interleave and (kwargs or {}).get("output_size") is None
        if name in _READ or masks or sized:
            self.found.append(str(name))
        return func(*args, **(kwargs or {}))
