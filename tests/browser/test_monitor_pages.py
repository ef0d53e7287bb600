"""The monitor's pages in a browser, while a worker generates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import Browser
from monitors import MonitorProcess, a_monitor
from workers import wait_until

from promptmill import Client, Task

#: Set to a folder to look at the pages.
SCREENSHOTS = os.environ.get("PROMPTMILL_TEST_SCREENSHOTS")


@pytest.fixture
def load(client: Client) -> Iterator[list[Task]]:
    """Prompts that run for half a second each, four at once."""
    tasks = [client.submit("word " * 25) for _ in range(400)]
    yield tasks
    for task in tasks:
        task.cancel()


def log_in(browser: Browser, monitor: MonitorProcess, path: str = "/") -> None:
    browser.open(monitor.url.replace("//", f"//{monitor.login}@") + path)


def number(browser: Browser, selector: str) -> float:
    text = browser.text(selector).replace(",", "")
    return float(text) if text not in ("", "—") else 0.0


def photograph(browser: Browser, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(exist_ok=True)
        browser.photograph(Path(SCREENSHOTS) / f"{name}.png")


def wait_until_live(browser: Browser) -> None:
    wait_until(lambda: browser.text("#fleet-status") == "Live", "the page is live", 20)


def test_without_the_login_a_browser_sees_nothing(browser: Browser, monitor: MonitorProcess) -> None:
    browser.open(f"{monitor.url}/fleet")
    assert "Fleet" not in browser.text()


def test_every_page_loads_without_a_complaint(browser: Browser, monitor: MonitorProcess, load: list[Task]) -> None:
    wait_until(lambda: monitor.json("/fleet/data")["pages"], "the monitor has met the worker")
    wait_until(lambda: monitor.tasks("STARTED"), "the monitor knows tasks")
    [worker] = monitor.json("/fleet/data")["pages"].values()
    task = next(iter(monitor.tasks("STARTED")))
    log_in(browser, monitor)
    pages = {
        "/workers": "echo-",
        "/tasks": "promptmill.run",
        "/broker": "promptmill.echo",
        worker: "Worker pool options",
        f"/task/{task}": "'model': 'echo'",
        "/fleet": "gpu-one",
    }
    for path, shown in pages.items():
        browser.open(monitor.url + path)
        wait_until(lambda shown=shown: shown in browser.content(), f"{path} shows {shown}", 20)
        photograph(browser, path.split("/")[1])
        assert browser.complaints() == [], path
        assert not browser.is_wider_than_its_window(), path


def test_the_fleet_page_follows_what_happens(
    browser: Browser, monitor: MonitorProcess, client: Client, load: list[Task]
) -> None:
    log_in(browser, monitor, "/workers")
    browser.click(".app-nav a[href='/fleet']")
    wait_until_live(browser)
    browser.run("window.isTheSamePage = true")
    wait_until(lambda: number(browser, "#fleet-running") >= 4, "it runs", 20)
    wait_until(lambda: number(browser, "#fleet-tokens") > 50, "it generates", 20)
    wait_until(lambda: number(browser, "#fleet-queued") >= 10, "the others wait", 20)
    [row] = browser.texts("#fleet-queues tbody tr")
    assert row.startswith("echo ")
    [row] = browser.texts("#fleet-workers tbody tr")
    assert row.startswith("gpu-one echo cpu")
    assert len(browser.texts("#chart-tokens canvas")) == 1
    photograph(browser, "fleet-live")
    for task in load:
        task.cancel()
    wait_until(lambda: number(browser, "#fleet-queued") + number(browser, "#fleet-running") == 0, "all is done", 20)
    assert browser.run("return window.isTheSamePage") is True, "it was loaded again"
    assert browser.texts("#fleet-letters tbody tr") == ["None."]
    browser.run("document.querySelector('#fleet-workers tbody a').click()")
    wait_until(lambda: "Worker pool options" in browser.content(), "the worker's page", 20)
    assert "gpu-one" in browser.content()
    assert browser.complaints() == []


def test_the_fleet_page_follows_the_theme_and_fits_a_phone(
    browser: Browser, monitor: MonitorProcess, load: list[Task]
) -> None:
    log_in(browser, monitor, "/fleet")
    wait_until_live(browser)
    colour = "return getComputedStyle(document.querySelector('.fleet-card')).backgroundColor"
    light = browser.run(colour)
    browser.click("#theme-toggle")
    browser.click("[data-bs-theme-value=dark]")
    wait_until(lambda: browser.run(colour) != light, "the cards are dark")
    assert browser.run("return document.documentElement.dataset.bsTheme") == "dark"
    wait_until(lambda: browser.run("return lastHour.times.length > 4"), "the charts have lines", 30)
    photograph(browser, "fleet-dark")
    browser.narrow()
    wait_until(lambda: not browser.is_wider_than_its_window(), "the charts fit", 10)
    labels = "return getComputedStyle(document.querySelector('#fleet-workers td'), '::before').content"
    assert browser.run(labels) == '"Worker"'
    photograph(browser, "fleet-phone")
    assert browser.complaints() == []


def test_the_fleet_page_says_that_the_monitor_is_away(
    browser: Browser, broker: str, tmp_path: Path, client: Client
) -> None:
    with a_monitor(broker, tmp_path / "another") as monitor:
        log_in(browser, monitor, "/fleet")
        wait_until_live(browser)
    wait_until(lambda: browser.text("#fleet-status") == "The monitor does not answer", "it says so", 20)
