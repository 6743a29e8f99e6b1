"""The mutation score of the engine, the order of data, the loader and the training room: how many small defects the tests notice.

    OMP_NUM_THREADS=1 python benchmarks/mutation.py --seed 1 --count 100

Draws a reproducible sample of mutants (mutants.py says what one is) over FILES and runs, for each, the tests that TESTS maps to its file,
against a copy of the tree in a temporary folder: the checkout is never written to. A failing or hanging run (three times the unmutated
time, at least 60 s) kills the mutant. Prints one line per mutant and writes benchmarks/results/mutation.json with the score, that of each
room, and all survivors. `--list` shows the sample, `--only TEXT` draws from files whose path holds TEXT,
`--minutes M` begins no mutant after that time: those that were run are a sample too.

Each test file runs once on the tree as it is when it is first needed, with a note of the lines that each test reaches (in forked processes
too). Of a mutant's tests only those run that reach its statement, and those that start other programs, whose lines are not known; what runs
at import has all of them. One that no test reaches has survived.

The sample is uniform over mutants, so long files weigh more. Only the tests in the table run: what other tests of the suite would notice
counts as survived, that of the long ones and of the golden digits too, which notice any changed number and do not say which one is right.
EQUIVALENT lists mutants that change no behaviour, by hand and with the reason: the score is given with and without them. mutmut and
cosmic-ray change a tree completely, which takes a day here: neither draws a sample with a seed, leaves statements out and maps each file to
its tests. Needs Linux (fork, subreaper).
"""

import argparse
import ctypes
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Generator, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import PIL.Image
import pydantic.main
import pytest
import pytest_timeout
import rich.progress
import safetensors.torch
import tensorboard.backend.event_processing.event_accumulator
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.utils.flop_counter
import torch.utils.tensorboard
import transformers
import xxhash
from mutants import Mutant, count, mutant

IMPORTED = (PIL, pydantic, pytest_timeout, rich, safetensors, tensorboard, torch, transformers, xxhash)
"""Imported once here, and inherited by the process of every mutant."""

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
FILES = (
    "src/plait/engine/**/*.py",
    "src/plait/data/order.py",
    "src/plait/data/loading/*.py",
    "src/plait/data/memory/*.py",
    "src/plait/training/**/*.py",
)
LEAST_TIMEOUT_S, TIMES_UNMUTATED = 60.0, 3.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans of a test become children of this process, which ends them

