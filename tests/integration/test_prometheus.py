"""A real Prometheus that scrapes real workers and the exporter; the rules and the dashboard that we ship."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import pytest
import yaml
from brokers import client_of, free_port
from workers import a_process, a_worker, wait_until

from promptmill import Client, TaskFailedError
from promptmill.embedded import EmbeddedBroker
from promptmill.monitor.exporter import exporter
from promptmill.settings import Settings
from promptmill_worker.echo import FAULT_ERROR

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "promptmill.json").read_text(encoding="utf-8"))
RULES = DEPLOY / "prometheus" / "rules.yml"

# A scrape that takes too long, on a machine that stands still, leaves nothing to be seen until the next one: hence all
# the waiting.

#: Without a GPU there is nothing of these.
GPU_PANELS = {"GPUs"}

ANSWERED, FAILED, STUCK = 400, 5, 3

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


@dataclass
class Scraped:
    """A Prometheus after some load."""

    url: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series; an expression that is wrong raises."""
        asked = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                found = json.loads(answer.read())["data"]["result"]
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) and error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            return []  # it does not listen yet, or is not ready
        return [(series["metric"], float(series["value"][1])) for series in found]

    def total(self, expression: str) -> float:
        """The sum of all series."""
        return sum(value for _, value in self.query(expression))


