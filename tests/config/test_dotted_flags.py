"""The Molmo guide's command lines: every line as its readers type it, every flag, and what is refused."""

import shlex
from pathlib import Path

import pytest
import yaml

from plait.assembly.configuration import open_config
from plait.commands import command_line
from plait.config.dialects import dotted_flags
from plait.config.resolved import difference
from plait.errors import PlaitError
from plait.families import registry

COMMANDS = """
plait train molmo/captioner debug --save_folder=/path/to/save/folder --save_overwrite
plait train molmo/captioner qwen2_7b --wandb.name=my-captioner --wandb.entity=my-entity --wandb.project=molmo \
--save_folder=/path/to/save/folder
plait train molmo/captioner qwen2_7b --vision_backbone=openai --save_folder=./checkpoints --wandb.name=caption-qwen2-7b \
--data.num_workers=4 --optimizer.learning_rate=3e-6 --max_steps=15000 --save_interval=1000
plait train molmo/captioner qwen2_7b --model.residual_dropout=0.1 --optimizer.weight_decay=0.1 \
--global_train_batch_size=256 --data.pad=to_128
plait train molmo/captioner qwen2_7b --global_train_batch_size=256 --device_batch_size=4 --activation_checkpointing=full \
--fsdp.use_orig_params=False --fsdp.sharding_strategy=FULL_SHARD
plait train molmo/captioner olmoe --global_train_batch_size=512 --device_batch_size=8 --activation_checkpointing=one_in_two
plait train molmo/multitask 3.2-synthetic /path/to/captioner/checkpoint/step15000 --wandb.name=multitask-v1 \
--save_folder=./multitask_checkpoints --max_steps=10000 --optimizer.learning_rate=1e-6
plait train molmo/multitask 3.2-synthetic /path/to/captioner/checkpoint --global_train_batch_size=128 --device_batch_size=2 \
--optimizer.learning_rate=1e-6 --evaluations.0.data.dataset=vqa2:validation --evaluations.0.eval_interval=1000
plait train molmo/captioner qwen2_7b --fsdp=True --fsdp.sharding_strategy=FULL_SHARD --fsdp.use_orig_params=False --fsdp.precision=bf16
plait train molmo/captioner qwen2_7b --scheduler.name=linear_with_warmup --scheduler.units=steps --scheduler.t_warmup=1000 \
--scheduler.t_max=15000 --max_grad_norm=1.0 --compiler.mode=default --compiler.dynamic=False
plait train molmo/captioner qwen2_7b --save_folder=/same/folder --allow_resume=True
""".strip().splitlines()
GIVEN = Path(__file__).resolve().parents[3] / "shared" / "dialects" / "molmo_commands.txt"
OTHER = {
    "allow_resume": "False",
    **dict.fromkeys(("optimizer.betas", *(f"optimizer.{part}_betas" for part in dotted_flags.COMPONENTS)), "[0.8,0.99]"),
    "device_batch_size": "8",
    **dict.fromkeys(("device_train_batch_size", "device_train_microbatch_size"), "8"),
    "max_duration": "4ep",
    "scheduler.t_max": "9000",
    "activation_checkpointing": "one_in_four",
    "vision_backbone": "siglip",
    "data.pad": "none",
    "scheduler.name": "inverse_sqrt_with_warmup",
    "compiler.mode": "max-autotune-no-cudagraphs",
    "compiler.dynamic": "False",
    "fsdp.sharding_strategy": "SHARD_GRAD_OP",
    "fsdp.precision": "bf16",
    "scheduler.units": "tokens --scheduler.t_warmup=1000 --scheduler.t_max=5000",
}
"""Values of flags that are not just numbers, switches or text."""


def load(line):
    """What a command line is resolved to, as `plait` itself reads it."""
    given = command_line.parse(shlex.split(line)[1:])
    return open_config(given.config, given.overrides, words=given.words)


def captioner(flags=""):
    return load(f"plait train molmo/captioner qwen2_7b {flags}")


@pytest.mark.parametrize("line", COMMANDS)
def test_every_line_of_the_guide_loads(line):
    resolved = load(line)
    assert resolved.config.family == "molmo"
    flags = [word.removeprefix("--").partition("=")[0] for word in shlex.split(line) if word.startswith("--")]
    assert [row[0] for row in resolved.translation if row[0].islower()] == flags