TESTS: dict[str, str] = {
    "data/order.py": "data/test_order.py data/test_buckets.py",
    "data/loading/replacing.py": "data/test_buckets.py data/test_part.py",
    "data/loading/bucketing.py": "data/test_buckets.py data/test_part.py",
    "data/loading/length_order.py": "data/test_length_order.py",
    "data/loading/token_budget.py": "data/test_token_budget.py",
    "data/loading/truncation.py": "training/test_token_lengths.py",
    "training/batching/lengths_ahead.py": "training/test_lengths_ahead.py",
    "training/batching/token_lengths.py": "training/test_token_lengths.py",
    "data/loading/loader.py": "data/test_loader.py",
    "data/loading/micro_batch.py": "data/test_loader.py",
    "data/loading/pinning.py": "data/test_pinning.py",
    "data/loading/prefetch.py": "data/test_streaming.py",
    "data/loading/turns.py": "data/test_turns.py",
    "data/loading/passes.py": "data/test_turns.py",
    "data/memory/allocation.py": "data/test_reused_memory.py",
    "data/memory/tensors.py": "data/test_reused_memory.py",
    "data/memory/reused.py": "data/test_reused_memory.py",
    "data/memory/shared.py": "data/test_shared_memory.py data/test_loader.py",
    "data/loading/processes.py": "data/test_loader.py",
    "data/loading/threads.py": "data/test_loader.py",
    "data/loading/workers.py": "data/test_loader.py",
    "engine/adamw.py": "engine/test_precision.py",
    "engine/blocks.py": "engine/test_blocks.py families/test_block_flops.py",
    "engine/compilation/cache.py": "engine/test_compile_cache.py",
    "engine/compilation/clock.py": "engine/test_compile_cache.py",
    "engine/compilation/choice.py": "engine/test_compilation.py training/test_compile_auto.py",
    "engine/evaluation.py": "engine/test_evaluation.py engine/test_loop.py engine/test_distributed.py",
    "engine/flops.py": "engine/test_flops.py engine/test_loop.py",
    "engine/guards.py": "engine/test_guards.py engine/test_loop.py",
    "engine/held_out_loss.py": "engine/test_evaluation.py engine/test_loop.py engine/test_distributed.py",
    "engine/loop.py": "engine/test_loop.py engine/test_source_shares.py engine/test_precision.py "
    "engine/test_distributed.py engine/test_nonfinite.py",
    "engine/loss.py": "engine/test_loop.py",
    "engine/micro_batch.py": "engine/test_micro_batch.py",
    "engine/nonfinite.py": "engine/test_loop.py engine/test_nonfinite.py",
    "engine/nonfinite_report.py": "engine/test_loop.py engine/test_nonfinite.py",
    "engine/optim.py": "engine/test_optim.py engine/test_state.py engine/test_loop.py engine/test_precision.py engine/test_distributed.py",
    "engine/optimizers/choice.py": "engine/optimizers/test_muon.py training/test_optimizers.py",
    "training/moments/kept.py": "engine/optimizers/test_muon.py training/test_optimizers.py engine/test_strategy.py",
    "engine/optimizers/fused_adamw.py": "engine/test_optim.py",
    "engine/optimizers/eight_bit.py": "engine/optimizers/test_eight_bit.py",
    "engine/optimizers/muon.py": "engine/optimizers/test_muon.py",
    "engine/optimizers/sharded_muon.py": "engine/optimizers/test_muon.py",
    "engine/averages.py": "engine/test_averages.py engine/test_optim.py engine/test_state.py engine/test_post_hoc_ema.py",
    "engine/precision.py": "engine/test_precision.py",
    "engine/parallel/copies.py": "engine/test_copies.py",
    "engine/parallel/replicas.py": "engine/test_replicas.py",
    "engine/parallel/every_rank.py": "engine/test_evaluation.py",
    "engine/parallel/rank_failures.py": "engine/test_evaluation.py",
    "engine/schedule.py": "engine/test_schedule.py engine/test_optim.py",
    "engine/source_shares.py": "engine/test_source_shares.py engine/test_distributed.py",
    "engine/state.py": "engine/test_state.py engine/test_optim.py engine/test_source_shares.py "
    "engine/test_post_hoc_ema.py engine/test_stages_and_resumes.py engine/test_sharding.py",
    "engine/checkpoints/chain.py": "commands/publishing/test_passport.py",
    "engine/checkpoints/checkpoint.py": "engine/test_checkpoint.py engine/test_post_hoc_ema.py "
    "engine/test_stages_and_resumes.py training/test_start.py training/test_reshard.py",
    "engine/checkpoints/disk_errors.py": "engine/test_checkpoint.py engine/test_saver.py training/test_failing_disk.py",
    "engine/checkpoints/failed_writes.py": "engine/test_saver.py",
    "engine/checkpoints/folders.py": "engine/test_folders.py engine/test_checkpoint.py",
    "engine/checkpoints/kept_averages.py": "engine/test_post_hoc_ema.py engine/test_checkpoint.py",
    "engine/checkpoints/integrity.py": "engine/test_checkpoint.py engine/test_stages_and_resumes.py",
    "engine/checkpoints/migrate.py": "engine/test_migrate.py",
    "engine/checkpoints/post_hoc_ema.py": "engine/test_post_hoc_ema.py",
    "engine/checkpoints/failed_start.py": "engine/test_rundir.py training/test_start.py training/test_failed_start.py",
    "engine/checkpoints/rundir.py": "engine/test_rundir.py training/test_start.py training/test_failed_start.py",
    "engine/checkpoints/regular_files.py": "training/test_broken_run_files.py",
    "engine/checkpoints/saver.py": "engine/test_checkpoint.py engine/test_copying.py engine/test_stages_and_resumes.py",
    "engine/checkpoints/writing/copying.py": "engine/test_copying.py",
    "engine/checkpoints/writing/tensor_file.py": "engine/test_tensor_file.py engine/test_checkpoint.py",
    "engine/checkpoints/sharded_files.py": "engine/test_checkpoint.py engine/test_sharding.py training/test_reshard.py",
    "engine/checkpoints/reference.py": "commands/test_upgrade_check.py",
    "engine/checkpoints/renames.py": "commands/test_upgrade_check.py",
    "engine/checkpoints/stored_files.py": "engine/test_checkpoint.py training/test_reshard.py commands/test_damaged_checkpoints.py",
    "engine/monitoring/memory_trial.py": "engine/test_micro_batch.py training/test_stage.py",
    "engine/monitoring/beats.py": "engine/test_heartbeat.py",
    "engine/monitoring/beside/alert_process.py": "engine/test_alerts.py",
    "engine/monitoring/alerts.py": "engine/test_alerts.py",
    "engine/monitoring/beside/mlflow_service.py": "engine/test_trackers.py",
    "engine/monitoring/beside/trackio_service.py": "engine/test_trackers.py",
    "engine/monitoring/beside/shown.py": "engine/test_trackers.py",
    "engine/monitoring/beside/process.py": "engine/test_trackers.py engine/test_alerts.py",
    "engine/monitoring/beside/tracker_process.py": "engine/test_trackers.py",
    "engine/monitoring/beside/trackers.py": "engine/test_trackers.py",
    "engine/monitoring/beside/wandb_service.py": "engine/test_trackers.py",
    "engine/monitoring/event_files.py": "engine/test_event_files.py engine/test_tracking.py",
    "engine/monitoring/event_records.py": "engine/test_event_files.py",
    "engine/monitoring/heartbeat.py": "engine/test_heartbeat.py",
    "engine/monitoring/path_faults.py": "test_cli.py commands/test_full_disk.py",
    "engine/monitoring/json_output.py": "commands/test_json_output.py",
    "engine/monitoring/reporter.py": "engine/test_reporter.py",
    "engine/monitoring/screen.py": "engine/test_screen.py engine/test_tracking.py",
    "engine/monitoring/signals.py": "engine/test_signals.py",
    "engine/monitoring/spikes.py": "engine/test_spikes.py",
    "engine/monitoring/tracking.py": "engine/test_tracking.py engine/test_event_files.py",
    "engine/monitoring/watchdog.py": "engine/test_watchdog.py",
    "engine/monitoring/watchdog_process.py": "engine/test_watchdog.py",
    "engine/monitoring/wrapping.py": "engine/test_wrapping.py",
    "engine/parallel/placing.py": "engine/test_state.py engine/test_sharding.py",
    "engine/parallel/distributed.py": "engine/test_distributed.py engine/test_sharding.py training/test_reshard.py",
    "engine/parallel/network.py": "engine/test_network.py",
    "engine/parallel/memory_estimate.py": "engine/test_memory_estimate.py engine/test_strategy.py",
    "engine/parallel/agent_store.py": "engine/test_distributed.py",
    "engine/parallel/gathering.py": "engine/test_gathering.py",
    "engine/parallel/prefetching.py": "engine/test_prefetching.py",
    "engine/parallel/hosted.py": "engine/test_hosted.py",
    "engine/parallel/leaving.py": "engine/test_leaving.py",
    "engine/parallel/replication.py": "engine/test_replication.py",
    "engine/parallel/sharding.py": "engine/test_sharding.py training/test_reshard.py",
    "engine/parallel/strategy.py": "engine/test_strategy.py",
    "training/blindness.py": "training/test_blindness.py",
    "training/ledger.py": "training/test_ledger.py",
    "training/changes.py": "training/test_start.py commands/test_stages.py",
    "training/divergence.py": "engine/test_nonfinite.py",
    "training/features/store.py": "training/test_feature_store.py",
    "training/features/lookup.py": "training/test_feature_cache.py",
    "training/features/fill.py": "training/test_feature_cache.py",
    "training/features/stage_features.py": "training/test_feature_cache.py",
    "training/spikes/black_box.py": "training/test_spike_boxes.py engine/test_spikes.py",
    "training/spikes/cause.py": "training/test_spike_boxes.py",
    "training/spikes/passes.py": "training/test_spike_boxes.py engine/test_spikes.py",
    "training/from_weights.py": "training/test_start.py commands/test_stages.py",
    "training/figures/intervals.py": "training/test_intervals.py",
    "training/launch.py": "training/test_launch.py training/test_processes.py",
    "training/monitor/gather_waits.py": "training/monitor/test_why.py",
    "training/monitor/causes.py": "training/monitor/test_why.py",
    "training/monitor/learning.py": "training/monitor/test_learning.py",
    "training/monitor/device_speed.py": "training/monitor/test_why.py",
    "training/monitor/look_budget.py": "training/monitor/test_look_budget.py",
    "training/monitor/picture_texts.py": "training/monitor/test_picture_texts.py",
    "training/monitor/rules.py": "training/monitor/test_learning.py",
    "training/monitor/source_losses.py": "training/monitor/test_source_losses.py",
    "training/monitor/source_rule.py": "training/monitor/test_source_losses.py",
    "training/monitor/answer_rule.py": "training/monitor/test_answer_rule.py",
    "training/monitor/modules.py": "training/monitor/test_modules.py training/monitor/test_why.py",
    "training/monitor/stage_look.py": "training/monitor/test_source_losses.py training/test_blindness.py",
    "training/monitor/stage_monitor.py": "training/monitor/test_why.py",
    "training/monitor/unit_gradients.py": "training/monitor/test_unit_gradients.py",
    "training/monitor/window.py": "training/monitor/test_why.py",
    "training/planning/trace.py": "training/monitor/test_why.py",
    "training/planning/checkpoint_size.py": "commands/test_plan.py commands/test_doctor_hub.py training/planning/test_reality.py",
    "training/planning/entries.py": "commands/test_plan.py commands/test_doctor_hub.py",
    "training/planning/fake_step.py": "training/planning/test_fake_step.py training/planning/test_reality.py",
    "training/planning/findings.py": "commands/test_plan.py",
    "training/planning/forecast.py": "commands/test_plan.py training/planning/test_reality.py",
    "training/planning/hardware.py": "commands/test_plan.py",
    "training/planning/host_memory.py": "commands/test_plan_host_memory.py",
    "training/planning/judge.py": "commands/test_plan.py",
    "training/planning/meta_model.py": "commands/test_plan.py training/planning/test_reality.py",
    "training/planning/pace.py": "commands/test_plan.py",
    "training/planning/probe.py": "commands/test_plan.py",
    "training/planning/search.py": "commands/test_plan.py training/planning/test_search.py",
    "training/planning/stage_batch.py": "commands/test_plan.py training/planning/test_reality.py",
    "training/probes.py": "training/test_start.py training/test_stage.py engine/test_micro_batch.py",
    "training/run.py": "training/test_stage.py training/test_start.py engine/test_nonfinite.py commands/test_stages.py "
    "training/test_precision_runs.py",
    "training/layout.py": "training/test_stage.py training/test_pretrained_start.py training/test_precision_runs.py",
    "training/stage.py": "training/test_stage.py training/test_start.py engine/test_micro_batch.py "
    "engine/test_nonfinite.py engine/test_replicas.py commands/test_stages.py training/test_precision_runs.py training/test_data_look.py",
    "training/stage_evaluation.py": "training/test_stage.py commands/test_stages.py engine/test_evaluation.py",
    "training/stage_plan.py": "training/test_stage.py training/test_start.py commands/test_stages.py",
    "training/figures/forgetting.py": "training/test_ledger.py",
    "training/figures/plateau.py": "training/test_plateau.py",
    "training/figures/picture_use.py": "training/test_blindness.py",
    "training/figures/kept_answers.py": "training/test_kept_answers.py",
    "training/figures/paired.py": "training/test_paired.py",
    "training/figures/small_samples.py": "training/test_small_samples.py training/test_paired.py",
    "training/run_context.py": "training/test_stage.py",
    "training/start.py": "training/test_start.py commands/test_stages.py",
    "training/summary.py": "training/test_summary.py training/test_stage.py training/test_start.py",
    "training/agent.py": "training/test_launch.py",
    "training/torchrun.py": "training/test_launch.py",
}
"""Test files by source file, relative to `src/plait` and `tests`, the fastest first; those of minutes are left out."""