def configuration(workers: list[int], fleet: int) -> dict[str, object]:
    """The one that we ship, with other targets and a shorter interval."""
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    of_workers, of_fleet = shipped["scrape_configs"]
    del of_workers["dns_sd_configs"]
    of_workers["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in workers]}]
    of_fleet["static_configs"] = [{"targets": [f"127.0.0.1:{fleet}"]}]
    shipped["global"] = {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "1s"}
    shipped["rule_files"] = [str(RULES)]
    return shipped


@pytest.fixture(scope="module")
def scraped(embedded_broker: EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """Two workers that have answered 400 prompts and failed at 5, and a queue that nobody serves."""
    folder = tmp_path_factory.mktemp("prometheus")
    with client_of(embedded_broker.url) as broker:
        broker.flushall()  # what tests before have counted
    ports, fleet, port = [free_port(), free_port()], free_port(), free_port()
    (folder / "prometheus.yml").write_text(json.dumps(configuration(ports, fleet)))  # which is YAML, too
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with ExitStack() as stack:
        for number, metrics_port in enumerate(ports):
            options = ("--metrics-port", str(metrics_port), "--echo-tokens-per-s", "50")
            stack.enter_context(a_worker(embedded_broker.url, folder / f"worker{number}", *options))
        stack.enter_context(exporter(Settings.read({}, broker_url=embedded_broker.url), "127.0.0.1", fleet))
        stack.enter_context(a_process(command, folder / "log"))
        client = stack.enter_context(Client(embedded_broker.url, model="echo"))
        prometheus = Scraped(f"http://127.0.0.1:{port}")
        wait_until(lambda: prometheus.total("up") == 3, "all are scraped", 60)
        for _ in range(STUCK):
            client.submit("a", model="nobody")
        list(client.map(["one two three four five"] * ANSWERED, max_tokens=4))
        for _ in range(FAILED):
            with pytest.raises(TaskFailedError):
                client.generate(FAULT_ERROR)

        def has_scraped_all() -> bool:
            done = prometheus.total("promptmill_request_success_total")
            failed = prometheus.total("promptmill_request_failure_total")
            ended = prometheus.total('promptmill_requests_ended_total{model_name="echo"}')
            return (done, failed, ended) == (ANSWERED, FAILED, ANSWERED + FAILED)

        wait_until(has_scraped_all, "Prometheus has scraped all", 60)
        # A rate needs two scrapes of what it is a rate of.
        wait_until(lambda: prometheus.query("rate(promptmill_request_failure_total[30s])"), "a rate", 60)
        yield prometheus


def test_prometheus_agrees_with_what_was_asked(scraped: Scraped) -> None:
    expected = {
        "promptmill_request_success_total": ANSWERED,
        "promptmill_generation_tokens_total": 4 * ANSWERED,
        "promptmill_prompt_tokens_total": 5 * ANSWERED,
        "promptmill_e2e_request_latency_seconds_count": ANSWERED,
        'promptmill_requests_ended_total{model_name="echo"}': ANSWERED + FAILED,
        'promptmill_unfinished_requests{model_name="nobody"}': STUCK,
        "promptmill_workers": 2,
    }
    for expression, total in expected.items():
        wait_until(lambda asked=expression, total=total: scraped.total(asked) == total, f"{expression} is {total}")
    assert {labels["job"] for labels, value in scraped.query("max_over_time(up[1m])") if value == 1} == {
        "promptmill-worker",
        "promptmill-fleet",
    }


def panel_queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$model", ".*").replace("$__rate_interval", "5m")


@pytest.mark.parametrize(("panel", "expression"), list(panel_queries()))
def test_every_panels_query_returns_data(scraped: Scraped, panel: str, expression: str) -> None:
    if panel in GPU_PANELS:
        assert scraped.query(expression) == []  # asked all the same: it is an expression
    else:
        wait_until(lambda: any(value == value for _, value in scraped.query(expression)), "there is more than NaNs")


def test_the_dashboard_is_of_a_dozen_panels_on_the_source_that_is_provisioned() -> None:
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    [provisioned] = source["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {provisioned["uid"]}
    assert len(DASHBOARD["panels"]) >= 12
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_alert_of_a_queue_without_a_worker_is_pending_and_no_other_is(scraped: Scraped) -> None:
    def pending() -> list[tuple[str, str | None]]:
        return [(labels["alertname"], labels.get("model_name")) for labels, _ in scraped.query("ALERTS")]

    wait_until(lambda: pending() == [("PromptmillNoWorker", "nobody")], "it is the only one")


def test_the_alerts_and_the_dashboard_ask_for_metrics_that_there_are(scraped: Scraped) -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
    asked = [rule["expr"] for rule in rules] + [expression for _, expression in panel_queries()]
    named = {name for expression in asked for name in re.findall(r"\b(?:promptmill|process)_\w+", expression)}
    named = {name for name in named if not name.startswith("promptmill_gpu_")}

    def missing() -> set[str]:
        return named - {labels["__name__"] for labels, _ in scraped.query('{__name__=~"(promptmill|process)_.*"}')}

    wait_until(lambda: not missing(), f"there are all of {named}")


def test_every_label_that_is_asked_for_is_one_that_a_worker_tells(scraped: Scraped) -> None:
    """A worker tells all reasons and errors from its start, at zero: a rate sees the first of each."""
    [rule] = [line for line in RULES.read_text(encoding="utf-8").splitlines() if "error_type=~" in line]
    asked = {"EngineError", "TaskFailedError", *re.search(r'error_type=~"([^"]+)"', rule)[1].split("|")}

    def told() -> set[str]:
        return {labels["error_type"] for labels, _ in scraped.query("promptmill_request_failure_total")}

    wait_until(lambda: asked <= told(), f"all of {asked} are told")
    wait_until(lambda: scraped.total("increase(promptmill_request_failure_total[5m])") > 0, "the failures are seen")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "deploy/prometheus/prometheus.yml"),
        ("check", "rules", "deploy/prometheus/rules.yml"),
        ("test", "rules", "tests/data/prometheus_rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    checked = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_finds_nothing_wrong_with_our_metrics(scraped: Scraped, embedded_broker: EmbeddedBroker) -> None:
    port = free_port()
    with exporter(Settings.read({}, broker_url=embedded_broker.url), "127.0.0.1", port):
        pages = [f"http://127.0.0.1:{port}/metrics"]
        pages += [f"http://{labels['instance']}/metrics" for labels, _ in scraped.query('up{job="promptmill-worker"}')]
        for page in pages:
            with urllib.request.urlopen(page, timeout=10) as answer:
                checked = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True)
            assert checked.returncode == 0, checked.stdout + checked.stderr
