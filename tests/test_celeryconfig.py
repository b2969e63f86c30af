"""Celery's settings for each broker, and what a mistake in ours looks like."""

from __future__ import annotations

import importlib
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

ROOT = Path(__file__).parents[1]
BROKERS = {
    "rabbitmq": "amqp://guest:guest@127.0.0.1:5672//",
    "redis": "redis://127.0.0.1:6379/0",
    "folder": "sandkeeper+filesystem:////var/spool/sandkeeper",
}

Configure = Callable[..., Any]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """The module, read anew with these settings."""

    def read(**settings: str) -> ModuleType:
        for name in [name for name in os.environ if name.startswith("SANDKEEPER_")]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(f"SANDKEEPER_{name.upper()}", value)
        monkeypatch.delitem(sys.modules, "celeryconfig", raising=False)
        return importlib.import_module("celeryconfig")

    return read


@pytest.mark.parametrize("url", BROKERS.values(), ids=BROKERS)
def test_celery_takes_every_setting(configure: Configure, url: str) -> None:
    """Celery accepts the module as it is, and each of our tasks finds its queue."""
    app = Celery()
    app.config_from_object(configure(broker_url=url, queue_prefix="here"))

    queues = {
        name: app.amqp.router.route({}, f"sandkeeper.{name}")["queue"].name
        for name in (
            "reap_idle_sessions",
            "teardown_sandbox",
            "reconcile_sandboxes",
            "purge_ended_sessions",
        )
    }

    assert queues == {
        "reap_idle_sessions": "here.sweep",
        "teardown_sandbox": "here.teardown",
        "reconcile_sandboxes": "here.sweep",
        "purge_ended_sessions": "here.sweep",
    }
    assert app.conf.broker_url == url


def test_a_redis_message_is_not_given_away_while_its_task_runs(configure: Configure) -> None:
    """The visibility timeout outlasts the wait of a retry and the hard limit, for any claim."""
    from tasks.app import RETRY_WITHIN

    for claim_ttl in ("1", "120", "3600"):
        config = configure(broker_url=BROKERS["redis"], claim_ttl=claim_ttl)

        timeout = config.broker_transport_options["visibility_timeout"]
        assert timeout > RETRY_WITHIN + config.task_time_limit
        assert config.task_time_limit > config.task_soft_time_limit > float(claim_ttl)


def test_rabbitmq_confirms_and_bounds_what_it_is_told(configure: Configure) -> None:
    """A lost publish is an error, and a blocked broker does not hang beat."""
    config = configure(broker_url=BROKERS["rabbitmq"])

    assert config.broker_transport_options["confirm_publish"] is True
    assert config.broker_transport_options["write_timeout"] == 5
    assert config.beat_schedule["reap-idle-sessions"]["options"]["confirm_timeout"] == 5


def test_rabbitmq_keeps_a_message_that_kills_its_workers(configure: Configure) -> None:
    """A quorum queue counts deliveries, and what comes back too often goes to where it is kept."""
    config = configure(broker_url=BROKERS["rabbitmq"], queue_prefix="here")

    for queue in config.task_queues:
        assert queue.queue_arguments["x-queue-type"] == "quorum"
        assert queue.queue_arguments["x-delivery-limit"] == 10
        assert queue.queue_arguments["x-dead-letter-exchange"] == "here.dead"


@pytest.mark.parametrize("interval", ["0.2", "1", "60", "3600"])
def test_the_schedule_is_that_of_the_settings(configure: Configure, interval: str) -> None:
    """Beat wakes up in time, and what nobody ran does not pile up without bound."""
    config = configure(sweep_interval=interval, idle_ttl="7200")
    entry = config.beat_schedule["reap-idle-sessions"]

    assert entry["schedule"] == float(interval)
    assert config.beat_max_loop_interval <= float(interval)
    assert entry["options"]["expires"] < max(float(interval), 10.1)


@pytest.mark.parametrize("interval", ["0.2", "1", "300", "7200"])
def test_a_comparison_has_the_time_that_its_budget_gives_it(
    configure: Configure, interval: str
) -> None:
    """Beat wakes up for it, no limit ends it before its own does, and no two pile up."""
    from core.policy import Policy

    config = configure(reconcile_interval=interval)
    entry = config.beat_schedule["reconcile-sandboxes"]
    limits = config.task_annotations["sandkeeper.reconcile_sandboxes"]

    assert entry["schedule"] == limits["expires"] == float(interval)
    assert config.beat_max_loop_interval <= float(interval)
    budget = Policy(reconcile_interval=float(interval)).reconcile_budget
    assert budget < limits["soft_time_limit"] < limits["time_limit"]


