"""What a checkpoint keeps of the model's work on the probe samples, so that `plait upgrade-check` can name what libraries changed.

A block is a module that is sharded and compiled by itself, such as a transformer layer; a component is a part of the model that trains or
stays frozen as a whole. Numbers are of the weights that are saved.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from plait.engine.loss import StepBatch
from plait.engine.parallel.distributed import full_tensor


def measure(
    loss: Callable[[], float | None], batches: Sequence[StepBatch], modules: Mapping[str, nn.Module]
) -> tuple[float | None, dict[str, dict[str, Any]]]:
    """Return what `loss` returns, and what the checkpoint keeps of its forward pass.

    That is `inputs`, a hash of each tensor of the `batches` by name, and `blocks`, the root mean square of what each of the `modules` put
    out, by its name and in the order of the forward pass.
    """
    with _outputs(modules) as blocks:
        value = loss()
    return value, {"inputs": _inputs(batches), "blocks": blocks}


def named(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return a model's blocks by their names."""
    wanted = {id(block) for block in blocks}
    return {name: module for name, module in model.named_modules() if id(module) in wanted}


def frozen(
    components: Mapping[str, Collection[str]], hashes: Mapping[str, str], ever_trained: set[str], former: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return one hash of each component's weights as built, but for those `ever_trained`.

    `components`: names of parameters by component; `hashes`: of each parameter; `former`: {name now: name under which it is hashed}.
    """
    found = {}
    for component, names in components.items():
        values = {(former or {}).get(name, name): hashes[name] for name in names if name not in ever_trained}
        if values:
            found[component] = xxhash.xxh3_64_hexdigest("".join(f"{name}={value}\n" for name, value in sorted(values.items())).encode())
    return found


def _inputs(batches: Sequence[StepBatch]) -> dict[str, str]:
    """Return a hash of each tensor and list of numbers of the batches, by name; dicts say where in those something is."""
    hashes: dict[str, xxhash.xxh3_64] = {}
    for batch in (micro.batch for step in batches for micro in step.micro):
        for name, given in ((name, value) for name, value in batch.items() if not isinstance(value, dict)):
            value = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.int64)
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            hashes.setdefault(name, xxhash.xxh3_64()).update(f"{value.dtype}{tuple(value.shape)}".encode() + content)
    return {name: hashed.hexdigest() for name, hashed in sorted(hashes.items())}


@contextlib.contextmanager
def _outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Yield a dict that holds, after the block, the root mean square of what each module put out in it, in the order of first calls."""
    squares: dict[str, tuple[Tensor, int]] = {}
    found: dict[str, float] = {}

    def listen(name: str, output: Any) -> None:
        value = next((part for part in (output if isinstance(output, tuple | list) else [output]) if isinstance(part, Tensor)), None)
        if value is not None and value.numel():
            before, count = squares.get(name, (torch.zeros((), dtype=torch.float64, device=value.device), 0))
            squares[name] = (before + full_tensor(value.detach()).float().square().sum(dtype=torch.float64), count + value.numel())

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            handle = module.register_forward_hook(lambda module, given, output, name=name: listen(name, output))
            hooks.callback(handle.remove)
        yield found
    if squares:
        values = torch.stack([total for total, _ in squares.values()]).tolist()  # one wait for the device
        found.update({name: (value / squares[name][1]) ** 0.5 for name, value in zip(squares, values, strict=True)})
