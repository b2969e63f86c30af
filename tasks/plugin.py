"""
The command line inside Celery's own: `celery -A your.app sessions ls`. Every `celery` command of an
environment loads its plug-ins first, so that nothing is imported here before it is asked for.
"""

from __future__ import annotations

from typing import Any, cast

import click


class Plugin(click.Group):
    """A group of our command line, which is looked up when somebody calls it."""

    def __init__(self, name: str, help_: str, path: str | None = None) -> None:
        super().__init__(name, help=help_)
        self._path = path

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of what is in it."""
        return self._ours().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        return self._ours().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """With what our commands share in the place of what Celery's do."""
        from tasks.commands import Context  # noqa: PLC0415 - see above

        ctx.obj = Context()
        ctx.call_on_close(ctx.obj.closing.close)
        return super().invoke(ctx)

    def _ours(self) -> click.Group:
        from tasks.cli import main  # noqa: PLC0415

        group = main if self._path is None else main.commands[self._path]
        return cast("click.Group", group)


sessions = Plugin("sessions", "Sandkeeper: look at sessions, and act on them.", "sessions")
quarantine = Plugin("quarantine", "Sandkeeper: teardowns that failed too often.", "quarantine")
breaker = Plugin("breaker", "Sandkeeper: what waits for an operator.", "breaker")
sandkeeper = Plugin("sandkeeper", "Sandkeeper: the whole of its command line.")
