"""The feature cache of a stage (part of a run): which frozen encoders are stored, where, and what that saved.

`data.feature_cache` says whether. Features are kept below the user's cache, in a folder for each encoder as it is: its weights and
buffers, settings, types, the device, and the versions of the libraries. Another of any of these has a folder of its own.
"""

import importlib.metadata
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import nn

from plait import __version__
from plait.assembly.model import ModelBundle
from plait.config.resolved import folder
from plait.config.schema import RunConfig
from plait.data.formats.index import cache_folder
from plait.engine.loss import Loss
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from plait.families.frozen import FrozenEncoder
from plait.families.signatures import Inputs
from plait.nn.idle import contains_sharded
from plait.training.features.fill import StoredEncoder, StoredLoss
from plait.training.features.lookup import StoredInputs
from plait.training.features.store import FeatureStore

log = logging.getLogger(__name__)


class StageFeatures:
    """The encoders of a stage whose features are kept. `loss` and `inputs` are to be used in place of the plan's; `close` it at the end."""

    def __init__(self, encoders: Sequence[StoredEncoder], loss: Loss, *, alike: bool) -> None:
        self.encoders, self.alike = encoders, alike
        self.loss: Loss = StoredLoss(loss, encoders)
        self._before = (0, 0)

    def inputs(self, inputs: Inputs) -> Inputs:
        """Return inputs whose batches hold what is stored."""
        kept = [part for part in self.encoders if part.use]
        return StoredInputs(inputs, [part.encoder for part in kept], {part.encoder.name: part.store for part in kept}, alike=self.alike)

    def figures(self) -> dict[str, float]:
        """Return {"features_read": share of the pictures since the last call whose features were read}; {} if there were none."""
        read, seen = sum(part.read for part in self.encoders), sum(part.seen for part in self.encoders)
        before, self._before = self._before, (read, seen)
        return {"features_read": (read - before[0]) / (seen - before[1])} if seen > before[1] else {}

    def close(self) -> None:
        """Write what is not yet on disk, and say what was read."""
        for part in self.encoders:
            part.store.close()
            if part.seen:
                share = 100 * part.read / part.seen
                log.info(f"{part.encoder.name}: {part.read:,} of {part.seen:,} read ({share:.0f} %); {len(part.store):,} are stored")


def of_stage(config: RunConfig, bundle: ModelBundle, loss: Loss, ranks: Ranks, amounts: tuple[int, int]) -> StageFeatures | None:
    """Open the stores of a stage's frozen encoders; None where none is to be stored. Call it when the model is set up for the stage.

    `loss`: the family's. `amounts`: the steps that are ahead, and the samples that the data has. Raises PlaitError for an unknown name,
    or a folder that cannot be written.
    """
    mode, (steps, samples) = config.data.feature_cache, amounts
    repeats = max(0.0, 1 - samples / max(1, steps * config.train.global_batch))
    alike, kept = ranks.device.type == "cpu", []
    for encoder in _wanted(bundle, config):
        reason = _why_not(encoder, bundle.model, ranks.size)
        if reason is not None:
            log.info(f"  {encoder.name}: not stored: {reason}")
            continue
        store = _open(encoder, bundle.model, config, ranks)
        held = len(store)
        if mode == "auto" and not repeats and not held:
            log.info(f"  {encoder.name}: not stored: no picture comes a second time in this stage")
            store.close()
            continue
        tries = "; whether it is faster is tried first" if mode == "auto" else ""
        log.info(f"  {encoder.name}: frozen, kept in {store.folder} ({held:,} there){tries}")
        kept.append(StoredEncoder(encoder, bundle.model, store, device=ranks.device, alike=alike, tries=mode == "auto", repeats=repeats))
    return StageFeatures(kept, loss, alike=alike) if kept else None


def _wanted(bundle: ModelBundle, config: RunConfig) -> list[FrozenEncoder]:
    """Return the encoders that `data.feature_cache_of` names, all of the family's by default."""
    known = {encoder.name: encoder for encoder in bundle.family.frozen_features(bundle.section)}
    for name in config.data.feature_cache_of:
        if name not in known:
            raise PlaitError(f"data.feature_cache_of names {name!r}; the encoders of this model are {', '.join(known) or 'none'}")
    if not known:
        log.info(f"  data.feature_cache: family {bundle.family.name} has no encoder whose features can be kept")
    return [known[name] for name in config.data.feature_cache_of or known]


def _why_not(encoder: FrozenEncoder, model: nn.Module, ranks: int) -> str | None:
    """Return why the features of an encoder cannot be kept in this stage, or None."""
    if encoder.trains(model):
        return "it trains in this stage"
    if encoder.changes is not None:
        return f"{encoder.changes} makes other pictures in each epoch"
    if ranks > 1 and any(contains_sharded(module) for module in encoder.modules(model)):
        return "it is divided over the ranks, which have to run it together; distributed.frozen: replicate keeps it whole"
    return None


def _open(encoder: FrozenEncoder, model: nn.Module, config: RunConfig, ranks: Ranks) -> FeatureStore:
    """Open the store of an encoder as it is now. Raises PlaitError where its folder cannot be made."""
    about = _about(encoder, model, config, ranks)
    name = f"{encoder.name}-{xxhash.xxh3_64_hexdigest(json.dumps(about, sort_keys=True, default=str).encode())}"
    root = cache_folder(folder(config.data.cache)) / "features"
    store = FeatureStore(root, name, limit_bytes=int(config.data.feature_cache_gb * 1e9), about=about)
    try:
        store.open()
    except OSError as error:
        raise PlaitError(
            f"data.feature_cache: {error.strerror or error}: {root}; set data.cache to a folder that can be written"
        ) from error
    return store


def _about(encoder: FrozenEncoder, model: nn.Module, config: RunConfig, ranks: Ranks) -> dict[str, Any]:
    """Return all that decides what an encoder makes of a picture, to the bit."""
    cuda = ranks.device.type == "cuda"
    host = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    versions = {"torch": str(torch.__version__), **{name: importlib.metadata.version(name) for name in ("transformers", "diffusers")}}
    compiled = config.distributed.model_dump(include={"compile", "compile_mode", "compile_dynamic", "compile_backend"})
    return {
        "encoder": encoder.name,
        "settings": json.loads(json.dumps(encoder.settings, default=str)),
        "weights": weights_hash(encoder.modules(model)),
        "precision": config.train.precision,
        "device": torch.cuda.get_device_name(ranks.device) if cuda else host,
        "compile": compiled if config.distributed.compile else False,
        "versions": {"plait": __version__, **versions},
    }


def weights_hash(modules: Sequence[nn.Module]) -> str:
    """Return one hash (xxh3) of the names, types, shapes and values of the modules' parameters and buffers."""
    digest = xxhash.xxh3_64()
    for number, module in enumerate(modules):
        values: Mapping[str, torch.Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, value in sorted(values.items()):
            digest.update(f"{number}.{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
