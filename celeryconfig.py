"""
Celery's settings, each with its reason. All values come from SANDKEEPER_… variables; see
docs/settings.md. The row in the database is the truth and a message a doorbell, so everything here
prefers a message that is lost, late or doubled to a process that hangs, dies or floods.
"""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path

from kombu import Exchange, Queue

from core.errors import SettingsError
from core.settings import Settings
from tasks.app import PURGE, RECONCILE, RETRY_WITHIN, SWEEP, TEARDOWN
from tasks.filesystem import SCHEME

AMQP = ("amqp", "amqps", "pyamqp")
REDIS = ("redis", "rediss")


def _read_settings() -> Settings:
    """
    The settings. A mistake ends the `celery` command with one line, because it would otherwise
    print a traceback; other programs get the error.
    """
    try:
        settings = Settings.from_env(os.environ)
        return settings.model_copy(update={"broker_url": _broker_url(settings.broker_url)})
    except SettingsError as error:
        program = Path(sys.argv[0])
        if program.name == "celery" or program.parts[-2:] == ("celery", "__main__.py"):
            raise SystemExit(f"sandkeeper: {error}") from None
        raise


def _broker_url(url: str) -> str:
    """The URL, with a folder made absolute: a process may change its directory later."""
    scheme, separator, _ = url.partition("://")
    if scheme == SCHEME:
        return _folder_url(url)
    if not separator or scheme not in (*AMQP, *REDIS, "memory"):
        shown = repr(scheme) if separator else "no scheme"
        known = ", ".join(f"{name}://" for name in (*AMQP, *REDIS, SCHEME))
        raise SettingsError(f"SANDKEEPER_BROKER_URL begins with {shown}: use one of {known}")
    return url


def _folder_url(url: str) -> str:
    prefix = f"{SCHEME}:///"
    path = url.removeprefix(prefix)
    if not url.startswith(prefix) or not path or ";" in path:
        raise SettingsError(
            f"SANDKEEPER_BROKER_URL={url}: write {prefix}relative/folder or {prefix}/absolute/"
            "folder, without a semicolon"
        )
    return f"{prefix}{Path(path).absolute()}"


def _queue(name: str) -> Queue:
    name = f"{_settings.queue_prefix}.{name}"
    return Queue(
        name, Exchange(name, _exchange_type), routing_key=name, queue_arguments=dict(_arguments)
    )


def _route(name: str) -> dict[str, str]:
    name = f"{_settings.queue_prefix}.{name}"
    return {"queue": name, "routing_key": name}


def _every(task: str, interval: float) -> dict[str, object]:
    """
    Just under the interval, what nobody ran is dropped, so that a backlog cannot pile up while
    workers are down. Not sooner than 10 s: a slow worker must get its chance.
    """
    expires = max(0.9 * interval, 10.0)
    return {"task": task, "schedule": interval, "options": {"expires": expires, **_confirmed}}


# Underscored: `inspect conf` and `celery report` print every other name, passwords included.
_settings = _read_settings()
_scheme = _settings.broker_url.partition("://")[0]
_amqp, _redis = _scheme in AMQP, _scheme in REDIS
_confirmed = {"confirm_timeout": 5} if _amqp else {}  # per call; there is no setting for all

# A teardown takes at most its claim; past that its worker is told to stop (prefork only: threads
# ignore both, and every provider call has a deadline of its own).
task_soft_time_limit = _settings.claim_ttl + 15
task_time_limit = _settings.claim_ttl + 30
_reconcile_within = max(60.0, _settings.reconcile_interval)

# --- The broker
broker_url = _settings.broker_url
# Named one by one as well: the celery command reads BROKER_URL from the environment, and would
# move workers alone to another broker than the one that everybody else publishes to.
broker_read_url = broker_write_url = broker_url
broker_connection_timeout = 4  # seconds; a broker that is there answers at once
broker_connection_retry_on_startup = True  # the order in which things start does not matter
broker_connection_max_retries = None  # for ever: after the default 100 workers and beat exit
broker_heartbeat = 30  # a dead peer is found within a minute (RabbitMQ)
broker_pool_limit = 10
broker_pool_acquire_timeout = 10  # seconds; the default waits for ever

if _scheme == "rediss" and "ssl_cert_reqs=" not in broker_url:
    # Without it kombu encrypts and believes any certificate.
    broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}

if _amqp:
    # Confirmed, so that a lost publish is an error; both timeouts, because a broker that blocks
    # (memory or disk alarm) or freezes would hang publishers, beat included, until it recovers.
    broker_transport_options: dict[str, object] = {
        "confirm_publish": True,
        "read_timeout": 5,
        "write_timeout": 5,
    }
