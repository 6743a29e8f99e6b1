"""Read weights from folders of safetensors outside of a run, or only their shapes."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from plait.errors import PlaitError

_CONVERT = (
    "import torch; from safetensors.torch import save_file; save_file(torch.load({0!r}, weights_only=True, map_location='cpu'), {1!r})"
)


def read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's safetensors by name. Raises PlaitError for a folder without any, and for a damaged file."""
    return _collect(folder, load_file)


def empty(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's safetensors by name as meta tensors: shapes without values. Raises PlaitError as `read` does."""
    return _collect(folder, _empty)


def _collect(folder: Path, load: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    parts = sorted(folder.glob("*.safetensors"))
    pickled = next(iter(sorted([*folder.glob("*.pt"), *folder.glob("*.bin")])), None)
    if not parts and pickled is not None:
        convert = _CONVERT.format(str(pickled), str(pickled.with_suffix(".safetensors")))
        raise PlaitError(
            f"from: {pickled} is a pickle, which can run code and is not read; convert it once: python -c {shlex.quote(convert)}"
        )
    if not parts:
        raise PlaitError(f"from: {folder} is neither a run nor a folder with safetensors weights")
    try:
        return {name: value for part in parts for name, value in load(part).items()}
    except SafetensorError as error:
        raise PlaitError(f"from: a file of {folder} is damaged: {error}") from error


def _empty(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
