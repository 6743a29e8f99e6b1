"""Run torchrun with some changes to its agent, the process of each machine that starts, watches and restarts the ranks.

What differs: exit codes that a restart would not change are not restarted, the agent passes signals on and waits until ranks have saved, 75
is its exit code only where ranks saved or had not begun, a line takes the place of tracebacks, and on several machines addresses replace
host names.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from torch.distributed import DistError
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from plait.engine.monitoring import reporter
from plait.engine.monitoring.signals import INTERRUPTED, Paused
from plait.engine.parallel import network
from plait.errors import PlaitError
from plait.training import launch

log = logging.getLogger(__name__)

FINAL = (PlaitError.exit_code, Paused.exit_code)
"""Exit codes of ranks that another attempt would not change: a mistake that the user has to mend, and a stop that was asked for."""
_LOST = 1
_SHUTDOWN_S = 30.0
"""How long ranks that were being started when a signal came may take to end by it."""
_POLL_S, _HEAD_LOST_S = 5.0, 60.0  # torch's own limit for an answer of the head
_LOOPBACK = "127.0.0.1"
_PORT = 29400  # torch's own default


class _Ended(SignalException):
    """The agent's end before its ranks were done: its `__cause__` says why. `codes`: the ranks' exit codes, None for one that still runs.

    As torch's SignalException, it leaves the rendezvous open for machines that come back.
    """

    def __init__(self, codes: Sequence[int | None]) -> None:
        super().__init__("", signal.SIGTERM)
        self.codes = codes


class Agent(LocalElasticAgent):
    """Torch's agent, with two differences: exit codes in FINAL restart no rank, and what ends the agent is raised as _Ended.

    FINAL has the exit codes that another attempt would not change. _Ended is raised from torch's exception, and has the ranks' exit codes.
    """

    def codes(self) -> list[int | None]:
        """Return the exit codes of this machine's ranks in the present attempt; None for one that runs. [] before the first."""
        context = self._pcontext
        if not isinstance(context, SubprocessContext):
            return []
        return [handler.proc.poll() for handler in context.subprocess_handlers.values()]

    def run(self, role: str = "default") -> RunResult:
        """Start the ranks (torch's `role`) and watch them to their end. Raises _Ended from the cause: a signal, or machines lost."""
        try:
            result: RunResult = super().run(role)
        except (SignalException, RendezvousError, DistError) as error:
            raise _Ended(self.codes() or _end_children(_SHUTDOWN_S)) from error
        return result

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._pcontext = None  # until all have started: a signal in between makes torch forget those that have
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed() and any(failure.exitcode in FINAL for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """End the ranks by a signal, and wait for them to save. Further signals change nothing, but Ctrl-C ends the ranks at once."""
        passed_on = [signal.Signals[name] for name in os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"].split(",")]
        before = {number: signal.signal(number, signal.SIG_IGN) for number in passed_on if number != signal.SIGINT}
        try:
            super()._shutdown(death_sig, timeout)
        except SignalException:
            super()._shutdown(signal.SIGINT, timeout)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with its command-line `arguments`; return an exit code.

    0 if all ranks succeeded; 75 if they saved and stopped, or a signal ended them before training began; 130 after Ctrl-C that saved
    nothing; 1 if a rank was killed, or a machine was lost, or ranks did not save in time; 2 for a mistake; else the first failed rank's.
    """
    reporter.install()
    parsed = torchrun.parse_args(list(arguments))
    launcher: Any = importlib.import_module("torch.distributed.launcher.api")
    try:
        meet_by_addresses(parsed)
        if "is_host=0" in parsed.rdzv_conf:
            head = parse_rendezvous_endpoint(parsed.rdzv_endpoint, _PORT)
            threading.Thread(target=_watch_head, args=(*head, _POLL_S, _HEAD_LOST_S), daemon=True).start()
        launcher.LocalElasticAgent = Agent  # torch takes no other agent as an argument
        torchrun.run(parsed)
    except _Ended as ended:
        return _stopped(ended, parsed)
    except ChildFailedError as error:
        return _failed(error)
    except RendezvousConnectionError as error:
        log.error(f"plait: {_unreachable(parsed, error)}; the same command continues")
        return _LOST
    except PlaitError as error:
        log.error(f"plait: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        log.error("plait: interrupted before the ranks were started")
        return INTERRUPTED
    finally:
        launcher.LocalElasticAgent = LocalElasticAgent
    return 0


def meet_by_addresses(parsed: argparse.Namespace) -> None:
    """Complete torchrun's arguments so that ranks meet by addresses and not by host names, which other machines may not know.

    Changes `parsed`, torchrun's parsed arguments, in place. On several machines: `--local-addr`, by which the others reach this one (torch
    would give its host name); `is_host` in `--rdzv-conf`, whether the head (the machine where all meet) is this one; gloo's network
    interface; and a store for each attempt. What the user set stays. Raises PlaitError where the head's name is not known here, or is an
    address that other machines cannot reach.
    """
    if parsed.standalone or parsed.nnodes in ("1", "1:1"):
        parsed.local_addr = parsed.local_addr or _LOOPBACK
    else:
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # a store for each attempt (pytorch#135712)
        if parsed.rdzv_backend != "c10d":
            return
        host, _ = parse_rendezvous_endpoint(parsed.rdzv_endpoint, _PORT)
        address = network.resolve(host)
        parsed.local_addr = parsed.local_addr or network.own_address(host, address)
        if "is_host" not in parsed.rdzv_conf and not network.is_loopback(parsed.local_addr):  # else torch finds out which agent is first
            parsed.rdzv_conf = ",".join(filter(None, [parsed.rdzv_conf, f"is_host={int(network.is_own(address))}"]))
    names = [name for name, own in network.interfaces().items() if own == parsed.local_addr]
    if names:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def _watch_head(host: str, port: int, poll_s: float, lost_s: float) -> None:
    """End this machine's ranks and agent with exit code 1 once the head has answered and then not for `lost_s`. Runs in a thread.

    Torch waits for a machine that lost its power or network in a system call that takes a quarter of an hour to fail.
    """
    answered: float | None = None
    while answered is None or time.monotonic() - answered < lost_s:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=poll_s):
            answered = time.monotonic()
        time.sleep(poll_s)
    log.error(f"plait: the head {host}:{port} has not answered for {lost_s:g} s; start the same command on all machines again")
    for pid in launch.descendants(os.getpid()):
        launch.kill(pid)
    os._exit(_LOST)


def _stopped(ended: _Ended, parsed: argparse.Namespace) -> int:
    """Log why the agent ended before its ranks were done, and return its exit code: 75 only if they saved or had nothing to save."""
    cause = ended.__cause__
    saved = Paused.exit_code in ended.codes  # they end with it together, after the last of them has written
    if isinstance(cause, SignalException):
        reason = f"stopped by {signal.Signals(cause.sigval).name}"
    elif isinstance(cause, RendezvousClosedError):
        reason = "another machine has ended this run for good; its own last words say why"
    elif isinstance(cause, RendezvousTimeoutError):
        reason = f"not all of the {parsed.nnodes.rpartition(':')[2]} machines came to {parsed.rdzv_endpoint} in time"
    else:
        reason = _unreachable(parsed, cause)
    if ended.codes and all(code == 0 for code in ended.codes):
        return 0
    if saved:
        log.error(f"plait: {reason}; the same command continues")
        return Paused.exit_code
    trains = [word for word in parsed.training_script_args if word != "--"][:1] == ["train"]
    number = cause.sigval if isinstance(cause, SignalException) else None
    if trains and number is not None and all(code in (-number, -signal.SIGTERM, INTERRUPTED) for code in ended.codes):
        log.error(f"plait: {reason} before ranks could save; the same command begins again, or continues from the last checkpoint")
        return INTERRUPTED if number == signal.SIGINT else Paused.exit_code
    how = "; ".join(f"rank {rank} here {_how(code)}" for rank, code in enumerate(ended.codes) if code) or "no rank had begun"
    log.error(f"plait: {reason}, and nothing was saved by it: {how}; the same command continues from the last checkpoint")
    return INTERRUPTED if trains and number == signal.SIGINT else _LOST


def _failed(error: ChildFailedError) -> int:
    """Log how the first rank failed, and return the exit code. That of a rank that ended by itself with a code in FINAL goes first."""
    codes = {failure.exitcode for failure in error.failures.values()}
    if Paused.exit_code in codes:
        log.error("plait: the ranks saved and stopped; the same command continues")
        return Paused.exit_code
    rank, failure = error.get_first_failure()
    code = PlaitError.exit_code if PlaitError.exit_code in codes else failure.exitcode
    rank = next((failed for failed, each in error.failures.items() if each.exitcode == code), rank)
    if code in FINAL:
        log.error(f"plait: rank {rank} {_how(code)}, which a restart would not change; mend what it names, then the same command continues")
    else:
        log.error(f"plait: rank {rank} {_how(code)}, and no restart is left; the same command continues")
    return max(1, code)


def _end_children(timeout_s: float) -> list[int]:
    """End this process's children by SIGTERM, after `timeout_s` by SIGKILL, and return their exit codes; [] where there is none."""
    children, codes, ends = launch.children(os.getpid()), [], time.monotonic() + timeout_s
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                time.sleep(0.02)
                if time.monotonic() > ends:
                    launch.kill(pid)
            codes.append(os.waitstatus_to_exitcode(ended[1]))
    return codes


def _how(code: int) -> str:
    """Return how a process of this exit code ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _unreachable(parsed: argparse.Namespace, error: BaseException | None) -> str:
    """Return a sentence about the head that does not answer, or whose port this machine could not open."""
    causes = []
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    if any("EADDRINUSE" in text for text in causes):
        return f"the port of {parsed.rdzv_endpoint} is taken on this machine, by another run perhaps: give another port"
    return f"the head {parsed.rdzv_endpoint} does not answer: it was not started, was lost, or its port is closed"
