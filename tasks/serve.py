"""`sandkeeper serve`: the HTTP API and the dashboard as a server of their own."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from core.store import Store
from core.store.tokens import Tokens
from tasks.commands import Context, told

if TYPE_CHECKING:
    import uvicorn
    from celery import Celery

LOOPBACK = "127.0.0.1"
PORT = 8585
BROKER_WITHIN = 3  # seconds for the broker to answer
STOP_WITHIN = 30  # seconds for the requests that are under way

OPTIONS: dict[str, Any] = {
    "log_config": None,
    "access_log": False,  # the ledger has who did what
    "server_header": False,
    "proxy_headers": False,  # nobody is believed to be somebody else
    "timeout_keep_alive": 75,  # a client's heartbeats come over one connection
    "timeout_graceful_shutdown": STOP_WITHIN,
}

host_option = click.option(
    "--host", default=LOOPBACK, show_default=True, help="The address to listen on."
)
port_option = click.option(
    "--port",
    default=PORT,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="The port of the HTTP API; 0 takes a free one.",
)


@click.command("serve")
@host_option
@port_option
@click.pass_obj
@told
def serve(context: Context, host: str, port: int) -> None:
    """
    Serve the HTTP API, and the dashboard at /, until Ctrl-C. Any number of servers may run; before
    the first token is made, they listen on loopback only.
    """
    import uvicorn  # noqa: PLC0415 - few commands need it

    from core import Lifecycle  # noqa: PLC0415
    from core.web import create_app  # noqa: PLC0415
    from core.web.gate import is_loopback  # noqa: PLC0415
    from tasks import app as celery  # noqa: PLC0415
    from tasks import ring  # noqa: PLC0415

    settings = context.settings
    _log(settings.log_format)
    with closing(Lifecycle.from_env(doorbell=ring)) as keeper:
        app = create_app(
            keeper,
            api_tokens=settings.api_tokens,
            broker=_asks(celery),
            prices=settings.prices,
        )
        closed = not is_loopback(host) and not _has_token(keeper.store, settings.api_tokens)
        if closed:
            click.echo(
                f"no token is there: listening on {LOOPBACK} only, not on {host}; make one with "
                "`sandkeeper tokens create`, and start again"
            )
        config = uvicorn.Config(app, host=LOOPBACK if closed else host, port=port, **OPTIONS)
        with config.bind_socket() as listener:
            # Inherited by what it accepts. asyncio sets it only where the protocol was named, and
            # an answer in two parts would wait 40 ms for the caller's delayed ACK.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            at, number = listener.getsockname()[:2]
            address = f"[{at}]:{number}" if ":" in at else f"{at}:{number}"
            click.echo(f"sandkeeper serve: http://{address}")
            _leave_when_asked()
            keeper.start()
            _server(config, app.state.dashboard.close).run(sockets=[listener])


def _server(config: uvicorn.Config, let_go: Callable[[], None]) -> uvicorn.Server:
    """A server that stops at once though dashboards are open: their streams would hold it up."""
    import uvicorn  # noqa: PLC0415

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            let_go()
            await super().shutdown(sockets)

    return Server(config)


def _leave_when_asked() -> None:
    """
    uvicorn stops in good order, and then hands the signal to whom it found: to be asked to stop
    is no failure, and the heartbeats' threads and connections are closed on the way out.
    """

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def _has_token(store: Store, configured: str | None) -> bool:
    return configured is not None or Tokens(store.database).any()


def _asks(app: Celery) -> Callable[[], None]:
    """What raises when the broker cannot be reached, and soon."""

    def ask() -> None:
        with app.connection_for_write(connect_timeout=BROKER_WITHIN) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=BROKER_WITHIN)
            _ = connection.default_channel  # a folder is looked at by channels alone

    return ask


def _log(style: str) -> None:
    """Our events as workers have them; of the rest what somebody should know."""
    line = "%(message)s" if style == "json" else "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(format=line, stream=sys.stdout, level=logging.WARNING)
    logging.getLogger("sandkeeper").setLevel(logging.INFO)
