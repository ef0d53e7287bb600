"""The Celery app that clients, workers and the monitor share."""

from __future__ import annotations

from typing import Any

from celery import Celery

from promptmill.broker import sentinel_options, tls_options
from promptmill.broker_address import BrokerAddress
from promptmill.names import PRIORITY_STEPS, Priority
from promptmill.settings import Settings

__all__ = ["create_app"]


def create_app(settings: Settings) -> Celery:
    """A Celery app on the broker of ``settings``.

    It is not made the current app: a host application's own Celery stays what it was.
    """
    url, sentinel = settings.broker_url, {}
    if url.startswith("sentinel://"):
        url = BrokerAddress.parse(url).url_of_each_host()
        sentinel = {"master_name": settings.sentinel_master, "sentinel_kwargs": sentinel_options(settings)}
    # set_as_current=False: or the host application's own Celery would be taken over.
    app = Celery("promptmill", broker=url, backend=url, set_as_current=False)
    app.conf.update(_CONFIGURATION)
    app.conf.broker_transport_options = {**_TRANSPORT_OPTIONS, **sentinel}
    app.conf.result_backend_transport_options = sentinel
    # Both empty without TLS, which Celery takes for not set.
    app.conf.broker_use_ssl = app.conf.redis_backend_use_ssl = tls_options(settings)
    return app


_TRANSPORT_OPTIONS: dict[str, Any] = {
    # One list a priority; with the same steps wherever a queue is read, or its lists would not be found.
    "priority_steps": PRIORITY_STEPS,
    # What is queued again goes first: queues are looked at in the order in which a worker names them.
    "queue_order_strategy": "priority",
    # A connection that went black is noticed after this, not after the kernel's quarter of an hour.
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 5,
    # What a worker had popped and not yet accepted comes back through kombu after this; the ledger's sweep is faster,
    # this only covers plain Celery calls before they are entered.
    "visibility_timeout": 60,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 5,
    # At the default of 300 s a dead worker's mutex would hold that recovery up.
    "unacked_mutex_expire": 5,
}

_CONFIGURATION: dict[str, Any] = {
    # JSON both ways, never pickle: a message can't run code.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "result_accept_content": ["json"],
    # The ledger keeps what is accepted; a message is done as soon as a thread has taken it.
    "task_acks_late": False,
    # Nothing waits, unacknowledged, in a worker that may die: a message is popped when a thread is free for it.
    "worker_prefetch_multiplier": 1,
    "worker_disable_prefetch": True,
    # Answers go through the ledger; only plain Celery calls (promptmill.generate) turn this off.
    "task_ignore_result": True,
    "task_default_priority": int(Priority.NORMAL),
    # Flower shows what workers do; without events it sees nothing.
    "worker_send_task_events": True,
    "task_send_sent_event": False,
    "task_track_started": True,
    # Brokers restart: workers wait for them, at the start too.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # A broker short of memory or disk, or just made a replica, refuses commands for a while; a worker would end.
    "broker_channel_error_retry": True,
    "broker_connection_timeout": 4,
    # Running generations outlive a lost connection: their leases do not hang on it.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "result_backend_always_retry": True,
    "result_backend_max_retries": 60,
    "redis_socket_timeout": 5,
    "redis_socket_connect_timeout": 3,
    "result_expires": 86_400,
    "worker_redirect_stdouts": False,
    # Celery's own default, on purpose: after a plain call the worker sends the next task of the application's chain or
    # chord, and what names no queue belongs to the application's workers.
    "task_default_queue": "celery",
}
