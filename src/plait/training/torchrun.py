"""Run torchrun with plait's exit codes, and log one line in place of a traceback when a rank fails.

`python -m plait.training.torchrun` takes torchrun's arguments. It starts the ranks, restarts all of them when one dies, passes signals on
and waits for the ranks to save.
"""

import logging
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from plait.engine.monitoring import reporter
from plait.engine.monitoring.signals import Paused

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with its command-line `arguments`; return an exit code.

    0 if all ranks succeeded, 75 if a signal stopped them, 1 if a rank was killed, else the exit code of the first rank that failed.
    """
    reporter.install()
    try:
        torchrun.main(list(arguments))
    except SignalException as error:
        log.error(f"plait: stopped by {signal.Signals(error.sigval).name}; the same command continues")
        return Paused.exit_code
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        else:
            how = f"ended with exit code {failure.exitcode}"
        log.error(f"plait: rank {rank} {how}, and no restart is left; the same command continues")
        return max(1, failure.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
