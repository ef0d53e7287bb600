"""Who may look: a password file of ours, or OAuth as Flower has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from promptmill.errors import InvalidSettingError
from promptmill.monitor.settings import MonitorSettings

__all__ = ["login_options", "oauth_settings"]

_PROVIDERS = {
    "google": "flower.views.auth.GoogleAuth2LoginHandler",
    "github": "flower.views.auth.GithubLoginHandler",
    "gitlab": "flower.views.auth.GitLabLoginHandler",
    "okta": "flower.views.auth.OktaLoginHandler",
}

#: Addresses, or all of a domain; Flower takes no other pattern at its word.
_EMAILS = re.compile(r"\.\*@[^@*|\s]+|[^@*|\s]+@[^@*|\s]+(\|[^@*|\s]+@[^@*|\s]+)*")

_OAUTH_FIELDS = ("oauth_emails", "oauth_key", "oauth_secret", "oauth_redirect_uri")


def login_options(settings: MonitorSettings) -> dict[str, Any]:
    """Flower's options for who may look.

    Raises:
        InvalidSettingError: somebody else than this machine could look without a login, or a login is only half set.
    """
    if settings.password_file is not None and settings.oauth_provider is not None:
        raise InvalidSettingError("password_file and oauth_provider don't go together: set one of them")
    if settings.is_open and not settings.is_bound_to_loopback:
        raise InvalidSettingError(
            f"listen_host is {settings.listen_host!r}, so that others could look without a login: "
            "set password_file or oauth_provider, or listen at 127.0.0.1"
        )
    if settings.oauth_provider is not None:
        return _oauth_options(settings)
    return {"basic_auth": _logins(settings.password_file), "auth": "", "auth_provider": None}


def oauth_settings(settings: MonitorSettings) -> dict[str, str]:
    """What Flower wants to know of the OAuth application."""
    return {
        "key": settings.oauth_key,
        "secret": settings.oauth_secret,
        "redirect_uri": settings.oauth_redirect_uri,
    }


def _oauth_options(settings: MonitorSettings) -> dict[str, Any]:
    missing = [name for name in _OAUTH_FIELDS if not getattr(settings, name)]
    if missing:
        raise InvalidSettingError(f"oauth_provider is set, and {', '.join(missing)} not: set all of them")
    # A pattern such as `.*` would let everybody in who has an account there.
    if not _EMAILS.fullmatch(settings.oauth_emails):
        raise InvalidSettingError(
            "oauth_emails: give addresses, as in a@example.com|b@example.com, or all of a domain, .*@example.com"
        )
    return {"basic_auth": [], "auth": settings.oauth_emails, "auth_provider": _PROVIDERS[str(settings.oauth_provider)]}


def _logins(file: Path | None) -> list[str]:
    """NAME:PASSWORD of each line of the file."""
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise InvalidSettingError(f"password_file {str(file)!r}: names and passwords are ASCII") from None
    logins = [line for line in lines if line.strip() and not line.startswith("#")]
    for number, line in enumerate(lines, start=1):
        # The line itself may be a password.
        if line in logins and not re.fullmatch(r"[^\s:]+:\S.*", line):
            raise InvalidSettingError(f"password_file {str(file)!r}, line {number}: this is not NAME:PASSWORD")
    if not logins:
        raise InvalidSettingError(f"password_file {str(file)!r} is empty: write a line NAME:PASSWORD for each login")
    return logins
