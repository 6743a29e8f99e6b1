"""`plait why`: causes that were planted are named first, a run without any is left alone, and what is told is what the clocks said."""

import json
import logging
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from plait import cli, files
from plait.config.schema import RunConfig
from plait.engine.checkpoints.checkpoint import published
from plait.engine.monitoring import reporter
from plait.engine.optimizers.fused_adamw import FusedAdamW
from plait.engine.parallel import distributed
from plait.families import registry
from plait.training.monitor import causes, device_speed
from plait.training.monitor.device_speed import measure
from plait.training.monitor.window import PARTS
from tests import processes
from tests import toy_family as toy

PLAIN = (
    "stages=[]",
    "trainable=[projector,vision,language]",
    "checkpoint.every_steps=null",
    "checkpoint.best=null",
    "evaluate=[]",
    "optim.ema=null",
    "guard.no_gradient=continue",
)
LONG = 24
"""Steps of a run."""


class Wide(toy.Net):
    """The toy, with passes that take some milliseconds, so that the rest of a step is little beside them."""

    passes = 6

    def __init__(self, width, seed):
        super().__init__(width, seed)
        torch.manual_seed(seed % 2**63)
        self.work = torch.randn(256, 256) / 16

    def forward(self, batch):
        waste = batch["x"].sum() * torch.ones(512, 256)
        for _ in range(self.passes):
            waste = torch.tanh(waste @ self.work)
        return super().forward(batch) + 0.0 * waste.sum()


def family(monkeypatch, **members):
    """Put a toy with these members in theworld's place."""
    changed = replace(toy.FAMILY, **{"build": lambda section, directory, *, seed: Wide(section.width, seed), **members})
    monkeypatch.setattr(registry, "load", lambda name: changed)


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    path = toy.install(monkeypatch, tmp_path)
    family(monkeypatch)
    return path


def why(run, capsys, *options):
    """What `plait why --json` says of a run."""
    capsys.readouterr()
    assert cli.main(["why", str(run), "--json", *options]) == 0
    reporter.for_programs(False)  # as before, for tests that come later
    return json.loads(capsys.readouterr().out)


def first_cause(recipe, run, capsys, *settings, steps=LONG, **options):
    toy.train(recipe, run, *PLAIN, f"train.steps={steps}", *settings, **options)
    return why(run, capsys)["causes"][0]


def slow(seconds, of=lambda sample: True):
    """Inputs that take so long for a sample."""

    class Slow(toy.Inputs):
        def encode(self, sample, key):
            if of(sample):
                time.sleep(seconds)
            return super().encode(sample, key)

    return Slow


