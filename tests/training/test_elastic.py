"""A rank dies, and torchrun starts all again: the run ends by itself at the straight run's bits, and nothing is left running."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from plait.commands.prove import compare
from plait.engine.evaluation import Bench
from plait.engine.monitoring import beats
from plait.training import launch
from tests import processes, toy_family

ROOT = Path(__file__).resolve().parents[2]
LONG = ("train.steps=40", "checkpoint.every_steps=5", "evaluate=[]", "checkpoint.best=null", "guard.forgetting=null")
WORKERS = ("data.worker_kind=processes", "data.workers=1")


def torchrun(recipe, run, *overrides):
    """The toy on two ranks under torchrun, which may start them once more."""
    command = [*launch.torchrun(2, max_restarts=1)[:-1], "tests.toy_rank", "train", str(recipe), f"--run={run}", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill(run, rank, step, ended):
    """SIGKILL to one rank once it has reached a step."""
    while not (now := beats.read(run, rank)) or now["step"] < step:
        assert not ended(), "the run ended before the kill"
        time.sleep(0.002)
    os.kill(now["pid"], signal.SIGKILL)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_killed_rank_is_replaced_and_the_run_ends_at_the_straight_runs_bits(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    process = torchrun(recipe, killed, *(f"--{item}" for item in LONG))
    assert processes.codes(processes.start(2, toy_family.train, recipe, straight, *LONG)) == [0, 0]
    kill(killed, 1, 23, lambda: process.poll() is not None)
    said = process.communicate(timeout=processes.LIMIT_S)[1]
    assert process.returncode == 0, said
    assert compare.divergence(compare.runs(straight, killed)) is None
    assert said.count("language step 120/120") == 1


def test_a_signal_to_one_rank_stops_all_names_it_and_restarts_none(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    process = torchrun(recipe, tmp_path / "run", "--train.steps=4000", *(f"--{item}" for item in LONG[1:]))
    while not (now := beats.read(tmp_path / "run", 1)) or now["step"] < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(now["pid"], signal.SIGUSR1)
    said = process.communicate(timeout=processes.LIMIT_S)[1]
    assert process.returncode == 75, said
    assert re.search(
        r"^plait: stopped by SIGUSR1 at rank 1 after step \d+ of 4000, all saved; the same command continues$", said, re.MULTILINE
    )
    assert "plait: the ranks saved and stopped; the same command continues" in said and "Traceback" not in said


def test_data_that_no_restart_mends_is_told_with_file_and_record_and_restarts_none(tmp_path, monkeypatch):
    recipe = toy_family.install(monkeypatch, tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join('{"text": "no numbers"}' if i % 4 == 1 else row for i, row in enumerate(rows)))
    process = torchrun(recipe, tmp_path / "run", "--guard.max_bad_fraction=0.02", *(f"--{item}" for item in LONG))
    said = process.communicate(timeout=processes.LIMIT_S)[1]
    assert process.returncode == 2, said
    line = r"(?m)^plait: \d+ of \d+ samples could not be used, more than .+; all are in \S+; the latest: \S*train\.jsonl:\d+"
    assert len(re.findall(line, said)) == 1, said
    assert "ended with exit code 2, which a restart would not change; mend what it names" in said and "Traceback" not in said


def test_a_rank_that_dies_leaves_no_process_behind(tmp_path, monkeypatch, capfd):
    recipe = toy_family.install(monkeypatch, tmp_path)
    started = processes.start(2, toy_family.train, recipe, tmp_path / "run", *LONG, "train.steps=4000", *WORKERS)
    while not (now := beats.read(tmp_path / "run", 0)) or now["step"] < 3:
        time.sleep(0.01)
    below = [pid for process in started for pid in launch.data_workers(process.pid)]
    kill(tmp_path / "run", 1, 3, lambda: started[1].exitcode is not None)
    assert processes.codes(started) == [1, -signal.SIGKILL]
    assert len(below) == 2
    until = time.monotonic() + processes.LIMIT_S
    while any(map(alive, below)) and time.monotonic() < until:  # a worker gets two seconds to finish its sample
        time.sleep(0.02)
    assert [pid for pid in below if alive(pid)] == []
    assert re.search(
        r"Stopped: another rank ended or hangs \(.*peer.*\); its own last words say why, and the same command", capfd.readouterr().err
    )


def test_a_rank_that_is_stopped_alone_is_named_by_the_other_and_the_same_command_goes_on(tmp_path, monkeypatch, capfd):
    recipe, settings = toy_family.install(monkeypatch, tmp_path), (*LONG, "guard.hang_timeout_s=2")
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert processes.codes(processes.start(2, toy_family.train, recipe, straight, *settings)) == [0, 0]
    started = processes.start(2, toy_family.train, recipe, run, *settings)
    while not (now := beats.read(run, 1)) or now["step"] < 23:
        assert started[1].exitcode is None, "the run ended before the stop"
        time.sleep(0.002)
    capfd.readouterr()
    os.kill(now["pid"], signal.SIGSTOP)
    started[0].join(processes.LIMIT_S)
    os.kill(now["pid"], signal.SIGKILL)
    assert processes.codes(started) == [1, -signal.SIGKILL]
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("plait: ")]
    assert len(lines) == 1
    assert re.match(r"plait: rank 0: rank 1 was stopped by a signal \(SIGSTOP\): in .*, with nothing done for 2 s", lines[0])
    assert lines[0].endswith("the same command continues")
    assert processes.codes(processes.start(2, toy_family.train, recipe, run, *settings)) == [0, 0]
    assert compare.divergence(compare.runs(straight, run)) is None


def dying(model, samples, inputs, *, batch, moment):
    """A bench of which the second rank dies when it is tried before the first step."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"id": str(number), "correct": True} for number, _ in enumerate(samples)]


def test_a_rank_that_dies_while_benches_are_tried_is_not_told_as_a_bench_that_cannot_be_run(tmp_path, monkeypatch, capfd):
    recipe = toy_family.install(monkeypatch, tmp_path)
    monkeypatch.setitem(toy_family.BENCHES, "dying", Bench(dying, lambda rows: {"right": float(len(rows))}))
    settings = ("train.steps=4", "evaluate=[{bench: dying, every_steps: 2, samples: 4, batch: 1}]", "checkpoint.best=null")
    codes = processes.codes(processes.start(2, toy_family.train, recipe, tmp_path / "run", *settings))
    assert codes == [1, -signal.SIGKILL]  # 2 would be a mistake that no restart mends
    said = capfd.readouterr().err
    assert "another rank ended or hangs" in said and "cannot be run" not in said
