"""The key-value store of torchrun, through which the ranks of an attempt find each other."""

import itertools
import os

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from plait.errors import PlaitError

_joins = itertools.count()
"""How often this process has joined a group: as often as the other ranks have."""


def open_store() -> Store | None:
    """Return torchrun's key-value store with a prefix of its own for each attempt and join; None where torchrun shares none.

    torchrun keeps that store over its restarts, and in it the addresses of dead ranks, which gloo would wait for (pytorch#135712). Nodes
    count attempts differently. Raises PlaitError for restarts on several nodes, saying how to start.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return None
    if int(environment["GROUP_WORLD_SIZE"]) > 1 and int(environment["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        raise PlaitError(
            f"torchrun --max-restarts on {environment['GROUP_WORLD_SIZE']} nodes: a restart would hang in torchrun's shared store; "
            "start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on every node"
        )
    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    return PrefixStore(f"attempt-{environment['TORCHELASTIC_RESTART_COUNT']}-{next(_joins)}", store)
