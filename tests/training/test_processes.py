"""Commands started as processes: fresh ones and forked ones end with their code, write to their log and can be killed with all below."""

import os
import signal
import subprocess
import sys
import time

import pytest

from plait.training import launch
from plait.training.launch import Fresh, Warm

CHILDREN = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(1, flush=True); {}"


def ended(process):
    """The exit code, waited for."""
    limit_s = time.monotonic() + 60
    while (code := process.poll()) is None and time.monotonic() < limit_s:
        time.sleep(0.01)
    return code


def test_one_rank_is_python_itself_and_several_are_torchrun():
    assert Fresh().command == [sys.executable, "-m", "plait"]
    options = ["--standalone", "--nproc-per-node=4", "--max-restarts=2"]
    assert launch.torchrun(4, 2) == [sys.executable, "-m", "plait.training.torchrun", *options, "-m", "--", "plait"]
    assert Fresh(2).command == launch.torchrun(2, 0)


def test_a_fresh_process_ends_with_its_code_and_adds_to_its_log(tmp_path):
    log, launcher = tmp_path / "log", Fresh()
    log.write_text("before\n")
    launcher.command = [sys.executable, "-c", "import sys; print('out'); sys.exit(len(sys.argv))"]
    assert ended(launcher.start(["a", "b"], log)) == 3
    assert log.read_text() == "before\nout\n"


def _lives(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.startswith(("S", "R"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_kill_takes_all_ranks_and_a_request_to_stop_the_first_process_alone(tmp_path, ranks):
    launcher = Fresh(ranks)
    launcher.command = [sys.executable, "-c", CHILDREN.format("time.sleep(60)")]
    process = launcher.start([], tmp_path / "log")
    while not (tmp_path / "log").read_text():
        time.sleep(0.01)
    (child,) = launch.descendants(process.pid)
    process.signal(signal.SIGKILL if ranks == 2 else signal.SIGTERM)
    assert ended(process) == (-signal.SIGKILL if ranks == 2 else -signal.SIGTERM)
    end = time.monotonic() + 20  # a killed process still runs for a moment
    while (lives := _lives(child)) and ranks == 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert lives is (ranks == 1)
    launch.kill(child)
    launch.kill(2**22 - 3)  # no such process: nothing happens


def test_descendants_are_those_below_at_any_depth():
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); import time; time.sleep(60)'])"
    process = subprocess.Popen([sys.executable, "-c", grandchild], stdout=subprocess.PIPE)
    process.stdout.readline()
    below = launch.descendants(process.pid)
    assert len(below) == 1 and launch.descendants(below[0]) == [] and process.pid in launch.descendants(launch.os.getpid())
    assert below[0] in launch.descendants(launch.os.getpid())
    assert launch.data_workers(process.pid) == []
    for pid in (*below, process.pid):
        launch.kill(pid)
    process.communicate()


def test_forked_processes_run_plait_one_after_another_with_their_codes(tmp_path):
    warm = Warm(["json"])
    try:
        codes = [ended(warm.start(arguments, tmp_path / "log")) for arguments in (["--help"], ["nonsense"], ["config", "nowhere.yaml"])]
        assert codes == [0, 2, 2]
        said = (tmp_path / "log").read_text()
        assert said.startswith("usage: plait") and "nonsense" in said and "nowhere.yaml" in said
    finally:
        warm.close()
    assert warm.server.returncode == 0


@pytest.mark.parametrize(
    ("raised", "code"),
    [(SystemExit(3), 3), (SystemExit(), 0), (SystemExit("no such file"), 1), (ValueError("odd"), 1), (KeyboardInterrupt(), 1)],
)
def test_a_forked_process_ends_as_python_would(tmp_path, monkeypatch, raised, code):
    def ends(*_, **__):
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # those of the test are elsewhere
        print(os.getsid(0) == os.getpid(), os.getcwd(), os.read(0, 1), *sys.argv)
        print("a warning", file=sys.stderr, end="")
        raise raised

    monkeypatch.setattr(launch.runpy, "run_module", ends)
    pid, log = os.fork(), tmp_path / "log"
    if pid == 0:
        os._exit(launch._run_forked(["train", "x"], str(log), str(tmp_path)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    said = log.read_text()
    assert f"True {tmp_path} b'' plait train x\n" in said and "a warning" in said
    assert (f"{type(raised).__name__}" in said and "Traceback" in said) is not isinstance(raised, SystemExit)
    assert log.stat().st_mode & 0o111 == 0


def test_a_forked_process_is_of_its_own_session_and_can_be_killed(tmp_path):
    warm = Warm(["plait.cli"])
    try:
        handle = warm.start(["doctor"], tmp_path / "log")
        assert handle.pid in launch.descendants(warm.server.pid)
        handle.signal(signal.SIGKILL)
        assert ended(handle) == -signal.SIGKILL
        handle.signal(signal.SIGKILL)  # it is gone: nothing happens
    finally:
        warm.close()
