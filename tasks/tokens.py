"""Who may call the HTTP API: tokens are made, listed and revoked here, and shown once."""

from __future__ import annotations

from dataclasses import asdict
from secrets import randbits

import click

from core.access import Grant, Scope, check_scopes, digest, minted
from core.errors import InvalidArgument
from core.model import check_name, check_tenant
from core.policy import duration
from core.store.tokens import Tokens
from tasks.commands import Context, as_json, show, told

COLUMNS = ("id", "name", "scopes", "tenant", "created_at", "expires_at", "revoked_at")


@click.group()
def tokens() -> None:
    """Who may call the HTTP API."""


@tokens.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it is for; give it more than once for several. `operate` is everything.",
)
@click.option("--tenant", help="It sees the sessions of this tenant alone.")
@click.option("--expires-in", type=float, help="Seconds after which it is refused.")
@as_json
@click.pass_obj
@told
def tokens_create(  # noqa: PLR0917 - click calls it by name
    context: Context,
    name: str,
    scopes: tuple[str, ...],
    tenant: str | None,
    expires_in: float | None,
    json_: bool,  # noqa: FBT001
) -> None:
    """Make a token and print it. Only its digest is kept: it cannot be shown again."""
    token_id, secret = minted(randbits)
    grant = Grant(
        id=token_id,
        scopes=check_scopes(scopes),
        tenant=None if tenant is None else check_tenant(tenant),
    )
    seconds = None if expires_in is None else duration("--expires-in", expires_in)
    store = Tokens(context.system.store.database)
    store.create(grant, digest(secret), name=check_name(name), seconds=seconds, actor=context.actor)
    token = f"sk_{token_id}_{secret}"
    if json_:
        show([{"id": token_id, "token": token}], (), json_=True)
    else:
        click.echo(token)


@tokens.command("ls")
@as_json
@click.pass_obj
@told
def tokens_ls(context: Context, json_: bool) -> None:  # noqa: FBT001
    """List all that were ever made, without their secrets."""
    rows = [asdict(token) for token in Tokens(context.system.store.database).all()]
    show(rows, COLUMNS, json_=json_)


@tokens.command("revoke")
@click.argument("token_id")
@click.pass_obj
@told
def tokens_revoke(context: Context, token_id: str) -> None:
    """Refuse a token from the next request on. TOKEN_ID is the part between `sk_` and `_`."""
    if not Tokens(context.system.store.database).revoke(token_id, actor=context.actor):
        raise InvalidArgument(
            f"no token {token_id!r} to revoke: `sandkeeper tokens ls` has those that there are"
        )
    click.echo(f"{token_id} is revoked")