@pytest.mark.parametrize("interval", ["1", "300", "7200"])
def test_a_redis_message_is_not_given_away_while_its_comparison_runs(
    configure: Configure, interval: str
) -> None:
    """The visibility timeout outlasts the hard limit, for any interval."""
    config = configure(broker_url=BROKERS["redis"], reconcile_interval=interval)

    timeout = config.broker_transport_options["visibility_timeout"]
    assert timeout > config.task_annotations["sandkeeper.reconcile_sandboxes"]["time_limit"]


def test_a_teardown_nobody_heard_expires_after_many_leases(configure: Configure) -> None:
    """
    L1: a backlog may take longer than a lease, and workers that met only expired messages would
    tear nothing down any more. Not never: what is published again each lease must not pile up.
    """
    config = configure(publish_lease="7")

    assert config.task_annotations["sandkeeper.teardown_sandbox"] == {"expires": 60 * 7.0}


def test_only_json_is_read(configure: Configure) -> None:
    """A message must not be able to run what it brings along."""
    config = configure()

    assert config.accept_content == config.result_accept_content == ["json"]


def test_a_relative_folder_is_made_absolute(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processes were started decides, not where they are later."""
    monkeypatch.chdir(tmp_path)

    config = configure(broker_url="sandkeeper+filesystem:///some/broker")

    assert config.broker_url == f"sandkeeper+filesystem:///{tmp_path}/some/broker"


def test_a_broker_in_celerys_own_variables_is_not_used(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The celery command reads BROKER_URL: workers alone would move to another broker."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere")
    app = Celery()
    app.config_from_object(configure(broker_url=BROKERS["rabbitmq"]))

    assert app.conf.broker_read_url == app.conf.broker_write_url == BROKERS["rabbitmq"]


@pytest.mark.parametrize(
    ("query", "verify"), [("", ssl.CERT_REQUIRED), ("?ssl_cert_reqs=none", ssl.CERT_NONE)]
)
def test_redis_over_tls_checks_the_certificate(
    configure: Configure, query: str, verify: ssl.VerifyMode
) -> None:
    """Unless the URL says in so many words that it must not."""
    app = Celery()
    app.config_from_object(configure(broker_url=f"rediss://127.0.0.1:1/0{query}"))
    connection: Any = app.connection_for_write()

    assert connection.ssl == {"ssl_cert_reqs": verify}


def test_no_password_is_shown(configure: Configure) -> None:
    """`inspect conf` and `celery report` print what the module has."""
    app = Celery()
    app.config_from_object(
        configure(
            broker_url="redis://:tellnobody@127.0.0.1/0",
            database_url="postgresql://me:tellnobody@127.0.0.1/db",
        )
    )

    assert "tellnobody" not in str(app.conf.table(with_defaults=False, censored=True))


MISTAKES = {
    "SANDKEEPER_SWEEP_INTERVAL": "-1",
    "SANDKEEPER_SWEEP_INTERVALL": "60",
    "SANDKEEPER_BROKER_URL": "filesystem://",
    "SANDKEEPER_QUEUE_PREFIX": "Mine!",
}


@pytest.mark.parametrize(("name", "value"), MISTAKES.items(), ids=MISTAKES)
@pytest.mark.parametrize("command", ["worker", "beat"])
def test_a_mistake_in_a_setting_is_one_line(name: str, value: str, command: str) -> None:
    """An operator reads which variable is wrong, and no traceback."""
    environ = {key: text for key, text in os.environ.items() if not key.startswith("SANDKEEPER_")}

    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", command],
        env={**environ, name: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"sandkeeper: {name}")
    assert done.stderr.count("\n") == 1


BAD_BROKERS = {
    "filesystem://": "begins with 'filesystem'",
    "sqs://key:tellnobody@": "begins with 'sqs'",
    "me:tellnobody@host": "begins with no scheme",
    "sandkeeper+filesystem://two/slashes": "relative/folder",
    "sandkeeper+filesystem:///": "relative/folder",
    "sandkeeper+filesystem:///a;b": "semicolon",
}


@pytest.mark.parametrize(("url", "words"), BAD_BROKERS.items(), ids=BAD_BROKERS)
def test_a_broker_that_we_cannot_use_is_refused(configure: Configure, url: str, words: str) -> None:
    """Programs that import us get the error, without the password."""
    from core.errors import SettingsError

    with pytest.raises(SettingsError, match=words) as refused:
        configure(broker_url=url)

    assert "tellnobody" not in str(refused.value)
