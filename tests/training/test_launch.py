"""`--nproc` is torchrun with the same command; torchrun's own command line, as users must type it."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousConnectionError, RendezvousTimeoutError
from torch.distributed.run import parse_args

from plait import cli
from plait.config.schema import RunConfig
from plait.engine.parallel import network
from plait.training import agent, launch
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
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    try:
        _, environment = spread("--nproc=2", "--shutdown-timeout=90")
    finally:
        signal.signal(signal.SIGHUP, before)
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


def failed(*codes):
    return ChildFailedError("plait", {3 + i: ProcessFailure(i, 99, code, "none") for i, code in enumerate(codes)})


def ended(cause, *codes):
    error = agent._Ended(codes)
    error.__cause__ = cause
    return error


UNSAVED = "and nothing was saved by it"
SILENT = "the head  does not answer: it was not started, was lost, or its port is closed"
TERM, USR1 = (SignalException("", number) for number in (signal.SIGTERM, signal.SIGUSR1))


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ended(USR1, 75, 75), 75, "stopped by SIGUSR1; the same command continues"),
        (ended(USR1, 75, -15), 75, "stopped by SIGUSR1; the same command continues"),  # it was leaving, with all saved
        (ended(USR1, 0, 0), 0, None),
        (
            ended(TERM, -9, -15),
            1,
            f"stopped by SIGTERM, {UNSAVED}: rank 0 here was killed by SIGKILL; rank 1 here was killed by SIGTERM",
        ),
        (ended(TERM), 1, f"stopped by SIGTERM, {UNSAVED}: no rank had begun"),
        (
            ended(RendezvousClosedError(), 1),
            1,
            f"another machine has ended this run for good; its own last words say why, {UNSAVED}",
        ),
        (
            ended(RendezvousConnectionError("lost"), None, 1),
            1,
            f"{SILENT}, {UNSAVED}",
        ),
        (
            ended(RendezvousConnectionError("lost"), 75),
            75,
            f"{SILENT}; the same command",
        ),
        (ended(RendezvousTimeoutError()), 1, "not all of the 1 machines came to  in time"),
        (
            RendezvousConnectionError("code: -98, name: EADDRINUSE"),
            1,
            "the port of  is taken on this machine, by another run perhaps",
        ),
        (failed(2), 2, "rank 3 ended with exit code 2, which a restart would not change; mend what it names"),
        (failed(1, 2), 2, "rank 4 ended with exit code 2, which a restart would not change"),
        (failed(-15, 75), 75, "the ranks saved and stopped; the same command continues"),
        (failed(1), 1, "rank 3 ended with exit code 1, and no restart is left; the same command continues"),
        (failed(-9), 1, "rank 3 was killed by SIGKILL, and no restart is left; the same command continues"),
    ],
)
def test_torchrun_ends_with_one_line_and_an_exit_code_that_says_what_came_of_the_ranks(monkeypatch, capsys, raised, code, said):
    def run(parsed):
        raise raised

    monkeypatch.setattr(agent.torchrun, "run", run)
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])  # a process of its own begins without
    assert agent.main(["x.py"]) == code
    told = capsys.readouterr().err
    assert told.count("\n") == (said is not None) and told.startswith(f"plait: {said}" if said else "")


INT = SignalException("", signal.SIGINT)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ended(TERM), 75), (ended(TERM, -15, -15), 75), (ended(USR1, -10, -15), 75), (ended(INT, 130, 130), 130), (ended(INT, -2, -2), 130)],
)
def test_training_that_a_signal_ends_before_it_could_save_ends_as_one_process_does(monkeypatch, capsys, raised, code):
    def run(parsed):
        raise raised

    monkeypatch.setattr(agent.torchrun, "run", run)
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])
    assert agent.main(["-m", "--", "plait", "train", "x.yaml"]) == code
    name = signal.Signals(raised.__cause__.sigval).name
    said = f"plait: stopped by {name} before ranks could save; the same command begins again, or continues from the last checkpoint\n"
    assert capsys.readouterr().err == said
    assert agent.main(["-m", "--", "plait", "eval", "x"]) == 1  # it has no 75


EARLY = """
import builtins, os, runpy, signal, sys
number = getattr(signal, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
before = builtins.__import__
def imported(name, *rest, **more):
    if name == "torch.distributed":
        os.kill(os.getpid(), number)
    return before(name, *rest, **more)
builtins.__import__ = imported
sys.argv = ["torchrun", *sys.argv[2:]]
runpy.run_module("plait.training.torchrun", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "more", "code"),
    [
        ("SIGTERM", [], 75),
        ("SIGINT", [], 130),
        ("SIGUSR1", [f"--signals-to-handle={launch.SIGNALS}"], 75),
        ("SIGUSR1", [], -signal.SIGUSR1),
    ],
)
def test_a_signal_while_torchrun_is_imported_is_one_line(name, more, code):
    done = subprocess.run([sys.executable, "-c", EARLY, name, *more, "--help"], capture_output=True, text=True, check=False)
    said = f"\nplait: stopped by {name} before training began; the same command starts again\n" if code > 0 else ""
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def alive(text):
    """Processes whose command line has the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [int(path.parent.name)] if text.encode() in path.read_bytes() else []
    return found


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130), ("SIGUSR1", 75)])
def test_a_signal_while_the_ranks_of_a_run_start_ends_as_one_process_does(monkeypatch, tmp_path, name, code):
    recipe = toy_family.install(monkeypatch, tmp_path)
    command = [sys.executable, "-m", "plait", "train", str(recipe), f"--run={tmp_path / 'run'}", "--nproc=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    while process.poll() is None and len(launch.descendants(process.pid)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    _, told = process.communicate(timeout=60)
    assert (process.returncode, f"stopped by {name}" in told) == (code, True), told
    assert not alive(str(tmp_path / "run")), "ranks that torch had begun to start were left alone"
    assert name == "SIGINT" or "Traceback" not in told  # Python itself has one for Ctrl-C before it runs a line


@pytest.fixture
def machine(monkeypatch):
    """This machine is 10.0.0.1 on eth0; torchrun's arguments as plait's agent completes them."""
    monkeypatch.setattr(network, "source_address", lambda target: "10.0.0.1")
    monkeypatch.setattr(network, "is_own", lambda address: address == "10.0.0.1")
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.1"})
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0")  # and put back after the test
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE")

    def complete(*arguments):
        parsed = parse_args([*arguments, "x.py"])
        agent.meet_by_addresses(parsed)
        return parsed

    yield complete
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


MEET = ("--nnodes=2", "--rdzv-backend=c10d")


@pytest.mark.parametrize(("head", "is_host"), [("10.0.0.1", 1), ("10.0.0.2", 0)])
def test_machines_meet_by_addresses_and_the_head_knows_that_it_is(machine, head, is_host):
    asked = machine(*MEET, f"--rdzv-endpoint={head}:29400")
    assert (asked.local_addr, asked.rdzv_conf) == ("10.0.0.1", f"is_host={is_host}")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0" and os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_what_the_user_says_about_addresses_stays(machine, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    asked = machine(*MEET, "--rdzv-endpoint=10.0.0.2", "--local-addr=10.9.9.9", "--rdzv-conf=is_host=1,read_timeout=5")
    assert (asked.local_addr, asked.rdzv_conf, os.environ["GLOO_SOCKET_IFNAME"]) == ("10.9.9.9", "is_host=1,read_timeout=5", "ib0")


def test_one_machine_and_agents_that_share_one_are_left_to_torch(machine, monkeypatch):
    assert (machine("--standalone").local_addr, machine("--standalone").rdzv_conf) == ("127.0.0.1", "")
    monkeypatch.setattr(network, "source_address", lambda target: target)
    assert machine(*MEET, "--rdzv-endpoint=127.0.0.1:1").rdzv_conf == ""
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_head_that_is_not_known_is_told_in_one_line_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr(network.resolve, "__defaults__", (0.0,))
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])
    assert agent.main([*MEET, "--rdzv-endpoint=nowhere.invalid:1", "x.py"]) == 1
    assert capsys.readouterr().err.startswith("plait: the name 'nowhere.invalid' is not known on ")


class Left(Exception):
    pass


def test_a_head_that_answered_and_then_does_not_ends_the_other_machines(monkeypatch, caplog):
    def leave(code):
        raise Left(code)

    monkeypatch.setattr(agent.os, "_exit", leave)
    monkeypatch.setattr(launch, "descendants", lambda pid: [])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watched = []

        def watch():
            with pytest.raises(Left, match="1"):
                agent._watch_head("127.0.0.1", port, poll_s=0.02, lost_s=0.2)
            watched.append("left")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        time.sleep(0.5)
        assert not watched  # the server still answers: its connections wait to be accepted
    thread.join(30)
    assert watched == ["left"]
    assert f"the head 127.0.0.1:{port} has not answered for 0.2 s" in caplog.text


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
    monkeypatch.setattr(agent.torchrun, "run", lambda parsed: given.append(parsed) or agent.log.info("ranks are started"))
    monkeypatch.setattr(logging.getLogger("plait"), "handlers", [])
    assert agent.main(("--max-restarts=2", "-m", "plait")) == 0
    assert [(parsed.max_restarts, parsed.module, parsed.training_script) for parsed in given] == [(2, True, "plait")]
    assert capsys.readouterr().out == "ranks are started\n"


def test_torchrun_is_a_program_with_torchs_arguments():
    done = subprocess.run([sys.executable, "-m", "plait.training.torchrun", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--nproc-per-node" in done.stdout


RANK = """
import os, pathlib, sys, time
from plait.engine.monitoring.signals import Paused, Signals
here, ends = pathlib.Path(sys.argv[1]), sys.argv[2:]
rank = os.environ["RANK"]
(here / f"up{rank}-{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()
if ends != ["saves"]:
    while len(list(here.glob("up*"))) % 2:
        time.sleep(0.01)
    os._exit(int(ends[int(rank)]))
with Signals() as signals:
    while not signals.requested():
        time.sleep(0.01)
    (here / ("got" + rank)).write_text(signals.received)
sys.exit(Paused.exit_code)
"""


def under_torchrun(folder, *ends, restarts=0):
    """RANK twice under plait's torchrun, started as from a terminal."""
    (folder / "rank.py").write_text(RANK)
    command = [*launch.torchrun(2, restarts)[:-3], f"--signals-to-handle={launch.SIGNALS}", str(folder / "rank.py"), str(folder), *ends]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
    try:
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT", "SIGUSR1"])
def test_torchrun_passes_every_signal_on_and_ends_with_75_and_no_traceback(tmp_path, name):
    process = under_torchrun(tmp_path, "saves")
    while process.poll() is None and len(list(tmp_path.glob("up*"))) < 2:
        time.sleep(0.01)
    time.sleep(0.2)  # until the ranks listen
    process.send_signal(signal.Signals[name])
    _, told = process.communicate(timeout=60)
    assert (process.returncode, f"plait: stopped by {name}; the same command continues" in told) == (75, True), told
    assert [(tmp_path / got).read_text() for got in ("got0", "got1")] == [name] * 2
    assert "Traceback" not in told


@pytest.mark.parametrize(("ends", "code", "starts"), [((2, 1), 2, 2), ((75, 75), 75, 2), ((1, 1), 1, 4)])
def test_ranks_are_started_again_only_where_that_may_help(tmp_path, ends, code, starts):
    process = under_torchrun(tmp_path, *map(str, ends), restarts=1)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, len(list(tmp_path.glob("up*")))) == (code, starts), told
    assert "Traceback" not in told


def test_a_server_that_has_forked_nothing_has_no_exit_code():
    warm = launch.Warm([])
    assert warm.poll() is None
    warm.close()