def test_the_guides_lines_are_all_here():
    given = [line for line in GIVEN.read_text().splitlines() if line.startswith("plait")] if GIVEN.is_file() else COMMANDS
    assert given == COMMANDS


def value_of(flag):
    kind = dotted_flags.FLAGS[flag].kind
    return OTHER.get(flag) or {"int": "7", "number": "0.25", "bool": "True", "text": "other"}[kind]


@pytest.mark.parametrize("flag", [flag for flag in dotted_flags.FLAGS if flag not in ("fsdp.use_orig_params", "wandb")])
def test_every_flag_has_its_effect(flag):
    base = "--train.precision=fp32"
    before, after = captioner(base), captioner(f"{base if flag != 'fsdp.precision' else ''} --{flag}={value_of(flag)}")
    changed = {path for path, _, _ in difference(before, after)} | (after.train_options - before.train_options)
    row = next(row for row in after.translation if row[0] == flag)
    assert changed, f"{flag} changes nothing"
    assert row[2] is None or any(f"{path}.".startswith(f"{row[2]}.") for path in changed), f"{flag} says {row[2]}, but changed {changed}"


def test_use_orig_params_is_accepted_with_a_note():
    row = captioner("--fsdp.use_orig_params=False").translation[-1]
    assert row == ("fsdp.use_orig_params", False, None, "FSDP2 always keeps the original parameters")


def test_wandb_null_is_off():
    off = captioner("--wandb=null")
    assert (off.translation[-1], off.config.track.wandb) == (("wandb", "null", "track.wandb", "off"), None)


def leaf(value, path):
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list | tuple) else value[step] if isinstance(value, dict) else getattr(value, step)
    return value


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--optimizer.learning_rate=3e-6", {f"optim.components.{part}.lr": 3e-6 for part in ("connector", "vision", "language")}),
        (
            "--optimizer.learning_rate=3e-6 --optimizer.vit_learning_rate=1e-7",
            {"optim.lr": 3e-6, "optim.components.vision.lr": 1e-7, "optim.components.language.lr": 3e-6, "optim.schedule.min_lr": 3e-7},
        ),
        (
            "--optimizer.weight_decay=0.1 --optimizer.llm_weight_decay=0",
            {"optim.weight_decay": 0.1, "optim.components.language.weight_decay": 0},
        ),
        ("--scheduler.name=linear_with_warmup", {"optim.schedule.name": "linear", "optim.schedule.warmup_steps": 2000}),
        ("--scheduler.name=constant", {"optim.schedule.warmup_steps": 0, "optim.components.connector.warmup_steps": None}),
        ("--scheduler.name=constant --scheduler.t_warmup=9", {"optim.schedule.name": "constant", "optim.schedule.warmup_steps": 9}),
        (
            "--scheduler.t_warmup=50 --scheduler.connector_t_warmup=5 --scheduler.t_max=900",
            {
                "optim.schedule.warmup_steps": 50,
                "optim.components.vision.warmup_steps": None,
                "optim.components.connector.warmup_steps": 5,
                "optim.schedule.decay_steps": 900,
            },
        ),
        (
            "--scheduler.units=tokens --scheduler.t_warmup=1e6 --scheduler.t_max=1e9",
            {
                "optim.schedule.warmup_tokens": 1_000_000,
                "optim.schedule.warmup_steps": 0,
                "optim.schedule.decay_tokens": 1_000_000_000,
                "optim.components.vision.warmup_steps": None,
            },
        ),
        ("--max_steps=100", {"train.steps": 100, "optim.schedule.warmup_steps": 10, "optim.components.vision.warmup_steps": None}),
        ("--max_steps=15000", {"optim.schedule.warmup_steps": 2000, "optim.components.connector.warmup_steps": 200}),
        ("--max_grad_norm=0.5", {"train.grad_clip": 0.5, "optim.components.vision.grad_clip": 0.5}),
        ("--max_grad_norm=0", {"train.grad_clip": None, "optim.components.vision.grad_clip": None}),
        ("--activation_checkpointing=one_in_two", {"distributed.activation_checkpointing": "one_in_two"}),
        (
            "--activation_checkpointing=one_in_four",
            {"distributed.activation_checkpointing": "one_in_n", "distributed.checkpoint_one_in": 4},
        ),
        ("--compiler.mode=reduce-overhead", {"distributed.compile": True, "distributed.compile_mode": "reduce-overhead"}),
        ("--compiler.dynamic=False", {"distributed.compile": True, "distributed.compile_dynamic": False}),
        ("--fsdp=True", {"distributed.strategy": "fsdp"}),
        ("--fsdp", {"distributed.strategy": "fsdp"}),
        ("--fsdp=False", {"distributed.strategy": "ddp"}),
        ("--fsdp=True --fsdp.sharding_strategy=NO_SHARD", {"distributed.strategy": "ddp"}),
        ("--fsdp=True --fsdp.sharding_strategy=SHARD_GRAD_OP", {"distributed.strategy": "shard_grad_op"}),
        ("--wandb.name=a", {"track.wandb.project": "molmo", "track.wandb.name": "a"}),
        ("--wandb.project=p --wandb.entity=e", {"track.wandb.project": "p", "track.wandb.entity": "e"}),
        (
            "--evaluations.0.eval_interval=70 --evaluations.1.data.dataset=text_vqa:validation --evaluations.1.max_examples=9",
            {"evaluate.0.bench": "loss", "evaluate.0.every_steps": 70, "evaluate.1.bench": "text_vqa:validation", "evaluate.1.samples": 9},
        ),
        ("--evaluations.0.data.dataset=vqa2:validation", {"evaluate.0.bench": "vqa2:validation", "evaluate.0.samples": None}),
        ("--optim.eps=1e-5 --seed=3", {"optim.eps": 1e-5, "seed": 3}),
    ],
)
def test_flags_mean_this(flags, expected):
    config = captioner(flags).config
    assert {path: leaf(config, path) for path in expected} == pytest.approx(expected)


