"""Several ranks of one test, forked from the process that has imported everything: a second, where fresh ones take ten."""

import faulthandler
import os
import socket
import traceback
from unittest import mock

LIMIT_S = 120
"""What a rank may take, waiting for the others included."""


def fork(size, function, *arguments):
    """Call `function(*arguments)` on `size` gloo ranks; raises where any of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pids = [_rank(rank, common, function, arguments) for rank in range(size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * size, f"exit codes of the ranks: {codes}"


def _rank(rank, common, function, arguments):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        with mock.patch.dict(os.environ, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}):
            function(*arguments)
        code = 0
    except BaseException:  # noqa: BLE001  the process ends here, with its traceback
        traceback.print_exc()
    finally:
        os._exit(code)
