"""Tab completion: of commands, of options, and of session ids as the database has them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import cast

import click
from click.shell_completion import ShellComplete, get_completion_class

from core.engines import opened
from core.policy import Policy
from core.settings import Settings
from core.store import Store
from core.store.selection import Wish

PROGRAM, VARIABLE = "sandkeeper", "_SANDKEEPER_COMPLETE"  # what the entry point is called
MOST = 50  # ids: nobody reads more


def session_ids(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    """Sessions whose ids begin like that; none where there is no database, and no traceback."""
    found: list[str] = []
    with suppress(Exception):
        settings = Settings.from_env(os.environ)
        with opened(settings.database_url) as engine:
            if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
                return []  # to connect would make it
            store = Store(engine, policy=Policy.from_settings(settings))
            page = store.selection.page(Wish(prefix=typed), limit=MOST)
            found = [match.id for match in page.matches]
    return found


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what a shell reads to complete by Tab: eval "$(sandkeeper completion bash)"."""
    kind = cast("type[ShellComplete]", get_completion_class(shell))  # click knows these three
    click.echo(kind(context.find_root().command, {}, PROGRAM, VARIABLE).source())
