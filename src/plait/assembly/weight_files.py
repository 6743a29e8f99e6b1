"""Read weights from folders of safetensors outside of a run, or only their shapes. Weights without some of their files are refused.

A model in several files has them as NAME-00001-of-00003.safetensors, and often an index beside them that lists the file of each tensor.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from plait import files
from plait.engine.checkpoints.checkpoint import size_fault
from plait.errors import PlaitError, first_names

PASSPORT = "passport.json"
"""In a folder that plait wrote: what the run was, and the hash of each file (commands/actions/passport/)."""
LIST = "plait-files.json"
"""In a checkpoint of `plait.hf.trainer`: size and hash of each file, written last, as transformers writes them in place."""
_CONVERT = (
    "import torch; from pathlib import Path; from safetensors.torch import save_file; "
    "[save_file({{n: t.contiguous().clone() for n, t in torch.load(p, weights_only=True, map_location='cpu').items()}}, "
    "p.with_suffix('.safetensors')) for p in sorted(Path({folder!r}).glob({pattern!r}))]"
)
"""Converts all pickles of a pattern. Tensors are copied, as safetensors holds none that share memory."""
_PICKLES = (".pt", ".pth", ".bin")
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|training_args|rng_state|random_states|trainer_state", re.IGNORECASE)
"""Beginnings of names of pickles that a trainer keeps beside its weights."""
_USUAL = re.compile(r"(model|pytorch_model)\.(pt|bin)")
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_INDEX = ".safetensors.index.json"


def read(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's safetensors by name. Raises PlaitError without any, and for damaged or missing files."""
    if (folder / LIST).is_file() and (fault := list_fault(folder, ("model.safetensors",), alone=True)):
        raise PlaitError(f"from: {fault}")
    return _collect(folder, load_file)


def passport_digest(folder: Path) -> str | None:
    """Return the digest that a folder's passport tells, without checking it; None where there is none that can be read."""
    try:
        return str(json.loads((folder / PASSPORT).read_bytes())["digest"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def empty(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's safetensors by name as meta tensors: shapes without values.

    Raises PlaitError without any, and for damaged or missing files.
    """
    return _collect(folder, _empty)


def refuse_adapters(folder: Path) -> None:
    """Raise PlaitError for a folder of peft's, which holds adapters and no model."""
    others = any(path.name != "adapter_model.safetensors" for path in folder.glob("*.safetensors"))
    if not others and any(any(folder.glob(name)) for name in ("adapter_config.json", "*/adapter_config.json")):
        raise PlaitError(f"{folder} holds adapters alone, for peft: give the run that trained them, or export that in another layout")


def _collect(folder: Path, load: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    folder = folder / "transformer" if (folder / "model_index.json").is_file() else folder  # a pipeline of diffusers, and its network
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    parts = [path for path in paths if path.suffix == ".safetensors"]
    refuse_adapters(folder)
    _check_pickles(folder, [path for path in paths if path.suffix in _PICKLES and not _NO_WEIGHTS.match(path.name)], parts)
    if (other := next((part for part in parts if not part.is_file()), None)) is not None:  # a pipe would be waited for
        raise PlaitError(
            f"from: {other} is {'no regular file' if other.exists() else 'a link to nothing'}: remove it, or copy the file there"
        )
    if not parts:
        raise PlaitError(f"from: {folder} is neither a run nor a folder with safetensors weights")
    _check_complete(folder, parts)
    try:
        return {name: value for part in parts for name, value in load(part).items()}
    except (OSError, SafetensorError) as error:
        raise PlaitError(f"from: a file of {folder} is damaged: {error}") from error


def _check_pickles(folder: Path, pickles: Sequence[Path], parts: Sequence[Path]) -> None:
    """Raise PlaitError, with the command that converts them, for weights of which all or some are pickles."""
    names = {part.stem for part in parts}
    whole = bool(names & {"model", "pytorch_model"}) or any(match["name"] == "model" for match in map(_SHARD.fullmatch, names) if match)
    shards = [path for path in pickles if _SHARD.fullmatch(path.stem) and path.stem not in names]
    half = [path for path in shards if any(_same_model(path.stem, name) for name in names)]
    if half or not (parts and (whole or not shards)):
        chosen = half or shards or [path for path in pickles if _USUAL.fullmatch(path.name)][:1] or pickles[:1]
        if chosen:
            raise PlaitError(f"from: {_conversion(folder, chosen)}")


def _same_model(one: str, other: str) -> bool:
    """Return whether two names, without their suffixes, are of files of one model: NAME-00001-of-00003 and NAME-00002-of-00003."""
    first, second = _SHARD.fullmatch(one), _SHARD.fullmatch(other)
    return first is not None and second is not None and first.group("name", "count") == second.group("name", "count")


def _conversion(folder: Path, pickles: Sequence[Path]) -> str:
    first, several = pickles[0], len(pickles) > 1
    match = _SHARD.fullmatch(first.stem)
    pattern = f"{match['name']}-*-of-{match['count']}{first.suffix}" if match and several else first.name
    convert = _CONVERT.format(folder=str(folder), pattern=pattern)
    what = f"{first} and {len(pickles) - 1} more files are pickles, which can run code and are not read; convert them once"
    one = f"{first} is a pickle, which can run code and is not read; convert it once"
    return f"{what if several else one}: python -c {shlex.quote(convert)}"


def _check_complete(folder: Path, parts: Sequence[Path]) -> None:
    """Raise PlaitError if files are missing that an index, or the numbers in the names of others, say there are."""
    wanted: set[str] = set()
    for match in filter(None, (_SHARD.fullmatch(part.stem) for part in parts)):
        count = int(match["count"])
        wanted |= {f"{match['name']}-{number:05d}-of-{match['count']}.safetensors" for number in range(1, count + 1)}
    for index in sorted(folder.glob(f"*{_INDEX}")):
        try:
            listed = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlaitError(f"from: {index} is damaged: it is no index of weights ({type(error).__name__}: {str(error)[:100]})") from error
        wanted |= listed if any((folder / name).is_file() for name in listed) else set()  # else it is of another layout of the model
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if missing:
        raise PlaitError(
            f"from: {folder} lacks {len(missing)} of {len(wanted)} files of its weights: {first_names(missing)}; copy them there"
        )


def _empty(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118


def write_list(folder: Path) -> None:
    """Write the list of all files that are in the checkpoint `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / LIST)
    listed = {path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "xxh3": files.xxh3(path)} for path in paths}
    files.write_json(folder / LIST, {"files": listed})


def list_fault(folder: Path, needed: tuple[str, ...], *, alone: bool = False) -> str | None:
    """Return why a checkpoint is not whole, in a line; None if it is.

    All files of its list, or with `alone` those `needed`, must be there as they were written, and those `needed` be in the list.
    """
    path = folder / LIST
    if not path.is_file():
        return f"{folder} lacks {LIST}, which is written last: it is no whole checkpoint of a trainer of plait"
    try:
        listed = {str(name): (int(entry["size"]), str(entry["xxh3"])) for name, entry in json.loads(path.read_bytes())["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}"
    for name, (size, hashed) in listed.items():
        if alone and name not in needed:
            continue
        if wrong := size_fault(folder / name, {"size": size}):
            return wrong
        try:
            if (now := files.xxh3(folder / name)) != hashed:
                return f"{folder / name} is damaged: its xxh3 was {hashed}, is {now}"
        except OSError as error:
            return f"{folder / name} cannot be read: {error.strerror}"
    if lacking := [name for name in needed if name not in listed]:
        return f"{folder} was saved without {', '.join(lacking)}, by which training continues: begin from its weights with from"
    return None