EQUIVALENT: list[tuple[str, str, str, str]] = [
    ("engine/blocks.py", "torch._dynamo.reset()", "torch._dynamo.reset() -> left out", "torch 2.11 alone needs it"),
    ("engine/state.py", 'key(seed, "rounding"', "1 -> 2", "another noise, as good: which bits of the key are used is free"),
    ("training/stage.py", "ranks.size > 1 and not", "ranks.size > 1 -> ranks.size >= 1", "one rank agrees with itself"),
    (
        "training/stage_evaluation.py",
        "return improved",
        "return improved -> return None",
        "a stop was asked for: the end of the run saves this moment",
    ),
    ("training/run.py", "        if continues:", "continues -> True", "a run that has not begun has no checkpoint to find"),
    ("training/run.py", "error, continues = None, False", "False -> True", "a run that has not begun has no checkpoint to find"),
    ("engine/blocks.py", "_RECOMPILE_LIMIT = 64", "64 -> 65", "no model has so many variants of a block"),
    ("training/probes.py", "workers=0", "0 -> 1", "a worker reads the same samples"),
    ("training/probes.py", "Ranks(0, 1, ranks.device)", "0 -> 1", "nobody asks a rank that is alone for its number"),
    (
        "engine/checkpoints/checkpoint.py",
        "_order(folder) or (0, 0)",
        "0 -> 1",
        "every folder that is sorted here has an order",
    ),
    ("engine/micro_batch.py", "torch.cuda.empty_cache()", "torch.cuda.empty_cache() -> left out", "no GPU's cache is there to empty"),
    ("engine/parallel/distributed.py", "torch.cuda.set_device(chosen)", "torch.cuda.set_device(chosen) -> left out", "needs a GPU"),
    ("engine/monitoring/watchdog.py", "silent_s > allowed_s", "silent_s > allowed_s -> silent_s >= allowed_s", "clocks are never equal"),
    ("training/stage_evaluation.py", "sign = 1.0 if", "1.0 -> 2.0", "only its sign counts"),
    ("data/order.py", "memo[0] != first", "memo[0] != first -> True", "the same ids, drawn again"),
    (
        "training/stage.py",
        "if moment == self.saved:",
        "moment == self.saved -> False",
        "the same checkpoint, written twice",
    ),
    ("engine/averages.py", "scale = 1 / np.sqrt", "1 -> 2", "a scale that cancels, but for rounding"),
    ("engine/averages.py", "rcond=1e-14", "1e-14 -> 1.00000000000001", "for 1 and more LAPACK takes float64's precision, 2e-16"),
    ("engine/averages.py", "spread > length", "spread > length -> spread >= length", "the bisection ends at the same number"),
    ("data/order.py", "max(1, _DRAW_AT_ONCE // part.batch)", "1 -> 2", "the ids are the same however many steps are drawn at once"),
    ("engine/micro_batch.py", "torch.cuda.is_available()", "torch.cuda.is_available() -> True", "emptying no GPU's cache does nothing"),
    ("training/launch.py", "os.read(0, 1 << 16)", "16 -> 17", "the most that is read at once; a line is far shorter"),
]
"""File, part of the line, change and reason of each mutant that no test can notice."""

