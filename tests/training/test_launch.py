"""`--nproc` is torchrun with the same command; torchrun's own command line, as users must type it."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args

from plait import cli
from plait.config.schema import RunConfig
from plait.training import launch, torchrun
from tests import toy_family


class Became(Exception):
    pass


@pytest.fixture
def spread(monkeypatch, tmp_path):
    """`plait` with arguments; returns torchrun's parsed arguments and environment."""
    recipe = toy_family.install(monkeypatch, tmp_path)

    def execve(path, command, environment):
        raise Became(command, environment)

    def run(*arguments):
        monkeypatch.setattr(os, "execve", execve)
        with pytest.raises(Became) as became:
            cli.main(["train", str(recipe), *arguments])
        command, environment = became.value.args
        assert command[1:3] == ["-m", "plait.training.torchrun"]
        return parse_args(command[3:]), environment

    return run


def test_nproc_becomes_torchrun_with_the_same_command(spread, tmp_path):
    asked, _ = spread("--run=x/y", "--nproc", "8", "--max-restarts=3", "--optim.lr=0.1", "--shutdown-timeout", "60", "--stage", "vision")
    assert (asked.nproc_per_node, asked.max_restarts, asked.standalone, asked.module) == ("8", 3, True, True)
    assert asked.training_script == "plait"
    given = ["train", str(tmp_path / "recipe.yaml"), "--run=x/y", "--optim.lr=0.1", "--stage", "vision"]
    assert [item for item in asked.training_script_args if item != "--"] == given


@pytest.mark.parametrize(("handler", "passed_on"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)], ids=["terminal", "nohup"])
def test_nproc_passes_on_a_closed_terminal_except_under_nohup(spread, handler, passed_on):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        _, environment = spread("--nproc=2")
    finally:
        signal.signal(signal.SIGHUP, before)
    names = environment["PET_SIGNALS_TO_HANDLE"].split(",")
    assert names == ["SIGTERM", "SIGINT", *(["SIGHUP"] if passed_on else []), "SIGQUIT", "SIGUSR1"]


def test_nproc_passes_on_the_signal_before_a_time_limit_and_the_time_to_save(spread):
    _, environment = spread("--nproc=2", "--shutdown-timeout=90")
    assert "SIGUSR1" in environment["PET_SIGNALS_TO_HANDLE"].split(",")
    assert environment["PET_SHUTDOWN_TIMEOUT"] == "90"
    os.environ.update({name: value for name, value in environment.items() if name.startswith("PET_")})
    try:
        asked = parse_args(["-m", "x"])
    finally:
        for name in ("PET_SIGNALS_TO_HANDLE", "PET_SHUTDOWN_TIMEOUT"):
            del os.environ[name]
    assert (asked.signals_to_handle, asked.shutdown_timeout) == (launch.SIGNALS, 90)  # torch 2.13; older ones ignore it


def test_a_wrong_configuration_is_told_once_before_any_rank_starts(spread, tmp_path, capsys):
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), "--nproc=8", "--optim.lrr=1"]) == 2
    assert capsys.readouterr().err == "plait: command line: optim.lrr is not a key: did you mean optim.lr?\n"


@pytest.mark.parametrize("name", sorted({field.alias or name for name, field in RunConfig.model_fields.items()} - {"run"}))
def test_torchrun_leaves_every_setting_but_run_to_plait(name):
    assert parse_args(["-m", "plait", "train", "x.yaml", f"--{name}=1"]).training_script_args[-1] == f"--{name}=1"


def test_torchrun_takes_run_for_its_own_unless_two_dashes_come_before_plait(capsys):
    with pytest.raises(SystemExit):
        parse_args(["-m", "plait", "train", "x.yaml", "--run=y"])
    assert "ambiguous option: --run=y could match --run-path" in capsys.readouterr().err
    assert parse_args(["-m", "--", "plait", "train", "x.yaml", "--run=y"]).training_script_args[-1] == "--run=y"


def failed(code):
    return ChildFailedError("plait", {3: ProcessFailure(3, 99, code, "none")})


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SignalException("", signal.SIGUSR1), 75, "stopped by SIGUSR1; the same command continues"),
        (failed(2), 2, "rank 3 ended with exit code 2, and no restart is left; the same command continues"),
        (failed(-9), 1, "rank 3 was killed by SIGKILL, and no restart is left; the same command continues"),
    ],
)
def test_torchrun_ends_with_one_line_and_the_exit_code_of_plait(monkeypatch, capsys, raised, code, said):
    def main(arguments):
        raise raised

    monkeypatch.setattr(torchrun.torchrun, "main", main)
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])  # a process of its own begins without
    assert torchrun.main([]) == code
    assert capsys.readouterr().err == f"plait: {said}\n"


def test_options_of_restarts_need_nproc_and_nproc_is_not_for_ranks(monkeypatch, tmp_path, capsys):
    recipe = str(toy_family.install(monkeypatch, tmp_path))
    assert cli.main(["train", recipe, "--max-restarts=2"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", recipe, "--nproc=2"]) == 2
    said = capsys.readouterr().err
    assert "--max-restarts and --shutdown-timeout belong to --nproc, or to torchrun itself; add --nproc=N" in said
    assert "--nproc=2 was given to a rank that torchrun started; leave --nproc away" in said


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 2, "4"), (2, 4, "1"), (7, 2, "3"), (None, 1, "1")])
def test_ranks_share_the_cores_unless_told_otherwise(monkeypatch, cores, ranks, threads):
    became = []
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "execve", lambda path, command, environment: became.append(environment))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch.exec_torchrun(ranks, 0, None, ["train", "x.yaml"])
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launch.exec_torchrun(ranks, 0, 0, ["train", "x.yaml"])
    assert [environment["OMP_NUM_THREADS"] for environment in became] == [threads, "5"]
    assert not any("PET_SHUTDOWN_TIMEOUT" in environment for environment in became)


def test_torchrun_that_succeeds_ends_with_0_gets_its_arguments_and_has_what_plait_says_on_its_output(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(torchrun.torchrun, "main", lambda arguments: given.append(arguments) or torchrun.log.info("ranks are started"))
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])
    assert torchrun.main(("-m", "plait")) == 0
    assert given == [["-m", "plait"]]
    assert capsys.readouterr().out == "ranks are started\n"


def test_torchrun_is_a_program_with_torchs_arguments():
    done = subprocess.run([sys.executable, "-m", "plait.training.torchrun", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--nproc-per-node" in done.stdout


RANK = """
import os, pathlib, sys, time
from plait.engine.monitoring.signals import Paused, Signals
with Signals() as signals:
    here = pathlib.Path(sys.argv[1])
    (here / ("up" + os.environ["RANK"])).touch()
    while not signals.requested():
        time.sleep(0.01)
    (here / ("got" + os.environ["RANK"])).write_text(signals.received)
sys.exit(Paused.exit_code)
"""


def test_torchrun_passes_a_closed_terminal_on_and_ends_with_75(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    command = [*launch.torchrun(2)[:-3], f"--signals-to-handle={launch.SIGNALS}", str(tmp_path / "rank.py"), str(tmp_path)]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:
        signal.signal(signal.SIGHUP, before)
    while process.poll() is None and len(list(tmp_path.glob("up?"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, "plait: stopped by SIGHUP; the same command continues" in told) == (75, True), told
    assert [(tmp_path / name).read_text() for name in ("got0", "got1")] == ["SIGHUP"] * 2


def test_a_server_that_has_forked_nothing_has_no_exit_code():
    warm = launch.Warm([])
    assert warm.poll() is None
    warm.close()
