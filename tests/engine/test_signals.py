"""A request to stop is noted, nothing more, and only while a run lasts."""

import os
import signal
import subprocess
import sys

import pytest

from plait.engine.monitoring.signals import ASKING, Paused, Signals
from plait.engine.parallel.leaving import stopped_by


@pytest.fixture(autouse=True)
def hangs_up():
    """The tests may be run under nohup, whose processes ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_and_a_quit_ask_to_stop_as_a_cluster_does():
    assert {signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGINT} == set(ASKING)


def test_a_process_under_nohup_goes_on_when_the_terminal_closes():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_sets_a_flag_and_is_named(number):
    with Signals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested()
        assert signals.received == signal.Signals(number).name


def test_a_second_signal_changes_nothing_and_the_last_is_named():
    with Signals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.requested(), signals.received) == (True, "SIGTERM")


def test_handlers_come_back_afterwards_even_after_an_error():
    before = [signal.getsignal(number) for number in ASKING]
    with Signals():
        assert [signal.getsignal(number) for number in ASKING] != before
    with pytest.raises(ZeroDivisionError), Signals():
        _ = 1 / 0
    assert [signal.getsignal(number) for number in ASKING] == before


def test_ctrl_c_asks_to_stop_and_a_second_one_ends_the_process_at_once():
    code = (
        "import os, signal, time\n"
        "from plait.engine.monitoring.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.requested()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(signals.received, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "SIGINT\n")
    assert [line for line in done.stderr.splitlines() if line] == [
        "plait: saving and stopping; Ctrl-C again ends at once",
        "plait: ended; the same command continues from the last checkpoint",
    ]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_the_first_signal_ends_a_start_at_once(name, code):
    script = (
        "import os, signal\n"
        "from plait.engine.monitoring.signals import Signals\n"
        "with Signals():\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "    print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"\nplait: stopped by {name} before training began; the same command starts again\n"


def test_what_the_ranks_agreed_on_stays():
    signals = Signals()
    assert signals.agreed is False
    assert [signals.agree(requested) for requested in (False, True, False)] == [False, True, True]
    assert signals.agreed is True


def test_a_pause_asks_to_be_tried_again():
    assert Paused("x").exit_code == os.EX_TEMPFAIL == 75


@pytest.mark.parametrize(
    ("received", "said"),
    [
        (["SIGTERM"], "SIGTERM"),
        (["SIGTERM", "SIGTERM"], "SIGTERM"),
        ([None, "SIGUSR1"], "SIGUSR1 at rank 1"),
        (["SIGTERM", None], "SIGTERM at rank 0"),
        ([None, None], "a rank that had no data for the next step"),
    ],
)
def test_what_stopped_the_ranks_is_named_on_all_of_them(received, said):
    assert stopped_by(received) == said
