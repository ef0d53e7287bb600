from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from brokers import free_port
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry
from workers import a_worker

from promptmill import watchdog
from promptmill.embedded.server import find_server
from promptmill.settings import ClientSettings, environment_name
from promptmill_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "workers" / "Dockerfile"


def run(program: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this Python environment; only ``environment`` is set besides PATH and HOME."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [Path(sysconfig.get_path("scripts")) / program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=inherited | environment,
    )


def compose_config(
    *profiles: str, file: Path = COMPOSE, password: str = "a-password"
) -> subprocess.CompletedProcess[str]:
    given = [part for profile in profiles for part in ("--profile", profile)]
    return run(
        "docker-compose",
        *("--file", file, "--project-directory", ROOT, "--env-file", os.devnull),
        *(*given, "config", "--format", "json"),
        BROKER_PASSWORD=password,
    )


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, object]]:
    """The whole configuration as Compose understands it."""
    checked = compose_config("gpu", "cpu")
    assert checked.returncode == 0, checked.stderr
    return json.loads(checked.stdout)


@pytest.mark.parametrize(
    ("profiles", "services"),
    [((), {"broker"}), (("gpu",), {"broker", "worker"}), (("cpu",), {"broker", "worker-cpu"})],
)
def test_compose_accepts_each_profile(profiles: tuple[str, ...], services: set[str]) -> None:
    checked = compose_config(*profiles)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    assert json.loads(checked.stdout)["services"].keys() == services


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("capabilities: [gpu]", "capabilites: [gpu]"),
        ("stop_grace_period: 45s", "stop_grace_period: a while"),
        ("condition: service_healthy", "condition: service_happy"),
        ("- source: broker", "- source: brokre"),
        ("- models:/models", "- model:/models"),
    ],
)
def test_compose_rejects_a_broken_copy(tmp_path: Path, right: str, wrong: str) -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert right in text
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    assert compose_config("gpu", "cpu", file=broken).returncode != 0


def test_compose_demands_a_password_and_says_where_to_set_it() -> None:
    checked = compose_config("gpu", password="")
    assert checked.returncode != 0
    assert "set it in .env, see .env.example" in checked.stderr


def test_the_password_is_on_no_command_line_and_the_port_is_for_this_machine_only(composed: dict) -> None:
    broker = composed["services"]["broker"]
    assert "a-password" not in json.dumps([broker["command"], broker["healthcheck"]])
    assert [port["host_ip"] for port in broker["ports"]] == ["127.0.0.1"]


def test_a_worker_is_given_more_time_to_stop_than_its_tasks_take(composed: dict) -> None:
    for name in ("worker", "worker-cpu"):
        worker = composed["services"][name]
        grace_s = float(worker["environment"]["PROMPTMILL_GRACE_S"])
        assert float(worker["stop_grace_period"].removesuffix("s")) >= grace_s + 10


def health_check_of_the_image() -> list[str]:
    text = DOCKERFILE.read_text(encoding="utf-8")
    port = re.search(r"PROMPTMILL_METRICS_PORT=(\d+)", text)
    check = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", text, re.MULTILINE)
    assert port is not None
    assert check is not None
    assert f":{port[1]}'" in check[1]
    return [part.replace(port[1], "{port}") for part in json.loads(check[1])]


def test_the_images_health_check_tells_a_worker_that_is_well_from_one_that_is_gone(
    broker_url: str, tmp_path: Path
) -> None:
    port = str(free_port())
    [python, *arguments] = [part.replace("{port}", port) for part in health_check_of_the_image()]
    assert python == "python"
    check = [sys.executable, *arguments]
    with a_worker(broker_url, tmp_path / "log", "--metrics-port", port):
        proxied = {**os.environ, "http_proxy": f"http://127.0.0.1:{free_port()}"}
        asked = subprocess.run(check, capture_output=True, text=True, env=proxied)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
    assert subprocess.run(check, capture_output=True).returncode == 1


def test_compose_asks_for_a_workers_health_as_its_image_does_and_restarts_it(composed: dict) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for name in ("worker", "worker-cpu"):
        worker = composed["services"][name]
        assert worker["restart"] == "unless-stopped"
        command = [part.replace("9464", "{port}") for part in worker["healthcheck"]["test"]]
        assert command == ["CMD", *health_check_of_the_image()]
        assert worker["healthcheck"]["start_period"] == "15m0s"
    assert "--start-period=15m " in text


def test_the_workers_environment_is_what_its_settings_read(composed: dict) -> None:
    environment = composed["services"]["worker"]["environment"]
    settings = WorkerSettings.read(environment)
    assert settings.broker_url == "redis://:a-password@broker:6379/0"
    assert settings.name_served == "smollm2-135m-instruct"


@pytest.mark.parametrize("name", ["docker-compose.yml", ".env.example", "workers/Dockerfile"])
def test_every_variable_of_ours_that_is_named_is_a_setting(name: str) -> None:
    known = {
        environment_name(field) for settings in (ClientSettings, WorkerSettings) for field in settings.model_fields
    }
    named = set(re.findall(r"\bPROMPTMILL_[A-Z_]+", (ROOT / name).read_text(encoding="utf-8")))
    assert named
    assert named <= known


def test_every_variable_of_compose_is_explained_in_the_example() -> None:
    asked_for = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text(encoding="utf-8")))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked_for == explained


def test_a_server_takes_the_brokers_configuration(composed: dict, tmp_path: Path) -> None:
    data, private_folder = tmp_path / "data", tmp_path / "private"
    data.mkdir()
    private_folder.mkdir()
    socket = private_folder / "s.sock"
    configuration = tmp_path / "valkey.conf"
    content = composed["configs"]["broker"]["content"].replace("dir /data", f"dir {data}")
    configuration.write_text(f"{content}port 0\nunixsocket {socket}\n", encoding="utf-8")
    server = watchdog.start_watched([str(find_server()), str(configuration)], 10.0, private_folder)
    try:
        client = Redis(unix_socket_path=str(socket), password="a-password", retry=Retry(NoBackoff(), 0))
        wait_for_answer(client)
        assert client.config_get("maxmemory*")["maxmemory"] == str(2 * 1024**3)
        assert (data / "appendonlydir").is_dir()
        with pytest.raises(AuthenticationError):
            Redis(unix_socket_path=str(socket)).ping()
    finally:
        watchdog.ask_to_stop(server)


def wait_for_answer(client: Redis, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.ping()
        except RedisError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_the_dockerfile_is_clean() -> None:
    linted = run("hadolint", "--failure-threshold", "info", DOCKERFILE)
    assert linted.returncode == 0, linted.stdout


def test_the_linter_finds_faults_in_a_bad_dockerfile(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && sudo pip install torch\n", encoding="utf-8")
    assert run("hadolint", "--failure-threshold", "info", bad).returncode != 0


def test_the_build_context_holds_what_the_dockerfile_copies() -> None:
    copied = set()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE):
        copied.update(line.split()[:-1])
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
