"""The address by which other machines reach this one: from routes and interfaces, never from this machine's own name."""

import socket

import pytest

from plait.engine.parallel import network
from plait.errors import PlaitError


def test_an_address_is_resolved_to_itself_and_localhost_to_a_loopback_address():
    assert network.resolve("10.1.2.3") == "10.1.2.3"
    assert network.is_loopback(network.resolve("localhost"))
    assert network.resolve("::1") == "::1"


def test_a_name_that_nobody_knows_is_told_with_what_to_do():
    said = r"the name 'nowhere.invalid' is not known on \S+ \(.+\); give the head's address, or add the name to DNS or to /etc/hosts"
    with pytest.raises(PlaitError, match=said):
        network.resolve("nowhere.invalid", within_s=0)


def test_a_name_that_becomes_known_is_waited_for(monkeypatch):
    answers = iter([socket.gaierror(-2, "Name or service not known"), [(0, 0, 0, "", ("10.0.0.7", 0))]])

    def getaddrinfo(*_, **__):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert network.resolve("plait-0.plait", within_s=30) == "10.0.0.7"


def test_interfaces_and_own_addresses_are_those_of_this_machine():
    assert network.interfaces()["lo"] == "127.0.0.1"
    assert network.is_own("127.0.0.1") and network.is_own("::1")
    assert not network.is_own("192.0.2.1")  # documentation only (RFC 5737)
    assert network.source_address("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("interfaces", "own"),
    [({"lo": "127.0.0.1", "eth0": "10.0.0.1"}, "10.0.0.1"), ({"lo": "127.0.0.1", "eth0": "10.0.0.1", "docker0": "172.17.0.1"}, None)],
)
def test_a_head_whose_name_is_127_0_1_1_has_the_one_other_address_of_its_machine(monkeypatch, interfaces, own):
    monkeypatch.setattr(network, "interfaces", lambda: interfaces)
    if own:
        assert network.own_address("node-1", "127.0.1.1") == own
        return
    said = r"the head node-1 is 127.0.1.1 on \S+ \(/etc/hosts\), which other machines cannot reach; give .*: 10.0.0.1, 172.17.0.1"
    with pytest.raises(PlaitError, match=said):
        network.own_address("node-1", "127.0.1.1")


@pytest.mark.parametrize("head", ["127.0.0.1", "localhost"])
def test_several_agents_of_one_machine_meet_where_they_are_told_to(head):
    assert network.own_address(head, "127.0.0.1") == "127.0.0.1"