def test_what_no_flag_says_is_the_presets():
    for line, preset in (("molmo/captioner qwen2_7b", "captioner"), ("molmo/multitask 3.2-synthetic nowhere", "multitask")):
        resolved, preset_file = load(f"plait train {line}"), yaml.safe_load(registry.preset("molmo", preset).read_text())
        for section in ("model", "optim"):
            scalars = {path: value for path, value in preset_file[section].items() if not isinstance(value, dict | list)}
            assert {path: leaf(leaf(resolved.config, section), path) for path in scalars} == scalars
        assert resolved.config.train.global_batch == preset_file["train"]["global_batch"]


@pytest.mark.parametrize(("preset", "steps"), [("captioner", 22300), ("multitask", 30000)])
def test_the_presets_warm_ups_are_the_guides_at_the_guides_length(preset, steps):
    optim = yaml.safe_load(registry.preset("molmo", preset).read_text())["optim"]
    shares = {"": optim["schedule"], **optim.get("components", {})}
    counts = {name: round(part["warmup"] * steps) for name, part in shares.items() if "warmup" in part}
    assert dotted_flags.WARMUP[preset] == counts


def test_a_multitask_run_has_its_captioners_model(tmp_path):
    model = {"language": "debug", "vision_backbone": "debug", "max_crops": 3, "style": "none", "response_residual_dropout": 0.1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"family": "molmo", "model": model}))
    for spec in (tmp_path, tmp_path / "latest", tmp_path / "step15000", f"{tmp_path}@15000"):
        config = load(f"plait train molmo/multitask debug {spec}").config
        assert (config.from_, config.preset, config.model["max_crops"]) == (str(spec), "debug", 3)
        assert (config.model["residual_dropout"], config.model["response_residual_dropout"]) == (0.1, 0.0)


def test_a_sweep_may_give_any_flag_as_text_or_as_a_switch():
    resolved = captioner("--optimizer.learning_rate=3e-06 --global_train_batch_size=256.0 --save_overwrite --scheduler.t_warmup=1e2")
    assert (resolved.config.optim.lr, resolved.config.train.global_batch, resolved.config.optim.schedule.warmup_steps) == (3e-6, 256, 100)
    assert resolved.train_options == {"restart"}


