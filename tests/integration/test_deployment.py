from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import free_port
from monitors import a_monitor
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry
from workers import a_worker

from promptmill import watchdog
from promptmill.embedded.server import find_server
from promptmill.monitor.settings import MonitorSettings
from promptmill.settings import ClientSettings, environment_name
from promptmill_worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "workers" / "Dockerfile"
MONITORS_DOCKERFILE = ROOT / "producer" / "Dockerfile"
DOCKERFILES = (DOCKERFILE, MONITORS_DOCKERFILE)

#: What each profile starts.
SERVICES = {
    "broker": {"broker"},
    "gpu": {"broker", "worker"},
    "cpu": {"broker", "worker-cpu"},
    "monitor": {"broker", "monitor", "prometheus", "grafana"},
    "worker": {"worker-elsewhere"},
}

WORKERS = ("worker", "worker-cpu", "worker-elsewhere")

Services = dict[str, dict[str, Any]]


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


def compose_config(*profiles: str, file: Path = COMPOSE, **environment: str) -> subprocess.CompletedProcess[str]:
    given = [part for profile in profiles for part in ("--profile", profile)]
    return run(
        "docker-compose",
        *("--file", file, "--project-directory", ROOT, "--env-file", os.devnull),
        *(*given, "config", "--format", "json"),
        **environment,
    )


def everything() -> dict[str, Any]:
    """The whole configuration as Compose understands it."""
    checked = compose_config(*SERVICES)
    assert checked.returncode == 0, checked.stderr
    configuration: dict[str, Any] = json.loads(checked.stdout)
    return configuration


@pytest.fixture(scope="module")
def composed() -> Services:
    """All services of it."""
    return everything()["services"]


@pytest.mark.parametrize("profile", SERVICES)
def test_compose_accepts_each_profile(profile: str) -> None:
    checked = compose_config(profile)
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr == ""
    assert json.loads(checked.stdout)["services"].keys() == SERVICES[profile]


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
    assert compose_config(*SERVICES, file=broken).returncode != 0


def test_ports_are_for_this_machine_unless_it_is_said_otherwise(composed: Services) -> None:
    ports = [port for service in composed.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    given = compose_config("broker", BROKER_ADDRESS="10.0.0.5:6379")
    assert json.loads(given.stdout)["services"]["broker"]["ports"][0]["host_ip"] == "10.0.0.5"


def test_passwords_are_files_and_nothing_else_holds_any(composed: Services) -> None:
    assert all(secret["file"].startswith(str(ROOT / "secrets")) for secret in everything()["secrets"].values())
    for service in composed.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/")
    assert "/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_what_we_build_runs_as_nobody_in_particular_with_nothing_to_write_on_but_its_volumes(
    composed: Services,
) -> None:
    for name in (*WORKERS, "monitor", "prometheus", "grafana"):
        assert composed[name]["read_only"] is True
        assert composed[name]["cap_drop"] == ["ALL"]
    for dockerfile in DOCKERFILES:
        assert "\nUSER 10001\n" in dockerfile.read_text(encoding="utf-8")


def test_one_container_has_all_gpus_and_a_worker_on_each(composed: Services) -> None:
    for name in ("worker", "worker-elsewhere"):
        [device] = composed[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["count"], device["capabilities"]) == (-1, ["gpu"])
        assert composed[name]["environment"]["PROMPTMILL_GPUS"] == "all"


def test_workers_on_the_cpu_can_be_scaled(composed: Services) -> None:
    assert "ports" not in composed["worker-cpu"]
    assert "container_name" not in composed["worker-cpu"]


def test_a_further_machines_worker_goes_to_the_broker_that_is_named() -> None:
    given = compose_config("worker", BROKER_URL="redis://10.0.0.5:6379/0")
    [worker] = json.loads(given.stdout)["services"].values()
    assert worker["environment"]["PROMPTMILL_BROKER_URL"] == "redis://10.0.0.5:6379/0"
    assert "depends_on" not in worker


def test_a_worker_is_given_more_time_to_stop_than_its_tasks_take(composed: Services) -> None:
    for name in WORKERS:
        worker = composed[name]
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