def test_a_run_without_a_cause_is_left_alone(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plait.engine.monitoring.heartbeat.time.monotonic", time.process_time)  # what else runs here takes none of it
    monkeypatch.setattr(Wide, "passes", 30)
    toy.train(recipe, tmp_path / "run", *PLAIN, f"train.steps={LONG}")
    told = why(tmp_path / "run", capsys)
    assert told["causes"] == []
    window, seconds = told["window"], told["window"]["seconds"]
    assert window["steps"] == LONG - 1 and (window["first"], window["last"]) == (1, LONG)
    assert told["seconds_per_step"] == pytest.approx(sum(seconds[part] for part in PARTS))
    assert seconds["forward"] + seconds["backward"] > 0.5 * told["seconds_per_step"]


def test_too_few_workers_are_named_with_their_number(recipe, tmp_path, capsys, monkeypatch):
    family(monkeypatch, Inputs=slow(0.01))
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    cause = first_cause(recipe, tmp_path / "run", capsys)
    assert cause["what"] == "data" and cause["share"] > 0.3
    assert cause["cure"].startswith("--data.workers=") and "(0 workers, 16 cores)" in cause["text"]


def test_a_slow_source_is_named(recipe, tmp_path, capsys, monkeypatch):
    family(monkeypatch, Inputs=slow(0.04, lambda sample: "held" in str(sample["id"])))
    two = f"data.train=[{{source: jsonl, path: {tmp_path}/train.jsonl}}, {{source: jsonl, path: {tmp_path}/held.jsonl}}]"
    cause = first_cause(recipe, tmp_path / "run", capsys, two, "data.workers=1")
    assert cause["what"] == "source jsonl:held.jsonl" and cause["share"] > 0.1
    assert "a sample of jsonl:held.jsonl takes 0.0" in cause["text"]


_SLOW_S = {Wide: 0.12, nn.Linear: 0.04}
"""What the slow rank sleeps in a forward pass, of which there is one of the model, and three of layers: far more than others disturb."""


def slow_rank(recipe, run, strategy, slow):
    def forward(self, *inputs, usual=slow.forward):
        time.sleep(_SLOW_S[slow] if torch.distributed.get_rank() == 1 else 0.0)
        return usual(self, *inputs)

    slow.forward = forward
    toy.train(recipe, run, *PLAIN, f"train.steps={LONG}", f"distributed.strategy={strategy}")


@pytest.mark.parametrize(("strategy", "slow"), [("ddp", Wide), ("fsdp", Wide), ("fsdp", nn.Linear)])
def test_a_slow_rank_is_named(recipe, tmp_path, capfd, strategy, slow):
    assert processes.codes(processes.start(2, slow_rank, recipe, tmp_path / "run", strategy, slow)) == [0, 0]
    told = why(tmp_path / "run", capfd)
    cause, (own, of_slow) = told["causes"][0], told["window"]["ranks"]["forward"]
    assert cause["what"] == "ranks" and cause["share"] > 0.3
    assert cause["text"].startswith(f"the others wait for rank 1: its forward passes take {of_slow:.3g} s a step, ")
    assert of_slow > own + 0.05


def test_batches_that_take_long_to_be_copied_are_named(recipe, tmp_path, capsys, monkeypatch):
    usual = distributed.to_device
    monkeypatch.setattr(distributed, "to_device", lambda *given: (time.sleep(0.02), usual(*given))[1])
    cause = first_cause(recipe, tmp_path / "run", capsys)
    assert cause["what"] == "copy" and cause["share"] > 0.15
    assert cause["text"].startswith("batches take 0.02")


class Attending(toy.Net):
    """The toy behind an attention of 256 positions, with a mask that is a tensor."""

    def forward(self, batch):
        query = batch["x"].sum() * torch.ones(1, 2, 256, 32)
        mask = torch.ones(256, 256, dtype=torch.bool).tril()
        for _ in range(6):
            query = F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
        return super().forward(batch) + 0.0 * query.sum()


def test_dense_masks_are_named(recipe, tmp_path, capsys, monkeypatch):
    family(monkeypatch, build=lambda section, directory, *, seed: Attending(section.width, seed))
    cause = first_cause(recipe, tmp_path / "run", capsys, "data.max_tokens=256")
    assert (cause["what"], cause["cure"]) == ("dense masks", "--data.max_tokens=128")


class Padded(toy.Loss):
    """A loss that counts a token a sample, of the four positions that are computed."""

    counts = ("tokens",)

    def weights(self, batch):
        return {**super().weights(batch), "tokens": torch.tensor(float(len(batch["y"])), dtype=torch.float64)}

    positions = "x"


@pytest.mark.parametrize(("pad", "cure"), [("to_max", "--data.pad=longest"), ("longest", "--train.micro_batch=2")])
def test_padding_is_named(recipe, tmp_path, capsys, monkeypatch, pad, cure):
    family(monkeypatch, Loss=Padded)
    cause = first_cause(recipe, tmp_path / "run", capsys, f"data.pad={pad}", "data.max_tokens=64")
    assert (cause["what"], cause["cure"]) == ("padding", cure)
    assert cause["text"].startswith("75% of the positions that are computed are padding")


class Growing(toy.Inputs):
    """Batches of which every one has another length."""

    seen = 0

    def collate(self, examples):
        Growing.seen += 1
        batch = super().collate(examples)
        return {**batch, "x": batch["x"][:, None].expand(-1, 2 + Growing.seen // 4, 4)}


class OfSequences(toy.Net):
    def forward(self, batch):
        return super().forward(batch).mean(-1)


class Unlike(toy.Inputs):
    """Batches of which those of the second rank have three times as many positions."""

    def collate(self, examples):
        batch = super().collate(examples)
        return {**batch, "x": batch["x"][:, None].expand(-1, 12 if os.environ["RANK"] == "1" else 4, 4)}


class ByPosition(OfSequences):
    def forward(self, batch):
        time.sleep(5e-4 * batch["x"].numel())
        return super().forward(batch)


class Full(Padded):
    """A loss in which every position is a token."""

    def weights(self, batch):
        return {**super().weights(batch), "tokens": torch.tensor(float(batch["x"].numel()), dtype=torch.float64)}


def unlike_ranks(recipe, run):
    toy.train(recipe, run, *PLAIN, "train.steps=8", "distributed.strategy=ddp")


def test_a_rank_that_is_given_more_than_the_others_is_named(recipe, tmp_path, capfd, monkeypatch):
    family(monkeypatch, Inputs=Unlike, Loss=Full, build=lambda section, directory, *, seed: ByPosition(section.width, seed))
    assert processes.codes(processes.start(2, unlike_ranks, recipe, tmp_path / "run")) == [0, 0]
    cause = why(tmp_path / "run", capfd)["causes"][0]
    assert cause["what"] == "unbalanced ranks" and cause["share"] > 0.3
    assert cause["text"].startswith("the others wait for rank 1: ") and cause["text"].endswith("as it has 3 times their positions")


@pytest.mark.parametrize(("longest", "cure"), [(None, "--data.max_tokens=512"), (512, "")])
def test_ranks_of_packed_rows_are_balanced_by_cutting_what_is_longer_than_a_row(longest, cure):
    config = RunConfig.model_validate({"family": "molmo", "data": {"pad": "none", "pack_tokens": 512, "max_tokens": longest}})
    stage = SimpleNamespace(view=SimpleNamespace(config=config), override=lambda name, value: f"--{name}={value}")
    assert causes._balanced(None, stage) == cure


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_blocks_that_are_compiled_again_are_named(recipe, tmp_path, capsys, monkeypatch):
    family(monkeypatch, Inputs=Growing, build=lambda section, directory, *, seed: OfSequences(section.width, seed))
    compiled = "distributed={compile: true, compile_backend: aot_eager, compile_dynamic: false}"
    cause = first_cause(recipe, tmp_path / "run", capsys, compiled, "track.every_steps=2", steps=40)
    assert (cause["what"], cause["cure"]) == ("compiling", "--distributed.compile_dynamic=true")
    window = why(tmp_path / "run", capsys)["window"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds, share = window["compiling"]
    assert cause["share"] == window["recompiling"] / sum(window["seconds"].values()) > 0
    assert rows[-1]["compile_s"] > rows[0]["compile_s"] > 0
    assert seconds == pytest.approx(rows[-1]["compile_s"], abs=0.01) and seconds >= window["recompiling"] * window["steps"]
    assert cli.main(["why", str(tmp_path / "run")]) == 0
    told = f"  compiling took {seconds:.3g} s of the stage so far, {share:.1%} of the time of its steps"
    assert told in capsys.readouterr().out.splitlines()


def test_small_micro_batches_are_named(recipe, tmp_path, capsys):
    cause = first_cause(recipe, tmp_path / "run", capsys, "train={global_batch: 16, micro_batch: 1}", "track.every_steps=4")
    assert (cause["what"], cause["cure"]) == ("micro-batches", "--train.micro_batch=16")


def test_evaluations_are_named(recipe, tmp_path, capsys):
    cause = first_cause(recipe, tmp_path / "run", capsys, "evaluate=[{bench: loss, every_steps: 1, batch: 1}]")
    assert cause["what"] == "evaluation" and cause["share"] > 0.3
    assert int(cause["cure"].removeprefix("--evaluate.0.every_steps=")) > 20


def test_checkpoints_are_named(recipe, tmp_path, capsys):
    cause = first_cause(recipe, tmp_path / "run", capsys, "checkpoint.every_steps=1", "checkpoint.keep=3")
    assert cause["what"] == "checkpoints" and "written while training waits" in cause["text"]
    assert int(cause["cure"].removeprefix("--checkpoint.every_steps=")) > 20
    assert len(published(tmp_path / "run")) == 3


def test_slow_metrics_and_callbacks_are_named(recipe, tmp_path, capsys):
    cause = first_cause(recipe, tmp_path / "run", capsys, hooks=(lambda state, row: time.sleep(0.02),))
    assert cause["what"] == "recording" and cause["share"] > 0.2
    assert cause["cure"].startswith("--track.every_steps=")


def test_activations_that_are_computed_again_are_named(recipe, tmp_path, capsys, monkeypatch):
    class Deep(Wide):
        def __init__(self, width, seed):
            super().__init__(width, seed)
            self.vision = nn.Sequential(nn.Linear(4, 512), *(nn.Linear(512, 512) for _ in range(3)), nn.Linear(512, 4))

    family(monkeypatch, build=lambda section, directory, *, seed: Deep(section.width, seed))
    cause = first_cause(recipe, tmp_path / "run", capsys, "distributed.activation_checkpointing=full", "train.global_batch=16")
    assert (cause["what"], cause["cure"]) == ("recomputing", "--distributed.activation_checkpointing=none")


class Many(toy.Net):
    """The toy, with a thousand calls on a few values."""

    def forward(self, batch):
        waste = batch["x"].sum()
        for _ in range(1000):
            waste = waste * 0.5 + 1.0
        return super().forward(batch) + 0.0 * waste


def test_a_host_that_is_slower_than_its_arithmetic_is_named(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plait.engine.monitoring.heartbeat.time.monotonic", time.process_time)  # what else runs here takes none of it
    family(monkeypatch, build=lambda section, directory, *, seed: Many(section.width, seed))
    cause = first_cause(recipe, tmp_path / "run", capsys)
    assert (cause["what"], cause["cure"]) == ("host", "--distributed.compile=true") and cause["share"] >= 0.4
    calls = why(tmp_path / "run", capsys)["window"]["calls"]
    assert 2000 < calls < 2100 and f"a step calls torch {calls:,} times in its forward passes" in cause["text"]


_FLOP_PER_S = 1e6
"""Rate of a device that is slow in float32."""


def slow_in_float32(x, weight, bias=None, *, usual=F.linear):
    half = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
    time.sleep(0.0 if half else 2.0 * x.numel() * len(weight) / _FLOP_PER_S)
    return usual(x, weight, bias)


class Layers(toy.Net):
    def __init__(self, width, seed):
        super().__init__(width, seed)
        self.vision = nn.Sequential(nn.Linear(4, 64), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_in_float32_are_named_on_a_device_that_is_slow_at_them(recipe, tmp_path, capsys, monkeypatch, precision):
    monkeypatch.setattr(F, "linear", slow_in_float32)
    monkeypatch.setattr(device_speed, "_ROWS", 8)
    family(monkeypatch, build=lambda section, directory, *, seed: Layers(section.width, seed))
    toy.train(recipe, tmp_path / "run", *PLAIN, "train.steps=8", f"train.precision={precision}")
    found = why(tmp_path / "run", capsys)["causes"]
    if precision == "bf16":
        assert "precision" not in [cause["what"] for cause in found], "the cure cures it"
        return
    assert (found[0]["what"], found[0]["cure"]) == ("precision", "--train.precision=bf16") and found[0]["share"] > 0.3
    assert found[0]["text"].startswith("products are in float32 and take ") and " times as fast (both as measured here)" in found[0]["text"]


def test_an_update_that_takes_much_of_a_step_is_named(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plait.engine.monitoring.heartbeat.time.monotonic", time.process_time)
    plain = FusedAdamW.step

    def slow(optimizer, closure=None):
        until = time.process_time() + 0.004
        while time.process_time() < until:
            pass
        plain(optimizer)

    monkeypatch.setattr(FusedAdamW, "step", slow)
    cause = first_cause(recipe, tmp_path / "run", capsys, "train.global_batch=2")
    assert (cause["what"], cause["cure"]) == ("update", "--train.global_batch=4") and cause["share"] >= 0.3


def test_what_a_processor_takes_is_measured_by_the_layers_of_the_model():
    alone = measure(nn.Conv1d(1, 1, 1), products=True)
    assert alone.tflop_per_s is None and alone.figures() == {"call_s": pytest.approx(alone.call_s, rel=1e-3)} and alone.call_s > 0
    assert measure(nn.Linear(8, 8), products=False).bf16_gain is None
    model, state = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 900)), torch.get_rng_state()
    figures = measure(model, products=True).figures()
    assert figures.keys() == {"call_s", "product_tflop_per_s", "bf16_gain"} and min(figures.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)


def on_gpu(run, capsys, parts, **figures):
    """What is said of a run whose rows are made those of a GPU, with these seconds of the parts of a step."""
    rows = files.read_rows(run / "metrics.jsonl")
    for row in rows:
        seconds = {part: parts.get(part, 0.0) * row["spent"]["steps"] for part in PARTS}
        row["spent"] |= {"device": "NVIDIA H200", "seconds": seconds, "memory_gb": 20.0, "memory_of_gb": 141.0}
        row.update(figures)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return why(run, capsys)["causes"][0]


def test_products_in_float32_and_a_host_that_is_too_slow_are_named_on_a_gpu(recipe, tmp_path, capsys):
    toy.train(recipe, tmp_path / "run", *PLAIN, f"train.steps={LONG}", "train.precision=fp32")
    cause = on_gpu(tmp_path / "run", capsys, {"forward": 0.05, "backward": 0.1, "update": 0.6}, mfu=0.2)
    assert (cause["what"], cause["cure"]) == ("precision", "--train.precision=bf16")
    assert "of 67 TFLOP/s at the most; bfloat16 has 989" in cause["text"]
    toy.train(recipe, tmp_path / "bf16", *PLAIN, f"train.steps={LONG}", "train.precision=bf16")
    cause = on_gpu(tmp_path / "bf16", capsys, {"forward": 0.2, "backward": 0.3, "update": 0.01}, mfu=0.02)
    assert (cause["what"], cause["cure"]) == ("host", "--distributed.compile=true")


def test_moments_on_the_host_are_named(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plait.engine.adamw.ChunkedAdamW.step", lambda self: time.sleep(0.02))
    cause = first_cause(recipe, tmp_path / "run", capsys, "optim.offload=true")
    assert (cause["what"], cause["cure"]) == ("offload", "--optim.offload=false")


def test_what_costs_most_is_told_once_while_the_run_trains(recipe, tmp_path, monkeypatch, caplog):
    family(monkeypatch, Loss=Padded)
    monkeypatch.setattr(Wide, "passes", 30)
    monkeypatch.setattr(logging.getLogger("plait"), "propagate", True)
    caplog.set_level(logging.INFO)
    toy.train(recipe, tmp_path / "run", *PLAIN, "train.steps=120", "data.pad=to_max", "data.max_tokens=64")
    (line,) = {record.getMessage() for record in caplog.records if "`plait why RUN` tells more" in record.getMessage()}
    assert line.startswith("step 50: 75% of the positions that are computed are padding (data.pad=to_max) (")
    assert "--data.pad=longest); " in line


def test_the_page_shows_each_part_with_its_share_and_the_cure_of_a_cause(recipe, tmp_path, capsys, monkeypatch):
    family(monkeypatch, Loss=Padded)
    toy.train(recipe, tmp_path / "run", *PLAIN, "stages=[{name: a}, {name: b}]", f"train.steps={LONG}")
    capsys.readouterr()
    assert cli.main(["why", str(tmp_path / "run"), "--stage", "a"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"stage 1 a, steps 2 to {LONG}: ")
    shares = {line[2:24].strip(): line[24:31] for line in told[1:] if line.startswith("  ") and line[30:31] == "%"}
    assert {"forward", "backward", "update", "projector", "vision", "language", "metrics, callbacks"} <= shares.keys()
    assert "  --stages.0.train.micro_batch=2" in "\n".join(told)
    assert why(tmp_path / "run", capsys)["stage"] == "b"


def test_a_trace_of_some_steps_is_written_and_leaves_the_run_as_it_is(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", *PLAIN, f"train.steps={LONG}")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = why(run, capsys, "--profile", "2")
    names = {event.get("name") for event in json.loads((run / "profile/stage-1-train.json").read_text())["traceEvents"]}
    assert told["trace"] == str(run / "profile/stage-1-train.json") and "aten::addmm" in names
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_says_nothing_of_its_time_is_refused_in_a_line(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", *PLAIN, "track.monitor=false")
    assert not any("spent" in row for row in files.read_rows(run / "metrics.jsonl"))
    capsys.readouterr()
    assert cli.main(["why", str(run)]) != 0
    assert capsys.readouterr().err == (
        f"plait: {run} has no row that says where the time of stage train went (track.monitor is off): rows come every "
        "track.every_steps = 1 steps, from runs of this version on\n"
    )
    assert cli.main(["why", str(run), "--stage", "x"]) != 0
    assert capsys.readouterr().err == f"plait: {run} has no stage 'x': its stages are train\n"


def test_rows_of_an_earlier_version_say_less_and_damaged_numbers_nothing(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", *PLAIN, f"train.steps={LONG}")
    measured, rows = ("flops", "calls", "call_s", "product_tflop_per_s", "bf16_gain", "monitor"), files.read_rows(run / "metrics.jsonl")
    assert rows[0]["spent"].keys() >= {*measured}
    for other in ({}, dict.fromkeys(measured, "x"), dict.fromkeys(measured, 0)):
        of_others = [{**row, "spent": {name: row["spent"][name] for name in row["spent"] if name not in measured} | other} for row in rows]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_others))
        told = why(run, capsys)
        assert {told["window"][name] for name in measured} == ({0} if other.get("calls") == 0 else {None})
        assert cli.main(["why", str(run)]) == 0


def test_damaged_rows_cost_themselves(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", *PLAIN, f"train.steps={LONG}")
    whole = why(run, capsys)
    rows = files.read_rows(run / "metrics.jsonl")
    damaged = [{**rows[5], "spent": {"steps": 3}}, {**rows[5], "spent": 3}, {**rows[5], "spent": {**rows[5]["spent"], "seconds": None}}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:8], *damaged, *rows[8:]]) + '{"step"')
    assert why(run, capsys) == whole
