"""`plait.hf.trainer`: a Trainer of transformers whose steps are those of plait's own engine, to the bit on one layout."""

import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

import plait
from plait import cli
from plait.hf import arguments
from plait.theworld import TheWorld
from tests.hf import recipes

LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
QUIET = ["--mixed_precision=no", "--dynamo_backend=no"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By family: a run of the engine, and one of a trainer, made when they are first asked for."""

    @functools.cache
    def made(family):
        folder = tmp_path_factory.mktemp(family)
        file = recipes.written(family, folder)
        run = plait.train(file).folder
        trainer = recipes.trainer_of(file, folder / "out")
        trainer.train()
        return SimpleNamespace(family=family, folder=folder, file=file, run=run, trainer=trainer, out=folder / "out")

    return made


@pytest.fixture(params=sorted(recipes.CONFIGS))
def both(request, runs):
    return runs(request.param)


@pytest.fixture
def small(runs):
    """Of the family that trains fastest."""
    return runs("nanodit")


def equal(before, now, bits=False):
    """Whether two files hold the same weights, to 1e-6 or to the bit."""
    theirs, ours = load_file(before), load_file(now)
    return theirs.keys() == ours.keys() and all(
        torch.equal(theirs[name], ours[name]) if bits else torch.allclose(theirs[name], ours[name], rtol=0, atol=1e-6) for name in theirs
    )


def test_twenty_losses_norms_and_rates_are_the_engines(both):
    engine, ours = recipes.of_engine(both.run), recipes.of_trainer(both.trainer)
    assert [row["step"] for row in ours] == [row["step"] for row in engine] == [*range(1, 21)]
    for before, row in zip(engine, ours, strict=True):
        names = [name for name in before if name.startswith("loss") or name in ("samples", "tokens", "supervised_tokens")]
        assert len(names) > 2
        for name in names:
            assert row[name] == pytest.approx(before[name], abs=1e-6)  # the promise; on one layout they are equal to the bit
        assert row["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-6)
        assert row["learning_rate"] in [before[name] for name in before if name.startswith("lr/")]


def test_weights_and_averages_are_the_engines(both):
    (saved,) = both.run.glob("stage-*/step-00000020")
    pairs = {"weights": "model", **({"ema": "averages/ema"} if both.trainer.stage.config.optim.ema else {})}
    for theirs, ours in pairs.items():
        assert equal(saved / f"{theirs}.safetensors", both.out / "checkpoint-20" / f"{ours}.safetensors")


def test_a_saved_model_is_the_export_of_the_run(both, tmp_path):
    section = both.trainer.stage.bundle.section
    for _ in range(2):  # the second takes the place of the first
        both.trainer.save_model(str(tmp_path / "saved"))
    assert cli.main(["export", str(both.run), str(tmp_path / "exported"), "--to", section.whole or next(iter(section.layouts))]) == 0
    exported, saved = (sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("exported", "saved"))
    assert exported == saved
    theirs, ours = (json.loads((tmp_path / name / "passport.json").read_text())["claims"] for name in ("exported", "saved"))
    for claims in (theirs, ours):
        claims["stages"] = [{**stage, "folder": None, "manifest_xxh3": None} for stage in claims["stages"]]
        claims["checkpoint"] = {name: claims["checkpoint"][name] for name in ("step", "stage", "ended", "parameters", "frozen_xxh3")}
    assert all(theirs[name] == ours[name] for name in theirs if name not in ("run", "files"))
    weights = [path for path in exported if path.suffix == ".safetensors"]
    assert weights and all(equal(tmp_path / "exported" / path, tmp_path / "saved" / path) for path in weights)
    if both.family == "theworld":
        assert TheWorld.from_pretrained(tmp_path / "saved").generate(None, "Hello?", max_new_tokens=2) is not None


@pytest.mark.parametrize(("precision", "recomputed"), [("bf16", "full"), ("pure_bf16", "none")])
def test_precision_and_recomputation_are_those_of_the_configuration(small, tmp_path, precision, recomputed):
    changes = {"train": {"precision": precision, "steps": 4}, "optim": {"schedule": {"warmup_steps": 1}}, "run": str(tmp_path / "run")}
    changes |= {"distributed": {"activation_checkpointing": recomputed}, "checkpoint": {"every_steps": 2}}
    config = plait.load_config(small.file, **changes)
    engine = recipes.of_engine(plait.train(config).folder)
    for resumed in (None, str(tmp_path / "out/checkpoint-2")):
        trainer = recipes.trainer_of(config, tmp_path / "out")
        trainer.train(resume_from_checkpoint=resumed)
        assert [row["loss"] for row in recipes.of_trainer(trainer)] == pytest.approx([row["loss"] for row in engine], abs=1e-6)
        (saved,) = (tmp_path / "run").glob("stage-*/step-00000004")
        assert equal(saved / "weights.safetensors", tmp_path / "out/checkpoint-4/model.safetensors")


@pytest.mark.parametrize("beside", [[], ["projector"]])
def test_adapters_train_as_in_a_run_and_are_saved_alone_or_merged(tmp_path, beside):
    config = yaml.safe_load(recipes.written("theworld", tmp_path).read_text()) | {"evaluate": []}
    config |= {"adapters": {"language": {"kind": "lora", "rank": 2, "targets": "auto"}}, "trainable": [*beside, "language.lora"]}
    config |= {"optim": {"lr": 1e-2}, "train": {"steps": 2, "global_batch": 2}}
    run = plait.train(config).folder
    trainer = recipes.trainer_of(config, tmp_path / "out")
    trainer.train()
    assert [row["loss"] for row in recipes.of_trainer(trainer)] == pytest.approx([row["loss"] for row in recipes.of_engine(run)], abs=1e-6)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.save_model(str(tmp_path / "saved"))
    assert cli.main(["export", str(run), str(tmp_path / "exported"), "--to", "theworld" if beside else "peft"]) == 0
    name = "model.safetensors" if beside else "adapter_model.safetensors"
    assert equal(tmp_path / "exported" / name, tmp_path / "saved" / name)
    assert before.keys() == trainer.model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_evaluate_measures_the_held_out_loss_of_the_run(runs):
    both = runs("theworld")
    (row,) = [row for row in map(json.loads, (both.run / "metrics.jsonl").read_text().splitlines()) if "eval/loss" in row]
    figures = both.trainer.evaluate()
    assert figures["eval_loss"] == pytest.approx(row["eval/loss"], abs=1e-6) == figures["eval_loss/loss"]
    assert both.trainer.state.log_history[-1]["eval_loss"] == figures["eval_loss"]


def test_an_autocast_around_training_is_refused(small):
    line = r"^a trainer of plait runs outside of torch\.autocast"
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(plait.PlaitError, match=line):
        small.trainer.train()


def test_what_only_the_command_does_is_refused_by_its_methods(small):
    for method, words in (("predict", "does not predict: save_model"), ("push_to_hub", "does not push: save_model")):
        with pytest.raises(plait.PlaitError, match=words):
            getattr(small.trainer, method)()
    with pytest.raises(plait.PlaitError, match=r"give no eval_dataset$"):
        small.trainer.evaluate([1])


def test_a_record_of_several_steps_has_the_means_of_their_losses(small, tmp_path):
    trainer = recipes.trainer_of(small.file, tmp_path / "out", args={"logging_steps": 5})
    trainer.train()
    single = recipes.of_trainer(small.trainer)
    for number, row in enumerate(recipes.of_trainer(trainer)):
        steps = single[5 * number : 5 * number + 5]
        for name in ("loss", "loss/flow", "loss/t_mid"):
            values = [step[name] for step in steps if name in step]
            assert row[name] == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_the_best_model_is_loaded_at_the_end(small, tmp_path):
    held_out = {**small.trainer.stage.config.data.model_dump(mode="json")["train"][0], "split": "train"}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True, "max_steps": 6}
    given = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, **best}
    trainer = recipes.trainer_of(small.file, tmp_path / "out", args=given, data={"validation": [held_out]})
    trainer.train()
    figures = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    worst = max(figures, key=figures.get)
    assert len(figures) == 3 and trainer.state.best_model_checkpoint == str(tmp_path / f"out/checkpoint-{worst}")
    assert trainer.evaluate()["eval_loss"] == figures[worst]


def test_two_processes_of_accelerate_give_the_engines_losses_and_continue(small):
    command = [sys.executable, "-m", *LAUNCH, *QUIET, "--module", "tests.hf.launched", str(small.folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads((small.folder / "launched.json").read_text())
    assert told["processes"] == 2 and len(told["rows"]) == 20
    for before, row in zip(recipes.of_engine(small.run), told["rows"], strict=True):
        assert row["loss"] == pytest.approx(before["loss"], abs=1e-6)
        assert row["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-5)
    assert [row["loss"] for row in told["continued"]] == pytest.approx([row["loss"] for row in told["rows"]], abs=1e-6)
    for folder in ("launched", "launched-again"):
        assert equal(small.out / "checkpoint-20/model.safetensors", small.folder / folder / "checkpoint-20/model.safetensors")
    assert (small.folder / "launched-model/model_index.json").is_file()
    refused = "save_model: /proc/no/folder cannot be written (No such file or directory): give another folder"
    assert [(small.folder / f"refused-{rank}.txt").read_text() for rank in range(2)] == [refused] * 2


def test_training_continues_from_the_newest_whole_checkpoint_to_the_bit(small, tmp_path, caplog):
    first = recipes.trainer_of(small.file, tmp_path / "out")
    first.train()
    whole = (tmp_path / "out/checkpoint-20").rename(tmp_path / "whole")
    (tmp_path / "out/checkpoint-20").mkdir()
    again = recipes.trainer_of(small.file, tmp_path / "out")
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-20 lacks plait-files.json, which is written last: it is no whole checkpoint of a trainer of plait" in caplog.text
    assert recipes.of_trainer(again) == recipes.of_trainer(first)
    for name in ("model.safetensors", "averages/ema.safetensors"):
        assert equal(whole / name, tmp_path / "out/checkpoint-20" / name, bits=True)


def test_a_step_that_is_not_finite_ends_training_before_its_update(small, tmp_path):
    trainer = recipes.trainer_of(small.file, tmp_path / "out", callbacks=[Spoiled()])
    with pytest.raises(
        plait.PlaitError, match=r"^step 2 is not finite \(grad_norm = nan, grad_norm/embed = nan, .*\), stopped before the update; of its"
    ):
        trainer.train()
    assert trainer.state.global_step == 1


class Spoiled(TrainerCallback):
    """Puts a number that is none among the weights after the first step."""

    def on_step_end(self, args, state, control, model, **_):
        next(value for value in model.parameters() if value.requires_grad).data[0] = float("nan")


def test_a_stage_begins_from_the_checkpoint_of_the_one_before_as_in_a_run(tmp_path):
    config = yaml.safe_load(recipes.written("theworld", tmp_path).read_text())
    config |= {"stages": [{"name": "one", "trainable": ["projector"]}, {"name": "two", "trainable": ["projector", "vision"]}]}
    config["train"] |= {"steps": 2}
    config["checkpoint"] |= {"every_steps": None}
    engine = recipes.of_engine(plait.train(config).folder)
    for stage, wanted, started in (("one", engine[:2], {}), ("two", engine[2:], {"from": str(tmp_path / "one" / "checkpoint-2")})):
        trainer = recipes.trainer_of(config, tmp_path / stage, stage=stage, **started)
        trainer.train()
        rows = recipes.of_trainer(trainer)
        assert rows[0]["loss"] == pytest.approx(wanted[0]["loss"], abs=1e-6) and len(rows) == 2


SETTINGS = {
    "learning_rate": (3e-4, lambda config: config.optim.lr, 3e-4),
    "max_grad_norm": (0, lambda config: config.train.grad_clip, None),
    "max_steps": (7, lambda config: config.train.steps, 7),
    "num_train_epochs": (2.0, lambda config: (config.train.epochs, config.train.steps), (2, None)),
    "lr_scheduler_type": ("constant_with_warmup", lambda config: config.optim.schedule.name, "constant"),
    "warmup_steps": (0.25, lambda config: config.optim.schedule.warmup, 0.25),
    "bf16": (True, lambda config: config.train.precision, "bf16"),
    "seed": (9, lambda config: config.seed, 9),
    "per_device_train_batch_size": (1, lambda config: config.train.micro_batch, 1),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_argument_of_transformers_sets_what_it_means_here(small, name):
    value, read, wanted = SETTINGS[name]
    overrides = arguments.settings_of({name: value}, 1)
    assert read(plait.load_config(small.file, **overrides).config) == wanted


def test_arguments_are_honoured_and_told_by_the_trainer(small, tmp_path):
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "adam_beta1": 0.8, "adam_beta2": 0.9}
    given = {"max_steps": 5, "logging_steps": 2, "save_strategy": "no", "learning_rate": 2e-3, **sizes}
    trainer = recipes.trainer_of(plait.load_config(small.file), tmp_path / "out", args=given, optim={"ema": None})
    trainer.train()
    args, groups = trainer.args, trainer.optimizer.param_groups
    assert (args.max_steps, args.per_device_train_batch_size, args.gradient_accumulation_steps, args.learning_rate) == (5, 1, 3, 2e-3)
    assert (trainer.stage.config.train.global_batch, groups[0]["betas"], groups[0]["peak"]) == (3, (0.8, 0.9), 2e-3)
    assert [(row["step"], row["samples"]) for row in recipes.of_trainer(trainer)] == [(2, 6), (4, 12)] and trainer.state.global_step == 5
    assert not list((tmp_path / "out").glob("checkpoint-*"))


STAGES = [{"name": "one"}, {"name": "two"}]
REFUSED = [
    ({"args": {"learning_rat": 1}}, "args: 'learning_rat' is no field of transformers' TrainingArguments: did you mean learning_rate?"),
    ({"args": {"fp16": True}}, "args: fp16 is not taken: float16 is trained by `plait train` alone, which takes a step again where it"),
    ({"args": {"optim": "adafactor"}}, "args: optim is not taken: the optimizer is that of the setting `optim.name`"),
    ({"args": {"label_smoothing_factor": 0.1}}, "args: label_smoothing_factor is not taken: model, data and optimizer are those of the"),
    ({"args": {"save_strategy": "epoch"}}, 'args: save_strategy "epoch" is not taken: an epoch of the data need not end with a step'),
    ({"args": {"adam_beta1": 0.9}}, "args: adam_beta1 needs adam_beta2 beside it: together they set optim.betas"),
    ({"args": {"lr_scheduler_type": "polynomial"}}, "args: lr_scheduler_type 'polynomial' is no schedule of plait: known: constant_with"),
    ({"args": {"learning_rate": "fast"}}, "command line: optim.lr must be a number, got 'fast'"),
    ({"args": {"bf16": 1}}, "args: bf16 is to be True or False, and is the int 1"),
    ({"args": TrainingArguments(output_dir="x")}, "plait.hf.trainer: `args` is to be a dict of fields of TrainingArguments: of an object"),
    ({"args": {"deepspeed": {"zero_optimization": {"stage": 2}}}}, "args has deepspeed, which needs the package deepspeed: pip install"),
    ({"args": {"eval_strategy": "steps"}}, "args: eval_strategy measures held-out data, and there is none: list some under data."),
    ({"stage": "two"}, "trainer(stage='two'): the configuration has no such stage; it has train"),
    (
        {"stages": [{"name": "one"}, {"name": "two"}]},
        "the configuration has the stages one, two, and a trainer trains one: say stage='one'",
    ),
    (
        {"stages": [{"name": "one"}, {"name": "two"}], "stage": "two"},
        "stage 'two' comes after 'one': give its weights, **{'from': ...}, a run",
    ),
    ({"optim": {"offload": True}}, "optim.offload has no counterpart in a Trainer of transformers: leave it out, or use `plait train`"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_a_trainer_cannot_do_is_refused_in_a_line(small, options, message, monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "deepspeed" else object())
    with pytest.raises(plait.PlaitError) as told:
        plait.hf.trainer(small.file, **options)
    assert str(told.value).startswith(message) and "\n" not in str(told.value)


def test_a_missing_accelerate_is_told(small, monkeypatch):
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(plait.PlaitError, match=r"^plait.hf.trainer needs the package accelerate: pip install 'plait\[trainer\]'$"):
        plait.hf.trainer(small.file)


def test_a_launch_of_several_processes_that_started_one_is_told(small, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(plait.PlaitError, match=r"^accelerate launch was asked for several processes and started one, as it does on CPUs"):
        plait.hf.trainer(small.file)


def test_a_precision_of_accelerate_that_is_not_the_configurations_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(plait.PlaitError, match=r"^accelerate is set to mixed precision bf16, and train.precision is fp32: start with"):
        recipes.trainer_of(small.file, tmp_path / "out")


def test_settings_that_a_trainer_does_without_are_named(small, tmp_path, caplog):
    recipes.trainer_of(small.file, tmp_path / "out", evaluate=[{"bench": "loss", "data": [{"source": "scenes"}]}], guard={"spikes": "skip"})
    assert "a Trainer of transformers does without evaluate, guard.spikes, guard.blindness, track.monitor, which `plait train` has" in [
        record.message for record in caplog.records
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim.lr": 1e-5}, "was trained with other settings (optim.lr: 0.001 -> 1e-05): undo that, or begin from its weights with from"),
        ({"seed": 4}, "was trained with other settings (seed: 0 -> 4): undo that"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_continued(small, tmp_path, change, message):
    trainer = recipes.trainer_of(small.file, tmp_path / "out", **change)
    with pytest.raises(plait.PlaitError) as told:
        trainer.train(resume_from_checkpoint=str(small.out / "checkpoint-10"))
    assert str(told.value).removeprefix(f"{small.out / 'checkpoint-10'} ").startswith(message)


def test_a_run_of_plait_is_no_folder_for_a_trainer(small):
    with pytest.raises(plait.PlaitError, match="is a run of plait, which `plait train` continues: give args="):
        recipes.trainer_of(small.file, small.run)


def test_deepspeed_is_given_the_sizes_of_the_configuration(small, monkeypatch):
    pytest.importorskip("deepspeed", reason="it compiles, and is in no extra")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    given = {"zero_optimization": {"stage": 3}, **dict.fromkeys(sizes, "auto")}
    made = arguments.training_arguments(plait.load_config(small.file).config, {"deepspeed": given}, 1)
    assert [made.hf_deepspeed_config.config[name] for name in sizes] == [2, 2, 1.0] and not made.bf16
    with arguments.whole_models(made):
        assert not is_deepspeed_zero3_enabled()
