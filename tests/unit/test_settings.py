from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from promptmill import Client, InvalidSettingError
from promptmill.app import create_app
from promptmill.broker import connect, tls_options
from promptmill.broker_address import BrokerAddress
from promptmill.settings import ClientSettings, Settings


def test_an_argument_wins_over_the_environment_which_wins_over_the_default() -> None:
    environ = {"PROMPTMILL_BROKER_URL": "redis://environment:1/0", "PROMPTMILL_TIMEOUT_S": "60"}
    settings = ClientSettings.read(environ, broker_url="redis://argument:1/0", timeout_s=None)
    assert (settings.broker_url, settings.timeout_s) == ("redis://argument:1/0", 60)
    assert ClientSettings.read(environ).broker_url == "redis://environment:1/0"
    assert ClientSettings.read({}).broker_url == "redis://localhost:6379/0"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert ClientSettings.read({"PROMPTMILL_BROKER_URL": "", "PROMPTMILL_MODEL": ""}) == ClientSettings.read({})


def test_a_client_takes_its_settings_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_BROKER_URL", "redis://environment:1/0")
    monkeypatch.setenv("PROMPTMILL_MODEL", "from-environment")
    monkeypatch.setenv("PROMPTMILL_RESULT_TTL_S", "7")
    with Client() as client:
        assert client.settings.broker_url == "redis://environment:1/0"
        assert (client.settings.model, client.settings.result_ttl_s) == ("from-environment", 7)
    with Client("redis://argument:1/0", model="from-argument", result_ttl_s=9) as client:
        assert client.settings.broker_url == "redis://argument:1/0"
        assert (client.settings.model, client.settings.result_ttl_s) == ("from-argument", 9)


@pytest.mark.parametrize(
    ("environ", "given", "message"),
    [
        ({"PROMPTMILL_TIMEOUT_S": "soon"}, {}, "^PROMPTMILL_TIMEOUT_S: 'soon' is not allowed"),
        ({"PROMPTMILL_TIMEOUT_S": "soon"}, {"timeout_s": None}, "^PROMPTMILL_TIMEOUT_S: 'soon' is not allowed"),
        ({"PROMPTMILL_TIMEOUT_S": "5"}, {"timeout_s": 0}, "^timeout_s: 0 is not allowed"),
        ({}, {"no_such_setting": 1}, "^unknown setting 'no_such_setting'$"),
        ({}, {"model": "two words"}, "^model: 'two words' is not allowed"),
        ({}, {"max_request_bytes": 0}, "^max_request_bytes: 0 is not allowed"),
        ({}, {"key_prefix": ""}, "^key_prefix: '' is not allowed"),
        (
            {"PROMPTMILL_TLS_CA_FILE": "/no/such.crt"},
            {},
            "^PROMPTMILL_TLS_CA_FILE: '/no/such.crt' is not allowed: .* file",
        ),
    ],
)
def test_a_bad_value_is_named_with_where_it_comes_from(
    environ: dict[str, str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSettingError, match=message):
        ClientSettings.read(environ, **given)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "amqp://:hidden@host",
        "http://:hidden@host",
        "redis://:hidden@host:port/0",
        "redis://:hidden@host:99999/0",
        "redis://:hidden@host:6379/database",
        "redis://:hid#den@host:6379/0",
        "redis://:hid/den@host:6379/0",
        "redis://:hid?den@host:6379/0",
        "redis://:hid[den@host:6379/0",
        "rediss://:hidden@host:6379/0?ssl_cert_reqs=none",
        "redis+socket://:hidden@",
        "sentinel://:hidden@a:26379;b:26379",
        "",
        " ",
    ],
)
def test_a_broker_url_that_means_nothing_is_refused_without_showing_it(url: str) -> None:
    if url:
        with pytest.raises(InvalidSettingError) as caught:
            Client(url)
        assert "broker_url: " in str(caught.value)
        assert "hid" not in str(caught.value)
    with pytest.raises(InvalidSettingError):
        Settings.read({}, broker_url=url)