elif _redis:
    broker_transport_options = {
        # Unacknowledged for longer than this runs again, at the same time: it must outlast the
        # wait of a retry and the longest task. A worker that was killed gives back after it.
        "visibility_timeout": max(
            300, round(task_time_limit + RETRY_WITHIN + 30), round(_reconcile_within + 60)
        ),
        "unacked_restore_interval": 5,  # looked at every 5 s, where the defaults round up to 100
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,  # a frozen server would hang publishers for minutes
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
else:
    broker_transport_options = {"polling_interval": 0.05 if _scheme == "memory" else 0.1}

# --- Queues: a backlog of teardowns never delays a sweep
# RabbitMQ's delayed delivery of retries works with topic exchanges alone. Elsewhere a message goes
# to its queue by name: bindings are keys in Redis, and who loses them (FLUSHDB, a failover to an
# empty replica) publishes to nobody until every process is restarted.
_exchange_type = "topic" if _amqp else "direct"
_arguments = {}
if _amqp:
    _arguments = {
        "x-queue-type": "quorum",  # survives the loss of a node, and counts deliveries
        "x-delivery-limit": 10,  # a message that kills its workers; without a limit it loops
        "x-dead-letter-exchange": f"{_settings.queue_prefix}.dead",  # see tasks/runtime.py
    }
    task_default_queue_type = "quorum"
task_queues = [_queue("sweep"), _queue("teardown")]
task_create_missing_queues = False  # a misspelt queue is an error, not a queue nobody reads
task_default_queue = f"{_settings.queue_prefix}.teardown"
task_default_exchange = task_default_routing_key = task_default_queue
task_default_exchange_type = _exchange_type
task_routes = {
    SWEEP: _route("sweep"),
    PURGE: _route("sweep"),
    RECONCILE: _route("sweep"),
    TEARDOWN: _route("teardown"),
}
# Whoever enqueues it: the sweep publishes a teardown again after each lease, so what workers did
# not do while they were down must not pile up for ever. But much longer than one lease: where a
# backlog takes longer than that, workers would meet nothing but messages that are too old.
task_annotations = {
    TEARDOWN: {"expires": 60 * _settings.publish_lease},
    # A comparison may take most of its interval; see Policy.reconcile_budget.
    RECONCILE: {
        "expires": _settings.reconcile_interval,
        "soft_time_limit": _reconcile_within + 15,
        "time_limit": _reconcile_within + 30,
    },
}

# --- Messages
task_serializer = result_serializer = "json"
accept_content = result_accept_content = ["json"]  # never pickle: it would run what it is sent
enable_utc = True
timezone = "UTC"

# --- Results: the row is the result
result_backend = None
task_ignore_result = True

# --- Delivery: at least once; every task is safe to run twice
task_acks_late = True  # a worker that dies does not take the message along
task_reject_on_worker_lost = True  # nor does its child
task_acks_on_failure = True  # what failed is in the row; a message that fails must not loop
task_acks_on_timeout = True  # likewise
worker_prefetch_multiplier = 1  # what one worker has reserved no other can do meanwhile
# On RabbitMQ a lost connection means that the message is delivered again: stop the copy (prefork).
# Redis acknowledges over the next connection, so there it would stop the only one.
worker_cancel_long_running_tasks_on_connection_loss = _amqp

# --- Publishing: fail soon; the lease is the retry
task_publish_retry = True
task_publish_retry_policy = {
    "max_retries": 2,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.5,
}

# --- Workers
worker_soft_shutdown_timeout = 10.0  # SIGQUIT only; SIGTERM waits for the tasks and then exits
worker_enable_soft_shutdown_on_idle = False
worker_max_tasks_per_child = 1000  # prefork only: against leaks in providers' SDKs
worker_max_memory_per_child = 300_000  # likewise, KiB
worker_consumer = f"{__name__.removesuffix('celeryconfig')}tasks.consumer:Consumer"
worker_hijack_root_logger = False  # logging is the program's
worker_redirect_stdouts = False
worker_send_task_events = False  # 15 to 45 % of a worker's CPU; metrics come from the rows
task_send_sent_event = False
control_exchange = _settings.queue_prefix  # `inspect` asks our workers, not the whole broker's

# --- Beat: in memory, so any number of them may run and none needs a file
beat_scheduler = "celery.beat:Scheduler"
beat_schedule = {
    "reap-idle-sessions": _every(SWEEP, _settings.sweep_interval),
    "reconcile-sandboxes": _every(RECONCILE, _settings.reconcile_interval),
    "purge-ended-sessions": _every(PURGE, _settings.purge_interval),
}
# The most that beat sleeps.
beat_max_loop_interval = min(
    5.0, _settings.sweep_interval, _settings.purge_interval, _settings.reconcile_interval
)
# Two beats on one host would quarrel over the one mailbox that `inspect ping` writes to. Whether
# sweeps happen is asked of the database: the last one's pulse is there.
beat_enable_remote_control = False
