"""Build a configuration's model, with its inputs and weight hashes. A family is a kind of model: its code and configuration.

A component is a part of the model that trains or stays frozen as a whole; a stage, a part of a run.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from plait import files
from plait.assembly import checkpoint_specs, hub_start, overwritten
from plait.assembly.adapters import layers as adapter_layers
from plait.assembly.data import open_training
from plait.config.schema import RunConfig
from plait.data.loading import truncation
from plait.data.order import permute
from plait.data.sources.contract import read
from plait.data.text import IMAGE_MARK
from plait.engine.checkpoints.folders import copy_folder
from plait.engine.loss import Loss
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.sharding import Sharding
from plait.errors import BadSample, counted_reasons, sample_errors
from plait.families import registry
from plait.families.contract import Family, require_known
from plait.families.limits import check_max_tokens
from plait.families.signatures import Inputs
from plait.keys import key

log = logging.getLogger(__name__)

_TOKENIZER_SAMPLES = 2_000
"""How many samples of each training source are read, at most, to train a tokenizer."""

NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True)
class ModelBundle:
    """A family (kind of model), its validated `model:` section, and the model built from it; all ranks have the same."""

    family: Family
    section: Any
    assets: Path
    """Folder of files that the family made for this run, such as a tokenizer."""
    model: nn.Module
    base_hashes: dict[str, str]
    """Hash (xxh3) of every parameter as built, by name, to check that frozen weights are the same when a run is resumed."""
    sharding: Sharding | None
    """How the model is divided over ranks; None on one rank."""
    unread: frozenset[str] = frozenset()
    """Pretrained parts whose weights were not read, as the caller loads others over them."""
    adapters: adapter_layers.Adapters | None = None

    @functools.cached_property
    def component_names(self) -> Mapping[str, tuple[str, ...]]:
        """The parameters' names by component (part that trains or is frozen as a whole). Raises PlaitError for a wrong `never_trained`."""
        given = self.family.components(self.model) if self.adapters is None else self.adapters.components
        names = {component: tuple(part) for component, part in given.items()}
        require_known(self.family.name, "never_trained", self.family.never_trained, [*names, *self.section.absent()])
        return names

    @functools.cached_property
    def blocks(self) -> Sequence[nn.Module]:
        """The modules that are sharded, recomputed and compiled one by one; the family is asked once."""
        return self.family.blocks(self.model)

    def components(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return {component: {name: parameter}} of the model as it is now (sharding replaces the parameters)."""
        parameters = dict(self.model.named_parameters())
        return {component: {name: parameters[name] for name in names} for component, names in self.component_names.items()}

    def loss(self) -> Loss:
        """Return a new loss of the family. Raises PlaitError if its `may_idle` (what may get no gradient) names what is no component."""
        loss = self.family.Loss(self.section)
        require_known(self.family.name, "may_idle of its Loss", loss.may_idle, [*self.component_names, *self.section.absent()])
        return loss

    def inputs(self, config: RunConfig, *, train: bool, pad: str | None = None) -> Inputs:
        """Return the family's object that encodes and collates samples; with `train` it augments them.

        `pad`: how sequences are padded (longest, to_128, to_max, none); None: `data.pad`. Raises PlaitError if data.max_tokens is too long.
        """
        check_max_tokens(config.data.max_tokens, self.family.limits(self.section))
        inputs = self.family.Inputs(self.section, self.assets, max_tokens=config.data.max_tokens, pad=pad or config.data.pad, train=train)
        return inputs if config.data.truncate == "cut" else truncation.inputs_of(inputs, config.data, train=train)

    def frozen_xxh3(self, trained: set[str], former: Mapping[str, str] = NO_NAMES) -> str:
        """Return one hash of all weights as built, without adapters and those in `trained`; a resumed run compares it.

        `former`: {name of a parameter now: its name then}, of those that were renamed, under which they are hashed.
        """
        left = trained if self.adapters is None else trained | self.adapters.names
        hashed = {former.get(name, name): value for name, value in self.base_hashes.items() if name not in left}
        lines = "".join(f"{name}={value}\n" for name, value in sorted(hashed.items()))
        return xxhash.xxh3_64_hexdigest(lines.encode())


def build_model(config: RunConfig, run: Path, ranks: Ranks, loaded: Callable[[], overwritten.Shapes] = dict) -> ModelBundle:
    """Build the model in CPU memory; all ranks call this. Rank 0 first writes the files that it needs (a tokenizer) to `run`/assets.

    `loaded`: called after that; returns {parameter: shape} of the weights that the caller loads over the built ones: pretrained parts that
    they replace are not read. Raises PlaitError for unreadable weights.
    """
    family = registry.load(config.family)
    section = family.Config.model_validate(config.model)
    assets = run / "assets"
    if ranks.first:
        write_assets(config, assets)
    ranks.barrier()
    seed = seed_of(config)
    shapes = loaded()
    unread = overwritten.parts(family, section, assets, shapes) if shapes else frozenset()
    if unread and family.build_over is not None:
        model = family.build_over(section, assets, seed=seed, parts=unread)
    else:
        model = family.build(section, assets, seed=seed)
    adapters = adapter_layers.add(family, model, config.adapters, config.seed) if config.adapters else None
    sharding = Sharding(model) if ranks.size > 1 else None
    bundle = ModelBundle(family, section, assets, model, hashes(model), sharding, unread=unread, adapters=adapters)
    if adapters is not None:
        adapters.quantise()
    return bundle


def seed_of(config: RunConfig) -> int:
    """Return the 64-bit seed that a family's `build` draws a run's model from."""
    return key(config.seed, "init")


def write_assets(config: RunConfig, assets: Path) -> None:
    """Write the files that a model needs, such as a tokenizer trained on the samples' texts, into folder `assets`, unless they exist.

    A run that starts `from:` another copies that run's, as embeddings fit one tokenizer. Raises PlaitError if data or `from:` is missing.
    """
    if config.from_ and not assets.is_dir():
        origin = str(hub_start.assets(config.from_) or config.from_)
        inherited, exported = checkpoint_specs.assets(origin), checkpoint_specs.tokenizer(origin)
        if inherited is not None:
            copy_folder(inherited, assets)
        elif exported is not None:
            files.write_whole(assets / "tokenizer" / exported.name, exported.read_bytes())
    family = registry.load(config.family)
    family.prepare(family.Config.model_validate(config.model), assets, lambda: _texts(config))


def hashes(model: nn.Module) -> dict[str, str]:
    """Return the xxh3 (a 64-bit hash, as hex) of each parameter by name. Takes 0.1 to 0.4 s per GB on the CPU."""
    return {name: _hash(value) for name, value in model.named_parameters()}


def _hash(value: torch.Tensor) -> str:
    return xxhash.xxh3_64_hexdigest(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _texts(config: RunConfig) -> Iterator[str]:
    """Yield the messages of some samples of each training source; samples that cannot be read are left out, counted and logged."""
    for source in open_training(config).sources:
        bad, n = Counter[str](), min(len(source), _TOKENIZER_SAMPLES)
        for i, index in enumerate(np.asarray(permute(np.arange(n), max(len(source), 1), config.seed, "texts")).tolist()):
            try:
                with sample_errors:
                    sample = source.worded(index) if source.stream is None else read(source, i, 0)  # shard by shard
            except BadSample as error:
                bad[str(error)] += 1
                continue
            yield from (message["content"].replace(IMAGE_MARK, "") for message in sample["messages"])
        if bad:
            told = f"{bad.total()} of {n} samples cannot be read and the tokenizer learns without them: {counted_reasons(bad)}"
            log.warning(f"{source.name}: {told}")
