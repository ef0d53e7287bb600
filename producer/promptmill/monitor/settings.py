"""Settings of the monitor; see ``promptmill.settings`` for where they come from."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import Field, FilePath

from promptmill.settings import ClientSettings

__all__ = ["MonitorSettings"]


class MonitorSettings(ClientSettings):
    """Where the monitor listens, who may look, and what it keeps."""

    listen_host: str = Field("127.0.0.1", min_length=1, description="Address of the monitor; 0.0.0.0 or ::, all")
    listen_port: int = Field(5555, ge=1, le=65535, description="Port of the monitor")
    url_prefix: str = Field(
        "", pattern=r"^[A-Za-z0-9._/-]*$", description="Path below which a proxy in front of the monitor shows it"
    )
    https_cert_file: FilePath | None = Field(None, description="Certificate (PEM) with which the monitor speaks HTTPS")
    https_key_file: FilePath | None = Field(None, description="Its private key (PEM)")
    password_file: FilePath | None = Field(None, description="Who may look: a line NAME:PASSWORD for each")
    oauth_provider: Literal["google", "github", "gitlab", "okta"] | None = Field(
        None, description="Who tells who somebody is, in place of a password file"
    )
    oauth_emails: str = Field(
        "", description="Who may look, with OAuth: a@example.com|b@example.com, or .*@example.com"
    )
    oauth_key: str = Field("", description="Id of the OAuth application")
    oauth_secret: str = Field("", repr=False, description="Its secret; better set in the environment")
    oauth_redirect_uri: str = Field("", description="The monitor's own address, with /login at its end")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of the fleet's metrics for Prometheus")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of the fleet's metrics, without a login; none without it"
    )
    read_only: bool = Field(False, description="Leave out what changes something, such as revoking and shutting down")
    state_dir: Path = Field(
        Path("~/.local/state/promptmill/monitor"), description="Folder of what the monitor has seen, kept over restarts"
    )
    max_tasks: int = Field(10_000, ge=1, le=1_000_000, description="The newest tasks that are kept")

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches the monitor may look."""
        return self.password_file is None and self.oauth_provider is None

    @property
    def is_bound_to_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.listen_host).is_loopback
        except ValueError:
            return self.listen_host == "localhost"