WRONG = {
    "molmo/captioner": "molmo/captioner takes MODEL, got none: plait train molmo/captioner MODEL [--flag=value ...]",
    "molmo/captioner debug more": "molmo/captioner takes MODEL, got debug more: ",
    "molmo/multitask 3.2-synthetic": "molmo/multitask takes MIXTURE CHECKPOINT, got 3.2-synthetic: ",
    "molmo/captioner qwen2": "molmo/captioner has no model 'qwen2': did you mean qwen2_7b?",
    "molmo/captioner llama": "molmo/captioner has no model 'llama': known: debug, qwen2_7b, qwen2_72b, olmo_1024_preview, olmoe; "
    "another language model is named",
    "--optimizer.learning_rte=1": "optimizer.learning_rte is not a key: did you mean optimizer.learning_rate?",
    "--max_step=1": "max_step is not a key: did you mean max_steps?",
    "--max_steps=many": "max_steps must be a whole number, got 'many'",
    "--max_steps=1.5": "max_steps must be a whole number, got 1.5",
    "--max_steps=0": "max_steps (train.steps) must be greater than or equal to 1, got 0",
    "--max_steps": "max_steps must be a whole number, got true",
    "--max_steps=[1": "the value of max_steps cannot be read: '[1'",
    "--allow_resume=maybe": "allow_resume must be True or False, got 'maybe'",
    "--optimizer.betas=0.9": "optimizer.betas must be a list of numbers, such as [0.9,0.95], got 0.9",
    "--scheduler.name=cosine": "constant or inverse_sqrt_with_warmup, got 'cosine': did you mean cosine_with_warmup?",
    "--scheduler.units=samples": "scheduler.units must be steps or tokens, got 'samples'",
    "--scheduler.units=tokens": "scheduler.units is tokens, and the presets count in steps: set --scheduler.t_warmup, in tokens",
    "--activation_checkpointing=half": "activation_checkpointing must be none, full, whole_layer, fine_grained, one_in_two, ",
    "--compiler.mode=fast": "compiler.mode must be default, reduce-overhead, max-autotune or max-autotune-no-cudagraphs, got 'fast'",
    "--fsdp.sharding_strategy=FULL": "got 'FULL': did you mean FULL_SHARD?",
    "--fsdp=False --fsdp.sharding_strategy=FULL_SHARD": "fsdp is False, but fsdp.sharding_strategy shards: leave one of them out",
    "--fsdp.precision=fp8": "fsdp.precision must be bf16, fp16 or pure_bf16, got 'fp8'",
    "--vision_backbone=openia": "must be 'openai', 'siglip', 'dino' or 'debug', got 'openia': did you mean 'openai'?",
    "--data.pad=to_64": "data.pad must be 'longest', 'to_128', 'to_max' or 'none', got 'to_64'",
    "--model.residual_dropout=1.5": "model.residual_dropout must be less than 1, got 1.5",
    "--global_train_batch_size=9 --device_batch_size=2": "device_batch_size (train.micro_batch) is 2, not a divisor of ",
    "--scheduler.t_warmup=300": "scheduler.t_warmup (optim.schedule.warmup_steps) is 300, but the stage has 300 steps",
    "--evaluations.3.eval_interval=5": "there is no evaluation 1: set --evaluations.1.data.dataset=NAME:SPLIT",
    "--evaluations.0.eval_intervl=5": "evaluations.0.eval_intervl is not a key: did you mean evaluations.0.eval_interval?",
    "--max_duration=4T": "max_duration must be a number of steps, or of passes over the data such as 4ep, got '4T'",
    "--max_duration=4ep --max_steps=3": "max_duration and max_steps both are the length: leave one of them out",
    "--global_batch_size=8 --global_train_batch_size=8": "both are train.global_batch: leave one of them out",
    "--checkpoint.best=val_loss": "checkpoint.best is 'val_loss', which is named loss here: checkpoint.best=loss",
    "--evaluations.0.data.dataset=val_loss": "is 'val_loss', which is named loss here: evaluate.0.bench=loss",
    "--metric=loss": "metric is written as --checkpoint.best=loss",
    "--metric=val_loss": "metric is written as --checkpoint.best=loss",
    "--eval_interval=5": "eval_interval is written as --evaluations.0.eval_interval=5",
    "--save_overwrite --allow_resume=True": "save_overwrite begins anew, allow_resume=True goes on with what is there: leave one",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_one_line(line):
    with pytest.raises(PlaitError) as caught:
        load(f"plait train {'molmo/captioner debug ' if line.startswith('--') else ''}{line}")
    assert WRONG[line] in str(caught.value) and "\n" not in str(caught.value)
