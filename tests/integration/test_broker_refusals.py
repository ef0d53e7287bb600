"""A broker that answers, and refuses: it is said what it has said."""

from __future__ import annotations

import pytest
import redis
from brokers import client_of

from promptmill import BrokerUnavailableError, Client
from promptmill.broker_errors import broker_errors
from promptmill.names import Names
from promptmill.settings import ClientSettings


def test_a_key_that_another_program_has_written_is_a_refusal(any_broker_url: str) -> None:
    with client_of(any_broker_url) as broker, Client(any_broker_url) as client:
        broker.set(Names("promptmill:").workers, "not ours")
        with pytest.raises(BrokerUnavailableError, match=r"refuses a command \(WRONGTYPE .*'promptmill:'"):
            client.fleet()


def test_a_broker_with_too_many_clients_says_so_where_it_is_heard() -> None:
    refused = pytest.raises(BrokerUnavailableError, match=r"refuses connections for now .*raise its maxclients")
    with refused, broker_errors(ClientSettings.read({})):  # a broker may also be gone before it is read
        raise redis.ConnectionError("max number of clients reached")


@pytest.mark.parametrize(
    "message",
    [
        "unknown command 'EVALSHA', with args beginning with: 'private",
        "Command # 1 (EVALSHA 0a private) of pipeline caused error: unknown command 'EVALSHA'",
        "Command # 1 (SET private) of pipeline caused error: unknown command 'EVALSHA', with args beginning with: '",
    ],
)
def test_the_command_that_was_refused_is_not_quoted(message: str) -> None:
    with pytest.raises(BrokerUnavailableError) as raised, broker_errors(ClientSettings.read({})):
        raise redis.ResponseError(message)
    assert "refuses a command (unknown command 'EVALSHA')" in str(raised.value)
    assert "private" not in str(raised.value)