Place = tuple[str, int]
"""A file, as FILES names it, and a line."""
_UNKNOWN = {("", 0)}


def sources() -> list[str]:
    """The files that are mutated."""
    return sorted({str(path.relative_to(ROOT)) for pattern in FILES for path in ROOT.glob(pattern)})


def draw(seed: int, size: int, only: str) -> list[Mutant]:
    """The sample, in the order of the draw: `size` of all mutants of the files whose path holds `only`."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in sources() if only in name}
    every = [(name, i) for name, text in texts.items() for i in range(count(text))]
    print(f"{len(every)} mutants in {len(texts)} files", flush=True)
    return [mutant(name, texts[name], i) for name, i in random.Random(seed).sample(every, min(size, len(every)))]


def tests_of(file: str) -> list[str]:
    """The test files for a source file."""
    return [f"tests/{name}" for name in TESTS[file.removeprefix("src/plait/")].split()]


def copy_tree(target: Path) -> None:
    """The files of the checkout that git does not ignore, compiled: a compiled file is used only for the source it was made of."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    compile_all = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "src"]
    subprocess.run(compile_all, cwd=target, check=True)


class Recorder:
    """A pytest plugin that notes which lines of `tree` each test reaches, itself and in forked processes; `tests` has the result.

    A test that starts a program, or whose forked process ends without telling its lines (it was killed), reaches `None`: all of them.
    """

    def __init__(self, tree: Path, folder: Path) -> None:
        self.names = {str(tree / name): name for name in sources()}
        self.folder = folder
        self.tests: dict[str, set[Place] | None] = {}
        self.failed: set[str] = set()
        self.shared: dict[str, set[Place]] = {}
        """By test file: what fixtures of more than one test reach."""
        self.hits: set[Place] = set()
        self.forks, self.opaque = 0, False
        folder.mkdir(exist_ok=True)
        os.register_at_fork(after_in_parent=self._forked, after_in_child=self._in_child)
        sys.addaudithook(lambda event, given: self._starts(given) if event in ("subprocess.Popen", "os.posix_spawn") else None)
        self.exit = os._exit
        for module, name in ((util, "spawnv_passfds"), (forkserver, "connect_to_new_process")):  # no audit event tells of these
            setattr(module, name, self._noting(getattr(module, name)))
        os._exit = self._exit  # type: ignore[assignment]

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which starts a program or has a server fork one."""

        def noted(*given: Any) -> Any:
            self.opaque = True
            return function(*given)

        return noted

    def _forked(self) -> None:
        self.forks += 1

    def _in_child(self) -> None:
        self.hits, self.forks = set(), 0

    def _starts(self, given: tuple[Any, ...]) -> None:
        if not any(str(word).endswith("watchdog_process.py") for word in given[1]):  # which imports nothing of plait
            self.opaque = True

    def _exit(self, code: int) -> None:
        """What a forked process calls at its end."""
        told = {"opaque": self.opaque, "hits": sorted(self.hits)}
        (self.folder / f"{os.getpid()}.json").write_text(json.dumps(told))
        self.exit(code)

    def trace(self, frame: types.FrameType, event: str, _: Any) -> Any:
        """For sys.settrace."""
        name = self.names.get(frame.f_code.co_filename)
        if name is None:
            return None
        self.hits.add((name, frame.f_lineno))
        return self.trace

    def _reached(self) -> set[Place] | None:
        """The lines since `hits` was emptied, those of forked processes that have ended by now included; None: not all are known."""
        answers = [json.loads(path.read_text()) for path in self.folder.iterdir()]
        unknown = self.opaque or any(answer["opaque"] for answer in answers) or len(answers) < self.forks
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.forks = 0
        return None if unknown else self.hits | {(name, line) for answer in answers for name, line in answer["hits"]}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Around one test, its fixtures included."""
        self.hits, self.forks, self.opaque = set(), 0, False
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.tests[item.nodeid] = self._reached()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """Around the making of a fixture: one of several tests is reached by all of them."""
        if fixturedef.scope == "function":
            return (yield)
        before, self.hits = self.hits, set()
        try:
            return (yield)
        finally:
            reached, key = self._reached(), request.node.nodeid.partition("::")[0]
            self.shared[key] = self.shared.get(key, set()) | (_UNKNOWN if reached is None else reached)
            self.hits = before | self.hits

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what fails."""
        if report.failed:
            self.failed.add(report.nodeid)

    def write(self, path: Path) -> None:
        """The lines of each test that passes, as a file."""
        rows = {}
        for test, hits in self.tests.items():
            if test in self.failed:
                continue
            shared = self.shared.get(test.partition("::")[0], set())
            rows[test] = None if hits is None or shared >= _UNKNOWN else sorted(hits | shared)
        path.write_text(json.dumps(rows))


def run_tests(tree: Path, tests: Sequence[str], timeout_s: float, lines: Path | None = None) -> tuple[bool | None, float]:
    """Whether the tests pass (None: they hang), and the seconds they took: in a forked process that has not imported plait."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        leave, code = os._exit, 1
        try:
            code = _tests_here(tree, tests, lines)
        except BaseException:  # noqa: BLE001  the process ends here
            traceback.print_exc()
        finally:
            leave(code)  # whatever happens: what follows is the parent's
    ended, status = 0, 0
    while not ended and time.monotonic() - began < timeout_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0 if ended else 0.05)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    _end_orphans()
    return (status == 0 if ended else None), time.monotonic() - began


