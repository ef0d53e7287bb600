"""Why the broker can't be reached, or does not let us do what we need, in a sentence."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.sentinel import MasterNotFoundError

from promptmill.access import CLIENT_COMMANDS, WORKER_COMMANDS, denied_commands
from promptmill.broker import connect
from promptmill.broker_address import BrokerAddress
from promptmill.errors import BrokerUnavailableError
from promptmill.settings import Settings

__all__ = ["broker_errors", "check_access"]

#: How many denied commands a message names.
SHOWN_DENIALS = 3


@contextmanager
def broker_errors(settings: Settings) -> Iterator[None]:
    """Turns redis-py's errors into BrokerUnavailableError, naming host and port and never the password."""
    try:
        yield
    except redis.AuthenticationError:
        raise BrokerUnavailableError(
            f"the broker at {_shown(settings)} refuses the user or the password: check PROMPTMILL_BROKER_URL"
        ) from None
    except redis.ConnectionError as error:
        raise BrokerUnavailableError(_why_not_connected(error, settings)) from None
    except redis.exceptions.RedisError as error:
        why = _why_denied(error, settings) if _is_denial(error) else _why_useless(error, settings)
        raise BrokerUnavailableError(why) from None


def check_access(settings: Settings, model: str) -> bool:
    """Finds out whether the broker lets a worker in, and do all that it has to do.

    Returns:
        Whether the broker answers; one that doesn't may come.

    Raises:
        BrokerUnavailableError: no waiting will mend it: the certificate, the password, or the access rules.
    """
    with broker_errors(settings):
        try:
            denied = _denied(settings, WORKER_COMMANDS, model)
        except redis.AuthenticationError:
            raise
        except redis.RedisError as error:
            if isinstance(_tls_error(error), ssl.SSLCertVerificationError):
                raise
            return False
    if denied:
        raise BrokerUnavailableError(_denial(settings, denied))
    return True


def _denied(settings: Settings, commands: str, model: str = "any") -> list[str]:
    with connect(settings) as client:
        try:
            return denied_commands(client, commands, settings.key_prefix, model)
        except redis.exceptions.NoPermissionError as error:  # not even a script
            return [str(error)]


def _is_denial(error: redis.RedisError) -> bool:
    # Scripts fail with an error of their own, of which Redis 7 and Valkey have different ones.
    in_script = "ACL failure in script" in str(error) or "The user executing the script can't" in str(error)
    return isinstance(error, redis.exceptions.NoPermissionError) or in_script


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error under an error of redis-py, if that is what kept us from connecting."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _why_not_connected(error: redis.ConnectionError, settings: Settings) -> str:
    if isinstance(error, MasterNotFoundError):
        return (
            f"no sentinel at {_shown(settings)} names a living master {settings.sentinel_master!r}: are they running, "
            "and are PROMPTMILL_SENTINEL_MASTER and PROMPTMILL_SENTINEL_PASSWORD right?"
        )
    tls = _tls_error(error)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the broker at {_shown(settings)} is not to be trusted ({tls.verify_message}): "
            "give its CA with PROMPTMILL_TLS_CA_FILE, and the host name that is in the certificate"
        )
    if tls is not None:
        return (
            f"TLS with the broker at {_shown(settings)} fails ({tls.reason or type(tls).__name__}): does it speak TLS "
            "on this port, and does it want a certificate of ours (PROMPTMILL_TLS_CERT_FILE)?"
        )
    return _why_useless(error, settings)


def _why_denied(error: redis.RedisError, settings: Settings) -> str:
    try:
        denied = _denied(settings, CLIENT_COMMANDS)  # all of them, where the error names one at best
    except redis.RedisError:
        denied = []
    return _denial(settings, denied or [_reply(error)])


def _denial(settings: Settings, denied: list[str]) -> str:
    user = BrokerAddress.parse(settings.broker_url).username or "default"
    more = f" and {len(denied) - SHOWN_DENIALS} more" if len(denied) > SHOWN_DENIALS else ""
    return (
        f"the broker at {_shown(settings)} denies user {user!r} what promptmill needs ("
        f"{'; '.join(denied[:SHOWN_DENIALS])}{more}): docs/security.md has the access rules"
    )


#: What a broker says that answers and refuses, and what that means.
_REFUSALS = {
    "LOADING": "it still loads its data",
    "MASTERDOWN": "it is a replica, and its master is away",
    "MISCONF": "it can't write to its disk",
    "NOREPLICAS": "too few replicas follow it",
    "OOM": "it is at its maxmemory",
    "READONLY": "it is a replica",
}

#: The same, before it listens to any command.
TOO_MANY = "max number of clients reached"

_CLASSES: dict[str, type[redis.RedisError]] = {
    "LOADING": redis.exceptions.BusyLoadingError,
    "MASTERDOWN": redis.exceptions.MasterDownError,
    "OOM": redis.exceptions.OutOfMemoryError,
    "READONLY": redis.exceptions.ReadOnlyError,
}


def _why_useless(error: redis.RedisError, settings: Settings) -> str:
    for code, why in _REFUSALS.items():
        # redis-py cuts the code off where it has a class for it; Redis 6.2 puts words of its own in front of it.
        if isinstance(error, _CLASSES.get(code, ())) or code in str(error).split():
            return f"the broker at {_shown(settings)} refuses commands for now ({code}): {why}"
    if TOO_MANY in str(error):
        return f"the broker at {_shown(settings)} refuses connections for now ({TOO_MANY}): raise its maxclients"
    if isinstance(error, redis.ResponseError):
        return (
            f"the broker at {_shown(settings)} refuses a command ({_reply(error)}): is it Redis 6.2 or newer, or "
            f"Valkey, and does nobody else write what begins with {settings.key_prefix!r}?"
        )
    return (
        f"the broker at {_shown(settings)} does not answer ({type(error).__name__}): "
        "is it running, and does PROMPTMILL_BROKER_URL name it?"
    )


def _reply(error: redis.RedisError) -> str:
    """What the broker has said, without the command that it and redis-py quote: there may be a prompt in it."""
    return str(error).rpartition("caused error: ")[2].partition(", with args")[0]


def _shown(settings: Settings) -> str:
    return str(BrokerAddress.parse(settings.broker_url))
