"""Brokers that speak TLS: Debian's redis-server, with certificates made here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from brokers import free_port
from kombu.exceptions import OperationalError
from servers import a_server
from workers import a_worker

from promptmill import BrokerUnavailableError, Client
from promptmill.app import create_app
from promptmill.settings import Settings

PASSWORD = "hidden-password"


@dataclass(frozen=True)
class Broker:
    url: str
    folder: Path

    def trusted(self) -> dict[str, str]:
        """The settings with which it can be used."""
        return {
            "tls_ca_file": str(self.folder / "ca.crt"),
            "tls_cert_file": str(self.folder / "us.crt"),
            "tls_key_file": str(self.folder / "us.key"),
        }

    def environment(self) -> dict[str, str]:
        """The same for a program."""
        settings = {"broker_url": self.url, **self.trusted()}
        return {f"PROMPTMILL_{name.upper()}": value for name, value in settings.items()}


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_ca(folder: Path, name: str) -> None:
    files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 1, "-subj", f"/CN=test {name}", *files)


def make_certificate(folder: Path, name: str, hosts: str) -> None:
    """A certificate of the CA ``ca``."""
    key, request, extensions = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "ext"))
    extensions.write_text(f"subjectAltName = {hosts}\n")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    ca = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial")
    openssl("x509", "-req", "-days", 1, "-in", request, *ca, "-extfile", extensions, "-out", folder / f"{name}.crt")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """It asks for a certificate of the client, too. Its own is for localhost, and not for 127.0.0.1."""
    server = shutil.which("redis-server")
    if server is None or shutil.which("openssl") is None:
        pytest.skip("redis-server or openssl is not installed")
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    make_ca(folder, "ca")
    make_ca(folder, "other-ca")
    make_certificate(folder, "server", "DNS:localhost")
    make_certificate(folder, "us", "DNS:us")
    options = {
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(folder / "server.crt"),
        "tls-key-file": str(folder / "server.key"),
        "tls-ca-cert-file": str(folder / "ca.crt"),
        "requirepass": PASSWORD,
    }
    client = redis.Redis(
        host="localhost",
        port=port,
        ssl=True,
        ssl_ca_certs=str(folder / "ca.crt"),
        ssl_certfile=str(folder / "us.crt"),
        ssl_keyfile=str(folder / "us.key"),
    )
    with a_server(server, folder / "server", options, client):
        yield Broker(f"rediss://:{PASSWORD}@localhost:{port}/0", folder)


def test_client_worker_plain_calls_and_celerys_command_line_speak_tls(broker: Broker, tmp_path: Path) -> None:
    options = [item for name, value in broker.trusted().items() for item in (f"--{name.replace('_', '-')}", value)]
    with a_worker(broker.url, tmp_path / "log", *options) as worker:
        with Client(broker.url, model="echo", **broker.trusted()) as client:
            assert client.generate("over TLS").text == "over TLS"
            assert [result.text for result in client.map(["a", "b"])] == ["a", "b"]
        app = create_app(Settings.read({}, broker_url=broker.url, **broker.trusted()))
        answer = app.send_task("promptmill.generate", args=["plain"], queue="promptmill.echo", ignore_result=False)
        assert answer.get(timeout=20)["text"] == "plain"
        app.close()
        command = [sys.executable, "-m", "celery", "-A", "promptmill", "inspect", "ping", "--timeout", "20"]
        command += ["--destination", worker.celery_name]
        ping = subprocess.run(
            command, env={**os.environ, **broker.environment()}, capture_output=True, text=True, timeout=60
        )
        assert "pong" in ping.stdout, ping.stderr


def test_without_a_ca_of_ones_own_the_systems_are_trusted(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = broker.trusted()
    del settings["tls_ca_file"]
    monkeypatch.setenv("SSL_CERT_FILE", str(broker.folder / "ca.crt"))
    with Client(broker.url, model="echo", **settings) as client:
        assert client.fleet()


WRONG = {
    "no CA that is known": ("localhost", {"tls_ca_file": None}, "self-signed certificate"),
    "another CA": ("localhost", {"tls_ca_file": "other-ca.crt"}, "self-signed certificate"),
    "another host name": ("127.0.0.1", {}, "IP address mismatch"),
}


@pytest.mark.parametrize(("host", "changes", "why"), WRONG.values(), ids=WRONG)
def test_a_certificate_that_is_not_to_be_trusted_is_refused_in_a_sentence(
    broker: Broker, tmp_path: Path, host: str, changes: dict[str, str | None], why: str
) -> None:
    url = broker.url.replace("localhost", host)
    given = {name: value and str(broker.folder / value) for name, value in changes.items()}
    settings = {name: value for name, value in {**broker.trusted(), **given}.items() if value}
    sentence = rf"the certificate of the broker at {host}:\d+ is not to be trusted \(.*{why}.*PROMPTMILL_TLS_CA_FILE"
    with Client(url, model="echo", broker_timeout_s=2, **settings) as client:
        with pytest.raises(BrokerUnavailableError, match=sentence) as caught:
            client.generate("a")
        assert PASSWORD not in str(caught.value)
    options = [item for name, value in settings.items() for item in (f"--{name.replace('_', '-')}", value)]
    with a_worker(url, tmp_path / "log", *options, ready=False) as process:
        assert process.wait(60) == 1
        assert re.search(sentence, process.log)
        assert "Traceback" not in process.log
        assert PASSWORD not in process.log


def test_celery_refuses_it_too_both_as_broker_and_for_results(broker: Broker) -> None:
    settings = {**broker.trusted(), "tls_ca_file": str(broker.folder / "other-ca.crt")}
    app = create_app(Settings.read({}, broker_url=broker.url, **settings))
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        app.connection_for_write().ensure_connection(max_retries=1, interval_start=0.01)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        app.backend.client.ping()


def test_a_broker_that_wants_a_certificate_of_ours_says_so(broker: Broker) -> None:
    settings = {"tls_ca_file": broker.trusted()["tls_ca_file"], "broker_timeout_s": 2}
    with (
        Client(broker.url, model="echo", **settings) as client,
        pytest.raises(BrokerUnavailableError, match="PROMPTMILL_TLS_CERT_FILE"),
    ):
        client.generate("a")
