"""One rank of `test_ranks`: three steps in which one rank of two has text only, whose figures are written, then one of text on all."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from plait.engine import optim
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import full_tensor
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import State
from plait.families.molmo import family
from plait.families.molmo.config import Config
from plait.families.molmo.model import COMPONENTS
from tests.engine.toy import Id, make_config, make_loop, step_batch
from tests.families.molmo.conftest import sample


def main(out: Path, cut_frozen: bool | None = None, trainable: tuple[str, ...] = COMPONENTS) -> None:
    """`cut_frozen`: None for replicas; else weights are cut over ranks, frozen blocks too where it is true."""
    config = Config(language="debug", style="none")
    settings = make_config(train={"steps": 4, "global_batch": 4})
    with distributed.join("cpu") as ranks:
        model = family.build(config, out.parent, seed=1)
        inputs = family.Inputs(config, out.parent)
        examples = [inputs.encode(given, 0) for given in (sample(1), sample(2, 3), sample(), sample(ask="Where is it?", say="on a mat"))]
        size = 2  # images with images, text with text
        micros = [
            SimpleNamespace(batch=inputs.collate(examples[start : start + size]), ids=[Id(0, start, 0)], padding=False)
            for start in range(0, 4, size)
        ]
        layout = Layout("ddp" if cut_frozen is None or ranks.size == 1 else "fsdp", ranks.size, shard_frozen=bool(cut_frozen))
        names = {name for part in trainable for name in family.components(model)[part]}
        Sharding(model).wrap(family.blocks(model), names, layout, ranks, types={})
        state = State(model)
        state.begin({part: family.components(model)[part] for part in trainable}, settings.optim)
        rows = []
        loop = make_loop(state, family.Loss(config), settings, ranks, out.with_suffix(".jsonl"), [lambda _, row: rows.append(row)])
        own_micros = micros if ranks.size == 1 else micros[ranks.rank : ranks.rank + 1]
        loop.run([step_batch(step, own_micros) for step in range(3)], 3)
        parts = family.components(model)
        seeing = {name: value for part in {"vision", "connector"} & {*trainable} for name, value in parts[part].items()}
        before = {name: full_tensor(value).detach().clone() for name, value in seeing.items()}
        text = [micros[1]] * len(own_micros)  # no rank sees a picture
        loop.run([step_batch(3, text)], 4)
        assert all(torch.equal(full_tensor(dict(model.named_parameters())[name]), value) for name, value in before.items())
        assert {float(optim.moments(state.optimizer)[f"{name}.step"]) for name in seeing} <= {3.0}
        if ranks.first:
            out.write_text(json.dumps([{name: row[name] for name in ("loss", "grad_norm", "weight/loss")} for row in rows[:3]]))
