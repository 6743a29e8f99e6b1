"""Runs that plait's engine and a Trainer of transformers both make: 20 steps of each family, in two micro-batches each."""

import json

import yaml

import plait
import plait.hf
from plait import cli

_SCENES = {"source": "scenes", "limit": 30, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour", "caption"]}}
_COMMON = {
    "train": {"steps": 20, "global_batch": 4, "micro_batch": 2},
    "checkpoint": {"every_steps": 10, "reference": False},
    "track": {"every_steps": 1, "tensorboard": False, "monitor": False},
    "guard": {"blindness": False},
}
CONFIGS = {
    "theworld": {
        "preset": "tiny",
        "model": {
            "tiny": {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4}
            | {"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
            "world": {"image_size": 16},
            "augment": {"flip": True},
        },
        "data": {"train": [_SCENES | {"weight": 3}, _SCENES | {"limit": 9}], "validation": [_SCENES], "workers": 0}
        | {"pad": "none", "pack_tokens": 100},
        "evaluate": [{"bench": "loss"}],
        "optim": {"components": {"vision": {"lr": 1e-4, "grad_clip": 0.05}}, "ema": {"decay": 0.9}},
    },
    "molmo": {
        "preset": "debug",
        "model": {"residual_dropout": 0.1},
        "data": {"train": [_SCENES], "max_tokens": 192, "workers": 0},
        "optim": {"schedule": {"name": "linear", "units": "tokens", "warmup_tokens": 500, "decay_tokens": 4000}},
    },
    "nanodit": {
        "preset": "tiny",
        "model": {"metadata": "{folder}/latents", "depth": 2, "hidden": 48, "heads": 2},
        "data": {"train": [{"source": "latents", "path": "{folder}/latents"}], "workers": 0},
        "optim": {"ema": {"decay": 0.9}, "schedule": {"name": "inverse_sqrt", "warmup_steps": 4}},
    },
}
"""By family; `{folder}` stands for the folder of the test."""
_LATENTS = [
    *("data", "shard", "scenes", "{folder}/latents", "--limit=30", "--latents=tiny", "--texts=tiny", "--images=tiny"),
    *("--statistics=published", "--buckets=32x32,24x40", "--options.size=[[32,32],[24,40]]", "--options.tasks=[caption]"),
]


def written(family, folder):
    """Write the configuration of a family, and data that it needs; returns the file."""
    if family == "nanodit":
        assert cli.main([part.format(folder=folder) for part in _LATENTS]) == 0
    text = yaml.safe_dump({"family": family, "run": "{folder}/run", **_COMMON, **CONFIGS[family]})
    file = folder / "run.yaml"
    file.write_text(text.replace("{folder}", str(folder)))
    return file


def of_engine(run):
    """The rows of a run's steps."""
    return [row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


def of_trainer(trainer):
    """The rows of a trainer's steps."""
    return [row for row in trainer.state.log_history if "loss" in row]


def trainer_of(config, out, *, args=(), **options):
    """A trainer that writes into `out`, without a progress bar."""
    return plait.hf.trainer(config, args={"output_dir": str(out), "disable_tqdm": True, **dict(args)}, **options)
