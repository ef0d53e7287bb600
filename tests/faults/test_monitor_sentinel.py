"""The monitor behind sentinels, whose passwords are in the options that a worker tells of."""

from __future__ import annotations

from pathlib import Path

from monitors import a_monitor
from test_sentinel import PASSWORD, SENTINEL_PASSWORD, a_cluster
from workers import a_worker, wait_until

from promptmill import Client
from promptmill.app import create_app
from promptmill.settings import Settings


def test_the_monitor_finds_the_master_and_shows_no_password(tmp_path: Path) -> None:
    with (
        a_cluster(tmp_path, SENTINEL_PASSWORD) as cluster,
        a_worker(cluster.url, tmp_path / "log", *cluster.options()) as worker,
        a_monitor(cluster.url, tmp_path / "monitor", *cluster.options()) as monitor,
        Client(cluster.url, model="echo", **cluster.settings) as client,
    ):
        wait_until(lambda: monitor.json("/fleet/data")["pages"], "the monitor has met the worker")
        client.generate("hello")
        wait_until(lambda: monitor.tasks("SUCCESS"), "it sees the task")
        [page] = monitor.json("/fleet/data")["pages"].values()
        for path in (
            page,
            "/",
            "/broker",
            "/api/workers?refresh=1",
            "/api/workers",
            "/api/queues/length",
            "/fleet/data",
        ):
            status, text, _ = monitor.ask(path)
            assert status == 200, path
            assert PASSWORD not in text, path
            assert SENTINEL_PASSWORD not in text, path
        app = create_app(Settings.read({}, broker_url=cluster.url, **cluster.settings))
        [stats] = app.control.inspect(timeout=5).stats().values()
        app.close()
        assert stats["broker"]["transport"] == "sentinel"
        assert PASSWORD not in str(stats)
        assert SENTINEL_PASSWORD not in str(stats)
        said = worker.log + monitor.process.log
        assert PASSWORD not in said
        assert SENTINEL_PASSWORD not in said
        assert "Traceback" not in said