@pytest.mark.parametrize(
    ("url", "shown", "password", "database"),
    [
        ("redis://host", "host:6379", None, 0),
        ("redis://user:p%40ss@host:7000/3", "host:7000", "p@ss", 3),
        ("rediss://:secret@host:7000", "host:7000", "secret", 0),
        ("redis+socket://:secret@/run/s.sock?virtual_host=2", "the socket /run/s.sock", "secret", 2),
        ("redis://[::1]:7000/0", "::1:7000", None, 0),
        ("sentinel://:secret@a:1/1;sentinel://b", "a:1, b:26379", "secret", 1),
    ],
)
def test_a_broker_url_is_taken_apart_and_shown_without_its_password(
    url: str, shown: str, password: str | None, database: int
) -> None:
    address = BrokerAddress.parse(Settings.read({}, broker_url=url).broker_url)
    assert (str(address), address.password, address.database) == (shown, password, database)


def test_each_sentinel_gets_the_whole_url_and_a_password_of_its_own() -> None:
    settings = Settings.read(
        {}, broker_url="sentinel://user:p%40ss@a:1/1;sentinel://[::1]", sentinel_password="the sentinels'"
    )
    app = create_app(settings)
    assert app.conf.broker_url == "sentinel://user:p%40ss@a:1/1;sentinel://user:p%40ss@[::1]:26379/1"
    for options in (app.conf.broker_transport_options, app.conf.result_backend_transport_options):
        assert options["master_name"] == "mymaster"
        assert options["sentinel_kwargs"]["password"] == "the sentinels'"
    assert create_app(Settings.read({}, broker_url="redis://a")).conf.result_backend_transport_options == {}


def test_sentinels_without_a_password_are_not_sent_the_masters() -> None:
    settings = Settings.read({}, broker_url="sentinel://:masters@a")
    options = create_app(settings).conf.broker_transport_options["sentinel_kwargs"]
    assert options["password"] is None
    assert connect(settings).connection_pool.sentinel_manager.sentinels[0].get_connection_kwargs()["password"] is None


def test_a_certificate_is_verified_unless_there_is_no_tls(tmp_path: Path) -> None:
    assert tls_options(Settings.read({}, broker_url="redis://a")) == {}
    (tmp_path / "ca.crt").touch()
    settings = Settings.read({"PROMPTMILL_TLS_CA_FILE": str(tmp_path / "ca.crt")}, broker_url="rediss://a")
    wanted = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": str(tmp_path / "ca.crt")}
    assert tls_options(settings) == wanted
    assert create_app(settings).conf.broker_use_ssl == create_app(settings).conf.redis_backend_use_ssl == wanted


def test_neither_settings_nor_addresses_print_a_password() -> None:
    settings = ClientSettings.read({}, broker_url="redis://:secret@host:1/0", sentinel_password="secret")
    for shown in (repr(settings), str(settings), repr(BrokerAddress.parse(settings.broker_url))):
        assert "secret" not in shown


def test_a_model_may_be_named_by_its_hub_id_folder_or_file() -> None:
    for name in ("Org/SmolLM2", "/models/smollm2/", "SMOLLM2", "./smollm2.GGUF"):
        assert ClientSettings.read({}, model=name).model == "smollm2"


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.read({}).broker_url = "redis://other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://broker:6379/0", "redis://:p%40ss%2Fword@broker:6379/0"),
        ("redis://user@broker/1", "redis://user:p%40ss%2Fword@broker/1"),
        ("redis://:own@broker:6379/0", "redis://:own@broker:6379/0"),
        ("sentinel://a:26379/0;sentinel://b:26379", "sentinel://:p%40ss%2Fword@a:26379/0;sentinel://b:26379"),
        ("redis+socket:///run/broker.sock", "redis+socket://:p%40ss%2Fword@/run/broker.sock"),
    ],
)
def test_the_password_may_be_in_a_file(tmp_path: Path, url: str, expected: str) -> None:
    file = tmp_path / "password"
    file.write_text("p@ss/word\n")
    settings = Settings.read({"PROMPTMILL_BROKER_PASSWORD_FILE": str(file)}, broker_url=url)
    assert settings.broker_url == expected
    assert BrokerAddress.parse(settings.broker_url).password == ("own" if "own" in url else "p@ss/word")
    assert "p@ss" not in repr(settings)


def test_a_password_file_that_is_empty_is_said(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("\n")
    with pytest.raises(InvalidSettingError, match="is empty"):
        Settings.read({}, broker_password_file=file)
    with pytest.raises(InvalidSettingError, match="broker_password_file"):
        Settings.read({}, broker_password_file=tmp_path / "nothing")
