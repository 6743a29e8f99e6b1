"""The servers of the tests take many clients at once: one that is turned away tries again later and later, for a minute."""

import contextlib
import socket

import pytest

from tests import hub_server, loopback
from tests.data import faulty_server

AT_ONCE = 64


@pytest.mark.parametrize("made", [hub_server.Hub, lambda: faulty_server.FaultyServer({}), lambda: loopback.Server(loopback._Keeper)])
def test_clients_that_come_before_any_is_accepted_are_not_turned_away(made):
    server = made()
    with contextlib.ExitStack() as clients:
        clients.callback(server.server_close)
        for _ in range(AT_ONCE):
            clients.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=10))
