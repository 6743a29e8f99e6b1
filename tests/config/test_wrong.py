"""Wrong configurations, each with the one line that it gives."""

import pytest

from plait.config.load import load_config
from plait.errors import PlaitError

from .conftest import BASE

TOP = "run, seed, family, preset, model, trainable, adapters, stages, from, data, train"
TOP += ", optim, checkpoint, evaluate, track, distributed, guard, alert, hub"
SECRET = "looks like a secret, which no file or command line may hold: remove it and set the environment variable"
STAGES = BASE + "stages:\n  - name: a\n"

YAML = {
    "optm: {lr: 1}": "x.yaml:5: optm is not a key: did you mean optim?",
    "optim:\n  lrr: 1e-4": "x.yaml:6: optim.lrr is not a key: did you mean optim.lr?",
    "lr: 1e-4": "x.yaml:5: lr is not a key: did you mean optim.lr?",
    "zzz: 1": f"x.yaml:5: zzz is not a key: known: {TOP}",
    "from_: a": "x.yaml:5: from_ is not a key: did you mean from?",
    "optim: {lr: fast}": "x.yaml:5: optim.lr must be a number, got 'fast'",
    "optim: {lr: -1}": "x.yaml:5: optim.lr must be greater than 0, got -1",
    "optim: {lr: .nan}": "x.yaml:5: optim.lr must be a finite number, got NaN",
    "optim: 3": "x.yaml:5: optim must be a mapping, got 3",
    "optim: {betas: [0.9]}": "x.yaml:5: optim.betas.1 is missing",
    "optim: {betas: [0.9, 1]}": "x.yaml:5: optim.betas.1 must be less than 1, got 1",
    "optim: {ema: {decay: 1.0}}": "x.yaml:5: optim.ema.decay must be less than 1, got 1.0",
    "seed: yes": "x.yaml:5: seed must be a whole number, got true",
    "seed: 1.5": "x.yaml:5: seed must be a whole number, got 1.5",
    "run: 123": "x.yaml:5: run must be text, got 123: put it in quotes",
    "track: {tensorboard: 1}": "x.yaml:5: track.tensorboard must be true or false, got 1",
    "checkpoint: {every_steps: -5}": "x.yaml:5: checkpoint.every_steps must be greater than or equal to 1, got -5",
    "optim: {schedule: {warmup: 1.0}}": "x.yaml:5: optim.schedule.warmup must be less than 1, got 1.0",
    "optim: {schedule: {warmup: 0.1, warmup_steps: 5}}": "x.yaml:5: optim.schedule.warmup is set beside warmup_steps: keep one",
    "optim: {schedule: {name: constant, units: tokens, warmup: 0.1}}": (
        "x.yaml:5: optim.schedule.warmup is a share of decay_tokens, which is not set: set it, or warmup_tokens"
    ),
    "optim: {schedule: {warmup_steps: 100}}": (
        "x.yaml:5: optim.schedule.warmup_steps is 100, but the stage has 100 steps: warm up for fewer, or train longer"
    ),
    "optim: {schedule: {min_lr: 1}}": "x.yaml:5: optim.schedule.min_lr is 1.0, above the peak optim.lr 0.0001: lower it",
    "optim: {schedule: {name: cosin}}": (
        "x.yaml:5: optim.schedule.name must be 'constant', 'linear', 'cosine' or 'inverse_sqrt', got 'cosin': did you mean 'cosine'?"
    ),
    "adapters: {language: {targets: []}}": (
        "x.yaml:5: adapters.language.targets: an empty list gives adapters to no layer: name linear layers, as q_proj, or auto"
    ),
    "hub: {repo: someone/a--b}": (
        "x.yaml:5: hub.repo: is 'someone/a--b', which is no repository of the Hub: no name has -- or .. in it, or .git at its end"
    ),
    "seed: 1\nseed: 2": "x.yaml:6: seed is set twice, first on line 5: keep one",
    "optim:\n\tlr: 1": ("x.yaml:6: invalid YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs"),
    "seed: [1": "x.yaml:6: invalid YAML: expected ',' or ']', but got '<stream end>'",
    "run: !!python/name:os.system": "x.yaml:5: invalid YAML: run has the tag 'os.system', and tags mean nothing here",
    "guard: &g {audit: *g}": "x.yaml:5: invalid YAML: guard.audit contains itself through an alias",
    "preset: small": "x.yaml:5: preset 'small' is not one of family 'theworld': known: none",
    "trainable: []": "x.yaml:5: trainable is empty, so nothing would train: name components, or '*'",
    "evaluate: [{bench: loss}]": ("x.yaml:5: evaluate.0 measures 'loss' on nothing: name sources in data.validation or evaluate.0.data"),
    "learning_rate: 1e-4": (
        "x.yaml:5: learning_rate belongs to the flat dialect, but family (line 1) is plait's own, "
        "and a file speaks one of them: write it as optim.lr"
    ),
    "optim: {lrr: 1}\ntrack: {evry: 1}\nguard: 3": (
        "x.yaml:5: optim.lrr is not a key: did you mean optim.lr? (and 2 more problems in this configuration)"
    ),
    "optim: {lrr: 1}\nguard: 3": "x.yaml:5: optim.lrr is not a key: did you mean optim.lr? (and 1 more problem in this configuration)",
    "hf_token: abc": f"x.yaml:5: hf_token {SECRET} HF_TOKEN",
    "track: {wandb: {project: p, api_key: abc}}": f"x.yaml:5: track.wandb.api_key {SECRET} WANDB_API_KEY",
    "run: hf_abcdefghijklmnopqrstuvwxyz": f"x.yaml:5: run {SECRET} HF_TOKEN",
    "stages: {name: a}": 'x.yaml:5: stages must be a list, got {"name": "a"}',
    "stages: [a]": "x.yaml:5: stages.0 must be a mapping, got 'a'",
    "stages:\n  - train: {steps: 3}": "x.yaml:6: stages.0.name is missing",
    "stages:\n  - {name: a b}": "x.yaml:6: stages.0.name must be text that matches '^[A-Za-z0-9][A-Za-z0-9._-]*$', got 'a b'",
    "stages:\n  - {name: a}\n  - {name: a}": "x.yaml:7: stages.1.name is 'a', as is that of stage 1: rename one",
    "stages:\n  - name: a\n    optm: {lr: 3}": "x.yaml:7: stages.0.optm is not a key: did you mean stages.0.optim?",
    "stages:\n  - name: a\n    model: {}": "x.yaml:7: stages.0.model is not a key: model is the same in all stages; set it outside them",
    "stages:\n  - name: a\n    train: {stepz: 3}": "x.yaml:7: stages.0.train.stepz is not a key: did you mean stages.0.train.steps?",
    "stages:\n  - name: a\n    train: {steps: -3}": "x.yaml:7: stages.0.train.steps must be greater than or equal to 1, got -3",
    "stages:\n  - {name: a, train: {steps: 0}}": (
        "x.yaml:6: stages.0.train.steps must be greater than or equal to 1, got 0: leave a stage that trains nothing out of stages"
    ),
    "stages:\n  - {name: a, train: null}": "x.yaml:6: stages.0.train must be a mapping, got null",
}
YAML |= {
    "distributed: {strategy: fdsp}": (
        "x.yaml:5: distributed.strategy must be 'auto', 'ddp', 'fsdp', 'shard_grad_op' or 'hsdp', got 'fdsp': did you mean 'fsdp'?"
    ),
    "distributed: {shard_size: 2}": ("x.yaml:5: distributed.shard_size is for strategy hsdp, not auto: leave it out, or set strategy=hsdp"),
    "distributed: {strategy: fsdp, ddp_comm_hook: bf16}": (
        "x.yaml:5: distributed.ddp_comm_hook is 'bf16', which is for the gradients of ddp, not fsdp: leave it out, or set strategy=ddp"
    ),
    "distributed: {strategy: ddp, frozen: shard}": (
        "x.yaml:5: distributed.frozen says how to shard, but strategy ddp never does: leave it out, or set another strategy"
    ),
    "distributed: {strategy: ddp, gradient_sync: micro_batch}": (
        "x.yaml:5: distributed.gradient_sync says how to shard, but strategy ddp never does: leave it out, or set another strategy"
    ),
    "distributed: {strategy: ddp, memory_gb: 2}": (
        "x.yaml:5: distributed.memory_gb says how to shard, but strategy ddp never does: leave it out, or set another strategy"
    ),
}
REPLACED = {
    ("steps: 100", "steps: 100, precision: pure_bf16}\ndistributed: {ddp_comm_hook: bf16"): (
        "x.yaml:5: distributed.ddp_comm_hook is 'bf16', as gradients are under train.precision=pure_bf16 anyway: leave it out"
    ),
    ("theworld", "thewrld"): "x.yaml:1: family 'thewrld' is unknown: known: theworld",
    ("family: theworld\n", ""): "x.yaml:1: family is missing",
    ("base: tiny", "bass: tiny"): "x.yaml:2: model.bass is not a key: did you mean model.base?",
    ("base: tiny", "world: {tokens: poled}"): (
        "x.yaml:2: model.world.tokens must be 'pooled', 'spatial' or 'channel', got 'poled': did you mean 'pooled'?"
    ),
    ("base: tiny", "world: {step: 3}"): "x.yaml:2: model.world.step is not a key: did you mean model.world.steps?",
    ("base: tiny", "world: {steps: 20}"): "x.yaml:2: model.world: steps is 20, more than max_steps, 16",
    ("{base: tiny}", "[tiny]"): 'x.yaml:2: model must be a mapping, got ["tiny"]',
    ("source: scenes", "source: shard"): (
        "x.yaml:3: data.train.0.source must be 'shards', 'folder', 'jsonl', 'datasets', 'dataset', 'latents', 'nlvr' or 'scenes', "
        "got 'shard': did you mean 'shards'?"
    ),
    (
        "source: scenes",
        "path: x",
    ): "x.yaml:3: data.train.0.source is missing: one of shards, folder, jsonl, datasets, dataset, latents, nlvr, scenes",
    ("source: scenes", "source: shards"): "x.yaml:3: data.train.0 of source 'shards' needs a path",
    ("source: scenes", "source: datasets"): "x.yaml:3: data.train.0 of source 'datasets' needs either a name on the Hub or a path",
    ("{source: scenes}", ""): "x.yaml:3: data.train names no source: for example data.train=[{source: scenes}]",
    ("steps: 100", "steps: -5"): "x.yaml:4: train.steps must be greater than or equal to 1, got -5",
    ("steps: 100", "steps: 0"): (
        "x.yaml:4: train.steps must be greater than or equal to 1, got 0: `plait eval --base CONFIG --bench NAME` measures a model before "
        "its first step"
    ),
    ("steps: 100", "epochs: 0"): (
        "x.yaml:4: train.epochs must be greater than 0, got 0: `plait eval --base CONFIG --bench NAME` measures a model before its first "
        "step"
    ),
    ("steps: 100", "steps: 100, epochs: 1"): "x.yaml:4: train sets steps and epochs: keep one",
    ("steps: 100", "global_batch: 3"): "x.yaml:4: train does not say how long: set one of steps, epochs, samples",
    ("steps: 100", "steps: 9, micro_batch: 3"): (
        "x.yaml:4: train.micro_batch is 3, not a divisor of train.global_batch 8: for example train.global_batch=6"
    ),
}
COMMANDS = {
    "--optim.lrr=1": "command line: optim.lrr is not a key: did you mean optim.lr?",
    "--model.bass=x": "command line: model.bass is not a key: did you mean model.base?",
    "--stages.0.train.stepz=1": "command line: stages.0.train.stepz is not a key: did you mean stages.0.train.steps?",
    "--optim.lr=fast": "command line: optim.lr must be a number, got 'fast'",
    "--optim.lr": "command line: --optim.lr sets nothing: write --key=value, such as --optim.lr=3e-6",
    "--seed.x=3": 'command line: seed must be a whole number, got {"x": 3}',
    "--optim={lr: [": "command line: the value of optim is not YAML: quote it, as in --optim=\"'...'\"",
    "--data.train.1.path=x": (
        "command line: data.train has no entry 1: it has 1, counted from 0; set the whole list with --data.train=[...]"
    ),
    "--data.validation.0.path=x": "command line: data.validation has no entry 0: set the whole list with --data.validation=[...]",
    "--distributed.activation_checkpointing=one_in_n": (
        "command line: distributed.activation_checkpointing is 'one_in_n' without its n: set distributed.checkpoint_one_in, for example 4"
    ),
    "--distributed.checkpoint_one_in=4": (
        "command line: distributed.checkpoint_one_in is 4, but distributed.activation_checkpointing is 'none': set that to one_in_n"
    ),
    "--distributed.compile_dynamic=true": (
        "command line: distributed.compile_dynamic is True, but nothing is compiled: set distributed.compile=true as well"
    ),
    "--distributed={compile: true, compile_backend: aot_eager, compile_mode: max-autotune}": (
        "command line: distributed.compile_mode is 'max-autotune', which only inductor knows, and the backend is 'aot_eager': drop one"
    ),
    "--optim.muon.momentum=0.9": ("command line: optim.muon is set, but optim.name is adamw: set optim.name=muon as well, or leave it out"),
    "--optim.components.projector.muon=true": (
        "command line: optim.components.projector.muon is set, but optim.name is adamw: set optim.name=muon as well, or leave it out"
    ),
    "--optim={name: muon, offload: true}": ("command line: optim.offload is for AdamW, and optim.name is muon: leave one of them out"),
    "--stages.0={name: a, optim: {name: adamw8bit}, distributed: {strategy: fsdp}}": (
        "command line: stages.0.distributed.strategy is fsdp, but moments of adamw8bit are whole on each rank: "
        "set distributed.strategy=ddp, or optim.name=adamw"
    ),
    "--stages.0={name: a, optim: {name: muon}, train: {precision: pure_bf16}}": (
        "command line: stages.0.train.precision is pure_bf16, whose updates are rounded by chance, those of AdamW alone: "
        "set bf16, or optim.name=adamw, not muon"
    ),
    "--wandb_api_key=abc": f"command line: wandb_api_key {SECRET} WANDB_API_KEY",
    "--run=hf_abcdefghijklmnopqrstuvwxyz": f"command line: run {SECRET} HF_TOKEN",
    "hf_abcdefghijklmnopqrstuvwxyz": f"command line: this argument {SECRET} HF_TOKEN",
}
JSON = {
    '{"seed": 1,, }': "x.json:1: invalid JSON: expected a key in double quotes or }, got ,",
    '{\n"seed" 1}': "x.json:2: invalid JSON: expected a colon after 'seed'",
    '{"seed": nope}': "x.json:1: invalid JSON: expected a number, true, false, null or text in double quotes",
    '{"seed": 1': "x.json:1: invalid JSON: expected a comma or }, got the end of the file",
    '{"seed": 1} 2': "x.json:1: invalid JSON: expected the end of the file",
    "[1]": "x.json: the top of a configuration is a mapping of keys, but this file holds a list",
    '{"seed": 1,\n"seed": 2}': "x.json:2: seed is set twice, first on line 1: keep one",
}


