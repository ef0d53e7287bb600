"""Settings: read in one place, once, into a frozen object that is passed along.

An argument or a command-line option wins over the environment variable ``PROMPTMILL_<FIELD>``, which wins over
the default. A bad value stops the program with a sentence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FilePath, ValidationError, field_validator

from promptmill.errors import InvalidSettingError

__all__ = ["ClientSettings", "ServedName", "Settings", "environment_name", "last_part"]

ENVIRONMENT_PREFIX = "PROMPTMILL_"

BROKER_SCHEMES = ("redis://", "rediss://", "redis+socket://", "sentinel://")

#: What a served name, and with it a queue's name, may look like.
SERVED_NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,127}$"


def last_part(model: Any) -> Any:
    """What a hub id, a folder or a GGUF file is served as unless something else is set: its last part."""
    return model.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf") if isinstance(model, str) else model


#: A worker and a client on one machine may share PROMPTMILL_MODEL: both make a served name of it in the same way.
ServedName = Annotated[str, BeforeValidator(last_part), Field(pattern=SERVED_NAME_PATTERN)]


def environment_name(field: str) -> str:
    """The environment variable of a settings field."""
    return ENVIRONMENT_PREFIX + field.upper()


class Settings(BaseModel):
    """What every part of promptmill has to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    broker_url: str = Field(
        "redis://localhost:6379/0",
        repr=False,  # it may hold a password
        description="Redis or Valkey: redis://, rediss://, redis+socket:// or sentinel://host:port;sentinel://host:port",
    )
    broker_password_file: FilePath | None = Field(
        None, description="File with the broker's password, for a URL without one"
    )
    sentinel_master: str = Field("mymaster", description="Name of the master, with sentinel:// brokers")
    sentinel_password: str | None = Field(
        None, repr=False, description="Password of the sentinels themselves; the URL's is the master's"
    )
    tls_ca_file: FilePath | None = Field(None, description="Certificates (PEM) to trust besides the system's")
    tls_cert_file: FilePath | None = Field(None, description="Our certificate (PEM), if the broker asks for one")
    tls_key_file: FilePath | None = Field(None, description="Its private key (PEM), unless it is in the same file")
    key_prefix: str = Field("promptmill:", min_length=1, description="What our keys in the broker begin with")

    @field_validator("broker_url")
    @classmethod
    def _broker_url_has_a_known_scheme(cls, url: str) -> str:
        for part in url.split(";"):  # several sentinels
            if not part.startswith(BROKER_SCHEMES):
                raise ValueError(f"a broker URL begins with one of {', '.join(BROKER_SCHEMES)}")
            if not _can_be_taken_apart(part):
                # Without the URL: what can't be taken apart may be the password.
                raise ValueError(
                    "this is no URL of a broker: a port is a number, so is a database, no options follow it, and of a "
                    "password's characters @ / ? # [ ] % are written %40 %2F %3F %23 %5B %5D %25"
                )
        return url

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """The settings from ``given`` (None counts as not given), then ``environ``, then the defaults.

        Args:
            environ: The environment to read; ``os.environ`` unless given.
            given: Values by field name: arguments of a call, options of a command line.

        Raises:
            InvalidSettingError: a name is unknown or a value means nothing.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {
            name: environ[environment_name(name)] for name in cls.model_fields if environ.get(environment_name(name))
        }
        given = {name: value for name, value in given.items() if value is not None}
        values.update(given)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise InvalidSettingError(_describe(error, from_environment=values.keys() - given.keys())) from None
        if settings.broker_password_file is None:
            return settings
        url = _with_password(settings.broker_url, settings.broker_password_file)
        return settings.model_copy(update={"broker_url": url})


class ClientSettings(Settings):
    """What a client has to know besides."""

    model: ServedName | None = Field(None, description="Served name to submit to; else the only one that is served")
    submitter: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Who shares the workers with others; by default each client is a submitter of its own",
    )
    result_ttl_s: int = Field(86_400, ge=1, description="How long the results of submit are kept, in seconds")
    timeout_s: float = Field(86_400, gt=0, le=31_536_000, description="Default deadline of a task, in seconds")
    max_request_bytes: int = Field(1_048_576, ge=1, description="Largest prompt that is accepted, in bytes of JSON")
    max_queued_prompts: int = Field(
        1_000_000, ge=1, description="The most prompts that a model's queue and workers may hold"
    )
    full_queue_wait_s: float = Field(
        0.0, ge=0, description="How long submit waits for a full queue before QueueFullError, in seconds; map waits on"
    )
    broker_timeout_s: float = Field(4.0, gt=0, description="How long to try the broker before giving up, in seconds")


def _can_be_taken_apart(url: str) -> bool:
    try:
        parts = urlsplit(url)
        database = parts.path.strip("/")
        is_complete = bool(parts.port != 0 and not parts.fragment and not parts.query.count("@"))
    except ValueError:
        return False
    if parts.scheme == "redis+socket":
        return is_complete and parts.path != ""
    # No options: kombu and Celery would take `?ssl_cert_reqs=none` from there, above what we tell them.
    return is_complete and not parts.query and (database == "" or database.isdecimal())


def _with_password(url: str, file: Path) -> str:
    """``url`` with the password that is in ``file``, unless it has one; of several sentinels the first carries it."""
    parts = urlsplit(url.partition(";")[0])
    if parts.password is not None:
        return url
    try:
        password = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"broker_password_file: {file} can't be read ({type(error).__name__})") from None
    if not password:
        raise InvalidSettingError(f"broker_password_file: {file} is empty")
    user, _, host = parts.netloc.rpartition("@")
    return url.replace(f"//{parts.netloc}", f"//{user}:{quote(password, safe='')}@{host}", 1)


#: Fields whose value may hold a password.
_SECRET_FIELDS = frozenset({"broker_url", "sentinel_password", "oauth_secret"})


def _describe(error: ValidationError, from_environment: set[str]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    shown = environment_name(name) if name in from_environment else name
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    if first["type"] == "missing":
        return f"{name} is not set: give --{name.replace('_', '-')} or {environment_name(name)}"
    if name in _SECRET_FIELDS:
        return f"{shown}: {message}"
    return f"{shown}: {first['input']!r} is not allowed: {message}"