def test_the_monitors_image_asks_for_its_health_without_a_login(broker_url: str, tmp_path: Path) -> None:
    check = re.search(
        r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", MONITORS_DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert check is not None
    with a_monitor(broker_url, tmp_path, "--log-format", "json") as monitor:
        [_, *arguments] = [part.replace("5555", str(monitor.port)) for part in json.loads(check[1])]
        assert subprocess.run([sys.executable, *arguments]).returncode == 0
        lines = [json.loads(line) for line in monitor.process.log.splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert subprocess.run([sys.executable, *arguments], capture_output=True).returncode == 1


def test_compose_asks_for_a_workers_health_as_its_image_does_and_restarts_it(composed: Services) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for name in WORKERS:
        worker = composed[name]
        assert worker["restart"] == "unless-stopped"
        command = [part.replace("9464", "{port}") for part in worker["healthcheck"]["test"]]
        assert command == ["CMD", *health_check_of_the_image()]
        assert worker["healthcheck"]["start_period"] == "15m0s"
    assert "--start-period=15m " in text


def environment_of(composed: Services, name: str, password: Path) -> dict[str, str]:
    """A service's environment, with the broker's password where it is here."""
    environment = composed[name]["environment"]
    assert environment["PROMPTMILL_BROKER_PASSWORD_FILE"] == "/run/secrets/broker_password"
    assert {secret["source"] for secret in composed[name]["secrets"]} >= {"broker_password"}
    return {**environment, "PROMPTMILL_BROKER_PASSWORD_FILE": str(password)}


def test_the_services_environments_are_what_their_settings_read(composed: Services, tmp_path: Path) -> None:
    password = tmp_path / "broker_password"
    password.write_text("a-password\n")
    worker = WorkerSettings.read(environment_of(composed, "worker", password))
    assert worker.broker_url == "redis://:a-password@broker:6379/0"
    assert worker.name_served == "smollm2-135m-instruct"
    logins = tmp_path / "monitor_logins"
    logins.write_text("admin:a-login\n")
    image = dict(re.findall(r"(PROMPTMILL_\w+)=(\S+)", MONITORS_DOCKERFILE.read_text(encoding="utf-8")))
    monitor = MonitorSettings.read(
        {**image, **environment_of(composed, "monitor", password), "PROMPTMILL_PASSWORD_FILE": str(logins)}
    )
    assert monitor.broker_url == "redis://:a-password@broker:6379/0"
    assert not monitor.is_open
    assert f":{monitor.listen_port}'" not in image
    assert {port["target"] for port in composed["monitor"]["ports"]} == {monitor.listen_port}


def test_prometheus_scrapes_the_ports_that_are_served(composed: Services) -> None:
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    workers, fleet = scraped["scrape_configs"]
    found = workers["dns_sd_configs"]
    assert {name for one in found for name in one["names"]} <= composed.keys()
    first = found[0]["port"]
    assert f"PROMPTMILL_METRICS_PORT={first} " in DOCKERFILE.read_text(encoding="utf-8")
    assert [one["port"] for one in found] == list(range(first, first + 8))
    [target] = fleet["static_configs"][0]["targets"]
    name, _, port = target.partition(":")
    assert name in composed
    assert f"PROMPTMILL_METRICS_PORT={port} " in MONITORS_DOCKERFILE.read_text(encoding="utf-8")
    assert composed["worker"]["environment"]["PROMPTMILL_METRICS_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("name", ["docker-compose.yml", ".env.example", "workers/Dockerfile", "producer/Dockerfile"])
def test_every_variable_of_ours_that_is_named_is_a_setting(name: str) -> None:
    options = {"PROMPTMILL_GPUS", "PROMPTMILL_LOG_FORMAT"}
    kinds = (ClientSettings, WorkerSettings, MonitorSettings)
    known = options | {environment_name(field) for settings in kinds for field in settings.model_fields}
    named = set(re.findall(r"\bPROMPTMILL_[A-Z_]+", (ROOT / name).read_text(encoding="utf-8")))
    assert named
    assert named <= known


def test_every_variable_of_compose_is_explained_in_the_example() -> None:
    asked_for = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text(encoding="utf-8")))
    explained = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked_for == explained


def test_the_brokers_command_makes_a_server_with_the_configuration_and_the_password(
    composed: Services, tmp_path: Path
) -> None:
    data, private_folder, socket = tmp_path / "data", tmp_path / "private", tmp_path / "private" / "s.sock"
    data.mkdir()
    private_folder.mkdir()
    configuration, password = tmp_path / "valkey.conf", tmp_path / "broker_password"
    content = everything()["configs"]["broker"]["content"].replace("dir /data", f"dir {data}")
    configuration.write_text(f"{content}port 0\nunixsocket {socket}\n", encoding="utf-8")
    password.write_text("a-password\n", encoding="utf-8")
    [shell, option, script] = composed["broker"]["command"]
    script = (
        script.replace("$$", "$")
        .replace("docker-entrypoint.sh valkey-server", str(find_server()))
        .replace("/etc/valkey.conf", str(configuration))
        .replace("/run/secrets/broker_password", str(password))
    )
    server = watchdog.start_watched([shell, option, script], 10.0, private_folder)
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


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=str)
def test_the_dockerfiles_are_clean(dockerfile: Path) -> None:
    linted = run("hadolint", "--failure-threshold", "info", dockerfile)
    assert linted.returncode == 0, linted.stdout


def test_the_compose_file_has_no_grave_fault() -> None:
    linted = run("compose-lint", "check", COMPOSE)
    assert linted.returncode == 0, linted.stdout


def test_the_linter_finds_faults_in_a_bad_dockerfile(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && sudo pip install torch\n", encoding="utf-8")
    assert run("hadolint", "--failure-threshold", "info", bad).returncode != 0


def test_the_build_context_holds_what_the_dockerfiles_copy() -> None:
    copied = set()
    for dockerfile in DOCKERFILES:
        for line in re.findall(r"^COPY (.+)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE):
            copied.update(line.split()[:-1])
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
