"""Start torchrun with plait's agent (agent.py): `python -m plait.training.torchrun` takes torchrun's arguments.

A signal that comes before the agent passes signals on to ranks, while it is imported or machines meet, ends it in one line with exit code
75, or 130 for Ctrl-C: nothing is trained yet, and the same command starts again.
"""

import os
import signal
import sys

_OPTION, _VARIABLE, _DEFAULT = "--signals-to-handle=", "PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
"""How torchrun is told which signals it passes on, and what it passes on by default; it leaves others alone, and so does this file."""


def _stop(number: int, _: object) -> None:
    name = signal.Signals(number).name
    os.write(2, f"\nplait: stopped by {name} before training began; the same command starts again\n".encode())
    os._exit(130 if number == signal.SIGINT else 75)


if __name__ == "__main__":
    _given = [argument.removeprefix(_OPTION) for argument in sys.argv if argument.startswith(_OPTION)]
    for _name in (*_given, os.environ.get(_VARIABLE) or _DEFAULT)[0].split(","):
        if signal.getsignal(signal.Signals[_name]) in (signal.SIG_DFL, signal.default_int_handler):  # not what nohup has it ignore
            signal.signal(signal.Signals[_name], _stop)

from plait.training import agent  # noqa: E402  the handlers are there before what takes long

if __name__ == "__main__":
    sys.exit(agent.main(sys.argv[1:]))
