"""torchrun, ending as plait does: one line and plait's exit code, in place of a traceback of its own.

`python -m plait.training.torchrun` takes torchrun's arguments. It starts the ranks, starts all again when one dies, passes signals on
and waits for the ranks to save.
"""

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from plait.engine.monitoring.signals import Paused


def main(arguments: Sequence[str]) -> int:
    """Run torchrun. Exit codes: 0 all ranks did, 75 stopped by a signal, else that of the rank that failed first (1 when it was killed)."""
    try:
        torchrun.main(list(arguments))
    except SignalException as error:
        print(f"plait: stopped by {signal.Signals(error.sigval).name}; the same command continues", file=sys.stderr)
        return Paused.exit_code
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}"
        else:
            how = f"ended with exit code {failure.exitcode}"
        print(f"plait: rank {rank} {how}, and no restart is left; the same command continues", file=sys.stderr)
        return max(1, failure.exitcode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