def _tests_here(tree: Path, tests: Sequence[str], lines: Path | None) -> int:
    """The exit code of pytest in this process, its output in the tree's tests.log, and the lines of each test in `lines`."""
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path[:] = [str(tree / "src"), str(tree), *(path for path in sys.path if path != str(ROOT / "benchmarks"))]
    sys.modules["__main__"] = types.ModuleType("__main__")  # or processes that a test spawns would import this file
    out = os.open(tree / "tests.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    imported = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
    recorder = Recorder(tree, tree / "lines") if lines else None
    plugins = [recorder] if recorder else []
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-W", imported, *(() if lines else ("-x",))]
    code = pytest.main([*options, *tests], plugins)
    if recorder and lines:
        recorder.write(lines)
    sys.stdout.flush()
    from_tree = Path(sys.modules["plait"].__file__ or "").is_relative_to(tree)
    return int(code) if from_tree else 99


def _end_orphans() -> None:
    """Kill what a test run has left behind: its processes became children of this one."""
    while True:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except (OSError, IndexError):
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


class Unmutated:
    """The tests on the tree as it is, each file when it is first needed: how long it takes, and which lines each test reaches."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.known: dict[str, tuple[float, dict[str, set[Place] | None]]] = {}

    def of(self, name: str) -> tuple[float, dict[str, set[Place] | None]]:
        """Seconds, and lines by test; those that fail as the tree is are left out, and named."""
        if name not in self.known:
            lines = self.tree / "lines.json"
            lines.write_text("{}")  # of no test, where this file hangs
            _, seconds = run_tests(self.tree, [name], 900.0, lines)
            rows = json.loads(lines.read_text())
            self.known[name] = (
                seconds,
                {test: None if hits is None else {(file, line) for file, line in hits} for test, hits in rows.items()},
            )
            unknown = sum(hits is None for hits in rows.values())
            print(f"{seconds:6.1f} s  {name}: {len(rows)} tests, {unknown} of unknown lines", flush=True)
            for line in (self.tree / "tests.log").read_text(errors="replace").splitlines():
                if line.startswith(("FAILED", "ERROR")):
                    print(f"left out, unmutated: {line}", flush=True)
        return self.known[name]

    def reaching(self, found: Mutant, name: str) -> list[str]:
        """The tests of a file for a mutant; all of them where the mutant runs at import."""
        rows = self.of(name)[1].items()
        if found.lines is None:
            return [test for test, _ in rows]
        places = {(found.file, line) for line in found.lines}
        return [test for test, hits in rows if hits is not None and hits & places] + [test for test, hits in rows if hits is None]


def judged(found: Mutant, tree: Path, unmutated: Unmutated) -> dict[str, object]:
    """The row of one mutant: killed, survived or equivalent."""
    path, began, result, by = tree / found.file, time.monotonic(), "survived", "no test reaches it"
    before = path.read_text(encoding="utf-8")
    for name in tests_of(found.file):
        limit_s, tests = max(LEAST_TIMEOUT_S, TIMES_UNMUTATED * unmutated.of(name)[0]), unmutated.reaching(found, name)
        if not tests:
            continue
        path.write_text(found.source, encoding="utf-8")
        try:
            passed, _ = run_tests(tree, tests, limit_s)
        finally:
            path.write_text(before, encoding="utf-8")
        log = (tree / "tests.log").read_text(errors="replace").splitlines()
        by = next((line for line in log if line.startswith(("FAILED", "ERROR"))), "")
        if not passed:
            result = "hang" if passed is None else "killed"
            break
    name, text = found.file.removeprefix("src/plait/"), before.splitlines()[found.line - 1]
    reason = next((why for file, part, change, why in EQUIVALENT if (file, change) == (name, found.change) and part in text), None)
    result = "equivalent" if reason and result == "survived" else result
    print(
        f"{result:10} {found.file}:{found.line} {found.function}: {found.change}  [{time.monotonic() - began:.0f} s] {by[:110]}", flush=True
    )
    row = {"result": result, "file": found.file, "line": found.line, "function": found.function, "kind": found.kind, "change": found.change}
    return row | ({"reason": reason} if result == "equivalent" else {})


def room_of(file: str) -> str:
    """The folder of a file, as the score is given for it."""
    return "data/order" if file.endswith("/order.py") else str(Path(file).parent.relative_to("src/plait"))


def interval(killed: int, count: int) -> list[float]:
    """Where the score of all mutants is, with 95 % confidence (Wilson 1927)."""
    z, share = 1.96, killed / count
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round((middle + sign * width) / (1 + z * z / count), 3) for sign in (-1, 1)]


def score(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """How many mutants were killed, of all and of those that are not equivalent."""
    killed = sum(row["result"] in ("killed", "hang") for row in rows)
    equivalent = sum(row["result"] == "equivalent" for row in rows)
    real = len(rows) - equivalent
    shares: dict[str, object] = {
        "score": round(killed / len(rows), 4),
        "score_without_equivalent": round(killed / real, 4) if real else 1.0,
    }
    shares["interval"] = interval(killed, len(rows))
    return {"mutants": len(rows), "killed": killed, "equivalent": equivalent, "survived": real - killed, **shares}


def run(sample: Sequence[Mutant], limit_s: float) -> list[dict[str, object]]:
    """The row of each mutant, or of as many as there is time for."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plait-mutation-") as folder:
        tree = Path(folder).resolve() / "plait"
        copy_tree(tree)
        unmutated = Unmutated(tree)
        for found in sample:
            if time.monotonic() - began < limit_s:
                rows.append(judged(found, tree, unmutated))
    return rows


def main() -> None:
    """Draw, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sample = draw(options.seed, options.count, options.only)
    if options.list:
        print("\n".join(f"{found.file}:{found.line} {found.function}: {found.kind}: {found.change}" for found in sample))
        return
    began = time.monotonic()
    rows = run(sample, 60 * options.minutes)
    rooms = {
        room: score([row for row in rows if room_of(str(row["file"])) == room])
        for room in sorted({room_of(str(row["file"])) for row in rows})
    }
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    machine |= {"cores": len(os.sched_getaffinity(0))}
    total = score(rows)
    print(json.dumps(total))
    survivors = [row for row in rows if row["result"] in ("survived", "equivalent")]
    command = f"OMP_NUM_THREADS=1 python benchmarks/mutation.py --seed {options.seed} --count {options.count}"
    said = {"command": command, "commit": commit, "seed": options.seed, "minutes": round((time.monotonic() - began) / 60, 1), **total}
    options.out.write_text(json.dumps({**said, "rooms": rooms, "machine": machine, "survivors": survivors}, indent=2) + "\n")


if __name__ == "__main__":
    main()