@pytest.mark.parametrize("lines", YAML)
def test_wrong_yaml_gives_one_line(load, lines: str) -> None:
    with pytest.raises(PlaitError) as caught:
        load(BASE + lines + "\n")
    assert str(caught.value) == YAML[lines]


@pytest.mark.parametrize("change", REPLACED)
def test_wrong_value_gives_one_line(load, change: tuple[str, str]) -> None:
    with pytest.raises(PlaitError) as caught:
        load(BASE.replace(*change))
    assert str(caught.value) == REPLACED[change]


@pytest.mark.parametrize("argument", COMMANDS)
def test_wrong_argument_gives_one_line(load, argument: str) -> None:
    with pytest.raises(PlaitError) as caught:
        load(STAGES, argument)
    assert str(caught.value) == COMMANDS[argument]


@pytest.mark.parametrize("text", JSON)
def test_wrong_json_gives_one_line(load, text: str) -> None:
    with pytest.raises(PlaitError) as caught:
        load(text, name="x.json")
    assert str(caught.value) == JSON[text]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cnf.yaml", "cnf.yaml: no such file; did you mean conf.yaml?"),
        ("other/x.yaml", "other/x.yaml: no such file; other holds no configuration"),
        ("conf.toml", "conf.toml: a configuration is a .yaml, .yml or .json file"),
        ("folder.yaml", "folder.yaml: cannot be read: Is a directory"),
        ("bytes.yaml", "bytes.yaml: not UTF-8 text (byte 6): is it a configuration?"),
        ("empty.yaml", "empty.yaml: the top of a configuration is a mapping of keys, but this file holds nothing"),
        ("../outside.yaml", "../outside.yaml: no such file; .. holds no configuration"),
    ],
)
def test_wrong_file_gives_one_line(tmp_path, monkeypatch, name: str, message: str) -> None:

    inside = tmp_path / "a"
    (inside / "folder.yaml").mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "conf.yaml").write_text(BASE)
    (inside / "bytes.yaml").write_bytes(b"seed: \xff")
    (inside / "empty.yaml").write_text("")
    with pytest.raises(PlaitError) as caught:
        load_config(name, model_config=None, preset=None, sources={})
    assert str(caught.value) == message


def test_wrong_preset_names_its_own_line(load) -> None:
    with pytest.raises(PlaitError, match=r"^small.yaml:2: optim.lrr is not a key: did you mean optim.lr\?$"):
        load(BASE + "preset: small\n", preset="seed: 1\noptim: {lrr: 1}\n")
    with pytest.raises(PlaitError, match=r"^small.yaml:1: a preset cannot stand on another preset$"):
        load(BASE + "preset: small\n", preset="preset: other\n")


def test_wrong_secret_is_never_repeated(load) -> None:
    for argument in ("--hub_token=sesame", "--track.wandb.password=sesame", "--run=https://me:sesame@host/x", "--hf-token=sesame"):
        with pytest.raises(PlaitError, match="looks like a secret") as caught:
            load(BASE, argument)
        assert "sesame" not in str(caught.value)
