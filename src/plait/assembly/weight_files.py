"""Read weights from folders outside of a run: safetensors, or the state_dict `model.pt` that torch.save wrote; or only their shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from plait.errors import PlaitError

_PICKLED = "model.pt"


def read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's files of weights by name. Raises PlaitError for a folder without any."""
    return _collect(folder, load_file, lambda path: _pickled(path, mmap=False))


def empty(folder: Path) -> dict[str, Tensor]:
    """Return the same tensors without values, on the meta device; reads no weights. Raises PlaitError for a folder without any."""
    return _collect(folder, _empty, lambda path: {name: value.to("meta") for name, value in _pickled(path, mmap=True).items()})


def _collect(folder: Path, of_safetensors: Callable[[Path], Any], of_pickled: Callable[[Path], Any]) -> dict[str, Tensor]:
    parts = sorted(folder.glob("*.safetensors"))
    if not parts and (folder / _PICKLED).is_file():
        return dict(of_pickled(folder / _PICKLED))
    if not parts:
        raise PlaitError(f"from: {folder} is neither a run nor a folder with safetensors weights or a {_PICKLED}")
    return {name: value for part in parts for name, value in of_safetensors(part).items()}


def _empty(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PlaitError(f"from: {path} is damaged: {error}") from error


def _pickled(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    """Return the tensors of a state_dict that torch.save wrote. Raises PlaitError for any other content."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise PlaitError(f"from: {path} is no file of weights alone: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise PlaitError(f"from: {path} is no state_dict, which maps names to tensors")
    return content
