"""Flower, in this process, with our settings."""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack
from typing import Any

from flower.app import Flower
from flower.options import options
from flower.urls import settings as flower_settings
from flower.utils import prepend_url
from tornado.ioloop import IOLoop

from promptmill.app import create_app
from promptmill.broker_address import BrokerAddress
from promptmill.errors import InvalidSettingError
from promptmill.monitor.exporter import exporter
from promptmill.monitor.historian import Historian
from promptmill.monitor.login import login_options, oauth_settings
from promptmill.monitor.private_events import PrivateEvents
from promptmill.monitor.private_inspector import PrivateInspector
from promptmill.monitor.routes import our_routes
from promptmill.monitor.settings import MonitorSettings
from promptmill.monitor.state_folder import StateFolder
from promptmill.monitor.templates import OurTemplates

__all__ = ["Monitor"]

log = logging.getLogger(__name__)

#: How often what was seen is saved, in milliseconds: what a killed monitor may forget.
SAVE_EVERY_MS = 5_000
#: A worker that was heard of last so many seconds ago leaves Flower's list.
FORGET_WORKER_S = 3_600


class Monitor:
    """One monitor. One a process, since Flower keeps its options in the module.

    Args:
        settings: The monitor's.

    Raises:
        InvalidSettingError: a setting means nothing, or the port is taken.
    """

    def __init__(self, settings: MonitorSettings) -> None:
        self._settings = settings
        for name, value in login_options(settings).items():
            setattr(options, name, value)
        self._folder = StateFolder(settings.state_dir)
        self._set_options()
        self._loop = IOLoop.current()
        self._flower = self._create_flower()

    def _set_options(self) -> None:
        options.address = self._settings.listen_host
        options.port = self._settings.listen_port
        options.url_prefix = self._settings.url_prefix.strip("/")
        options.max_tasks = self._settings.max_tasks
        options.db = self._folder.database
        options.persistent = True
        options.state_save_interval = SAVE_EVERY_MS
        options.purge_offline_workers = FORGET_WORKER_S
        # Without a login Flower's API refuses all, so that buttons would only fail.
        options.read_only = self._settings.read_only or self._settings.is_open
        options.tasks_columns = "uuid,state,kwargs,result,runtime,received,worker,name"

    def _create_flower(self) -> Flower:
        app = create_app(self._settings)
        events = PrivateEvents(
            app,
            io_loop=self._loop,
            meet=lambda worker: self._flower.inspector.meet(worker),
            db=options.db,
            persistent=True,
            state_save_interval=options.state_save_interval,
            enable_events=False,  # our workers send them from their start
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        flower = Flower(options=options, capp=app, events=events, io_loop=self._loop, **self._web_settings())
        flower.inspector = PrivateInspector(self._loop, app, options.inspect_timeout / 1000)
        flower.broker_uri = str(BrokerAddress.parse(self._settings.broker_url))
        flower.add_handlers(".*", our_routes(self._settings))
        return flower

    def _web_settings(self) -> dict[str, Any]:
        settings = {
            **flower_settings,
            "cookie_secret": self._folder.cookie_secret(),
            "template_loader": OurTemplates(),
            "oauth": oauth_settings(self._settings),
        }
        if options.url_prefix:
            for name in ("login_url", "static_url_prefix"):
                settings[name] = prepend_url(settings[name], options.url_prefix)
        certificate, key = self._settings.https_cert_file, self._settings.https_key_file
        if (certificate is None) != (key is None):
            raise InvalidSettingError("https_cert_file and https_key_file go together: set both")
        if certificate is not None:
            settings["ssl_options"] = {"certfile": str(certificate), "keyfile": str(key)}
        return settings

    @property
    def address(self) -> str:
        """Where a browser finds it, from this machine."""
        scheme = "http" if self._settings.https_cert_file is None else "https"
        host = self._settings.listen_host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"{scheme}://{host}:{self._settings.listen_port}/{options.url_prefix}"

    def run(self) -> None:
        """Answers until SIGTERM or Ctrl-C; then saves what was seen."""
        try:
            self._flower.start_http_server()
        except OSError as error:
            raise InvalidSettingError(
                f"can't listen at {self._settings.listen_host}, port {self._settings.listen_port}: {error.strerror}"
            ) from None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._loop.add_callback_from_signal(self._flower.stop))
        with ExitStack() as besides:
            besides.enter_context(Historian(self._settings))
            if self._settings.metrics_port is not None:
                besides.enter_context(
                    exporter(self._settings, self._settings.metrics_host, self._settings.metrics_port)
                )
            log.info("the monitor is at %s", self.address)
            self._flower.start()
