"""TrainingArguments of transformers for a stage: those with a counterpart among plait's settings, those passed on, those refused.

A setting has one value: an argument that has a counterpart, such as `learning_rate`, sets it (`optim.lr`), and the TrainingArguments are
then made of the settings.
"""

import contextlib
import dataclasses
import difflib
import math
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from plait.config.messages import WHOLE, check_arguments, with_type
from plait.config.schema import RunConfig
from plait.engine.schedule import warmup_of
from plait.errors import PlaitError
from plait.hf import passed_arguments

SETTINGS = {
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "adam_epsilon": "optim.eps",
    "max_grad_norm": "train.grad_clip",
    "max_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.micro_batch",
    "lr_scheduler_type": "optim.schedule.name",
    "warmup_steps": "optim.schedule.warmup_steps",
    "bf16": "train.precision",
    "seed": "seed",
    "dataloader_num_workers": "data.workers",
    "dataloader_prefetch_factor": "data.prefetch",
    "use_cpu": "distributed.device",
}
"""The setting that an argument stands for."""
TOGETHER = {
    "adam_beta1": ("adam_beta2", "optim.betas"),
    "adam_beta2": ("adam_beta1", "optim.betas"),
    "gradient_accumulation_steps": ("per_device_train_batch_size", "train.global_batch"),
}
"""Arguments that stand for a setting together with another one."""
_PASSED = (
    *("output_dir", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node", "log_level"),
    *("log_level_replica", "disable_tqdm", "skip_memory_metrics", "torch_empty_cache_steps", "tf32", "local_rank"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout"),
    *("deepspeed", "do_train", "do_eval", "do_predict"),
)
"""Arguments that transformers honours by itself, whatever is trained."""
_CURES = {
    "fp16": "float16 is trained by `plait train` alone, which takes a step again where it overflows; bf16=True",
    "gradient_checkpointing": 'set distributed={"activation_checkpointing": "full"}',
    "activation_checkpointing": 'set distributed={"activation_checkpointing": "full"}',
    "torch_compile": 'set distributed={"compile": True}',
    "optim": "the optimizer is that of the setting `optim.name`",
    "fsdp": "weights are sharded by deepspeed=, or by `plait train` with distributed.strategy",
    "resume_from_checkpoint": "give it to train(resume_from_checkpoint=...)",
    "push_to_hub": "upload what save_model wrote, or `plait push` a run",
}
"""What to do in place of an argument that is refused."""
_SCHEDULES = {"constant_with_warmup": "constant"} | {name: name for name in ("constant", "linear", "cosine", "inverse_sqrt")}
_SAME = {
    "resume_from_checkpoint": (None,),
    "optim": ("adamw_torch", "adamw_torch_fused"),
    "fp16": (False,),
    "push_to_hub": (False,),
    "torch_compile": (False,),
}
"""Values of refused arguments that ask for what is done anyway."""


def processes() -> int:
    """Return how many processes train together, as `accelerate launch`, torchrun or mpirun tells in the environment.

    Raises PlaitError where `accelerate launch` was asked for several and started one.
    """
    environment = os.environ
    sizes = [environment[name] for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE") if name in environment]
    if not sizes and "MASTER_ADDR" in environment and "ACCELERATE_MIXED_PRECISION" in environment:
        raise PlaitError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs without mpirun: "
            "add --multi_gpu, which starts them on CPUs too, and leave --cpu out"
        )
    return int(sizes[0]) if sizes else 1


def check_packages(args: Mapping[str, Any]) -> None:
    """Raise PlaitError where a package is missing that transformers' Trainer needs, with how to install it."""
    if find_spec("accelerate") is None:
        raise PlaitError("plait.hf.trainer needs the package accelerate: pip install 'plait[trainer]'")
    if args.get("deepspeed") and find_spec("deepspeed") is None:
        raise PlaitError("args has deepspeed, which needs the package deepspeed: pip install deepspeed, on a machine with its compilers")


def settings_of(args: Mapping[str, Any], ranks: int) -> dict[str, Any]:
    """Return the settings that some of `args` stand for, {"optim.lr": 1e-4}. `ranks`: how many processes train together.

    Raises PlaitError for an argument that TrainingArguments lacks, and for one that has no meaning here, with what to do instead.
    """
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    settings: dict[str, Any] = {}
    for name, value in args.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise PlaitError(f"args: {name!r} is no field of transformers' TrainingArguments{hint}")
        if name in TOGETHER:
            other, setting = TOGETHER[name]
            if other not in args:
                raise PlaitError(f"args: {name} needs {other} beside it: together they set {setting}")
        elif name in SETTINGS:
            settings |= _setting(name, value, args)
        elif name not in _PASSED and value not in _SAME.get(name, ()):
            raise PlaitError(f"args: {name} is not taken: {_CURES.get(name, 'model, data and optimizer are those of the configuration')}")
        if name.endswith("_strategy") and str(getattr(value, "value", value)) == "epoch":
            raise PlaitError(f'args: {name} "epoch" is not taken: an epoch of the data need not end with a step; say "steps"')
    passed_arguments.check({name: value for name, value in args.items() if name in _PASSED})
    if "adam_beta1" in args:
        settings["optim.betas"] = [args["adam_beta1"], args["adam_beta2"]]
    if "gradient_accumulation_steps" in args:
        check_arguments("args", **{name: (args[name], WHOLE) for name in ("gradient_accumulation_steps", "per_device_train_batch_size")})
        settings["train.global_batch"] = args["gradient_accumulation_steps"] * args["per_device_train_batch_size"] * ranks
    return settings


def _setting(name: str, value: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the setting that one argument stands for, with its value; nothing where it stands for none."""
    setting = SETTINGS[name]
    plain = getattr(value, "value", value)  # of an enumeration
    if name == "lr_scheduler_type":
        if plain not in _SCHEDULES:
            raise PlaitError(f"args: lr_scheduler_type {plain!r} is no schedule of plait: known: {', '.join(_SCHEDULES)}")
        return {setting: _SCHEDULES[plain]}
    if name == "warmup_steps" and isinstance(plain, float) and plain < 1:
        return {"optim.schedule.warmup": plain}
    if name in ("max_steps", "warmup_steps", "num_train_epochs") and isinstance(plain, float) and plain.is_integer():
        plain = int(plain)
    if (name == "max_steps" and plain == -1) or (name == "num_train_epochs" and args.get("max_steps", -1) != -1):
        return {}
    if name in ("bf16", "use_cpu"):
        if not isinstance(plain, bool):
            raise PlaitError(f"args: {name} is to be True or False, and is {with_type(plain)}")
        return {setting: ("bf16" if plain else "fp32") if name == "bf16" else ("cpu" if plain else "auto")}
    return {setting: None if name == "max_grad_norm" and plain == 0 else plain}


def training_arguments(config: RunConfig, args: Mapping[str, Any], ranks: int) -> TrainingArguments:
    """Return the TrainingArguments of a stage with the settings `config`, in `ranks` processes; `args` as given to the trainer.

    The number of steps is set later, when the data are open. Raises PlaitError for what transformers refuses.
    """
    train, settings, every = config.train, config.optim, config.checkpoint.every_steps
    micro_batch = min(train.micro_batch or train.global_batch, math.ceil(train.global_batch / ranks))
    given = {name: value for name, value in args.items() if name in _PASSED and not (name == "output_dir" and not value)}
    values = {
        "output_dir": f"{config.run}-trainer",
        "max_steps": train.steps or 1,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 1 if config.data.pack_tokens else math.ceil(math.ceil(train.global_batch / ranks) / micro_batch),
        "learning_rate": settings.lr,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "adam_epsilon": settings.eps,
        "max_grad_norm": train.grad_clip or 0.0,
        "lr_scheduler_type": settings.schedule.name,
        "warmup_steps": warmup_of(settings) if settings.schedule.units == "steps" else 0,
        "seed": config.seed % 2**32,
        "logging_steps": config.track.every_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": every or 2**31,
        "save_total_limit": config.checkpoint.keep or None,
        "report_to": ["tensorboard"] if config.track.tensorboard else [],
        "remove_unused_columns": False,
        "use_cpu": config.distributed.device == "cpu" or not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "ignore_data_skip": True,  # the order of the data is a function of the step
        "bf16": bool(args.get("deepspeed")) and train.precision == "bf16",
        **given,
    }
    try:
        made = TrainingArguments(**values)
        made.device  # noqa: B018  joins the process group
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise PlaitError(f"args: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if made.world_size != ranks:
        raise PlaitError(f"accelerate trains in {made.world_size} processes of {ranks}: start them with `accelerate launch` or torchrun")
    if made.eval_strategy != "no" and not config.data.holds_out:
        raise PlaitError("args: eval_strategy measures held-out data, and there is none: list some under data.validation")
    if made.n_gpu > 1:
        raise PlaitError(
            f"this process sees {made.n_gpu} GPUs, and trains on one: start it with `accelerate launch --num_processes {made.n_gpu}`, "
            "or choose one with CUDA_VISIBLE_DEVICES"
        )
    return made


@contextlib.contextmanager
def whole_models(args: TrainingArguments) -> Iterator[None]:
    """Have transformers build whole models while the `with` lasts. Under ZeRO 3 it would cut them as it builds them, before they load."""
    given = getattr(args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if given is not None:
            set_hf_deepspeed_config(given)
