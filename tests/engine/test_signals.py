"""A request to stop is noted, nothing more, and only while a run lasts."""

import os
import signal

import pytest

from plait.engine.monitoring.signals import ASKING, Paused, Signals


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_sets_a_flag_and_is_named(number):
    with Signals() as signals:
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested()
        assert signals.received == signal.Signals(number).name


def test_a_second_signal_changes_nothing_and_the_last_is_named():
    with Signals() as signals:
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


def test_an_interrupt_from_the_keyboard_is_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGINT) is before


def test_what_the_ranks_agreed_on_stays():
    signals = Signals()
    assert signals.agreed is False
    assert [signals.agree(requested) for requested in (False, True, False)] == [False, True, True]
    assert signals.agreed is True


def test_a_pause_asks_to_be_tried_again():
    assert Paused("x").exit_code == os.EX_TEMPFAIL == 75
