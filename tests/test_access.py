"""Tokens: what they look like, what their holders may do, and how operators make them."""

from __future__ import annotations

import json
from secrets import randbits

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from core.access import Grant, Scope, configured, digest, minted, taken_apart
from core.errors import InvalidArgument, SettingsError
from core.settings import Settings
from core.store import Store
from core.store.tokens import Tokens
from tasks.cli import main

SECRET = "s" * 40


def test_a_token_is_256_random_bits() -> None:
    """And can be taken apart again."""
    token_id, secret = minted(randbits)

    assert taken_apart(f"sk_{token_id}_{secret}") == (token_id, secret)
    assert len(secret) == 64
    assert minted(randbits) != (token_id, secret)


@pytest.mark.parametrize(
    "token", ["", "sk_", f"sk__{SECRET}", f"SK_a_{SECRET}", f"sk_A_{SECRET}", "sk_a_short"]
)
def test_what_is_no_token_is_none(token: str) -> None:
    """Neither an id without a secret nor a secret that could be guessed."""
    assert taken_apart(token) is None


def test_operate_is_everything() -> None:
    """The other scopes are for themselves."""
    operate, read = (
        Grant(id="x", scopes=frozenset({scope})) for scope in (Scope.OPERATE, Scope.READ)
    )

    assert all(operate.allows(scope) for scope in Scope)
    assert [scope for scope in Scope if read.allows(scope)] == [Scope.READ]


def test_tokens_of_a_setting_are_read() -> None:
    """Entries with spaces or line breaks; the secrets are not kept."""
    found = configured(f"sk_ops_{SECRET}:operate\n sk_acme_{SECRET}x:read+turns@acme\n")

    assert found["ops"].grant == Grant(id="ops", scopes=frozenset({Scope.OPERATE}))
    assert found["acme"].grant.tenant == "acme"
    assert found["acme"].grant.scopes == {Scope.READ, Scope.TURNS}
    assert found["ops"].fits(SECRET)
    assert not found["ops"].fits(SECRET + "x")
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f"sk_a_{SECRET}", "entry 2: write sk_<id>_<secret>:<scope>"),
        ("sk_a_short:read", "entry 2: write sk_<id>_<secret>:<scope>"),
        (f"sk_a_{SECRET}:write", "entry 2: scope ['write']: use read, turns, operate"),
        (f"sk_a_{SECRET}:", "entry 2"),
        (f"sk_a_{SECRET}:read@a/b", "entry 2: tenant 'a/b'"),
        (f"sk_a_{SECRET}:read@", "entry 2: tenant ''"),
        (f"sk_ops_{SECRET}:read", "entry 2: the id 'ops' is there twice"),
    ],
)
def test_a_malformed_setting_is_refused_at_start(entry: str, said: str) -> None:
    """By its number: any part of it may be the secret, which no error repeats."""
    environ = {"SANDKEEPER_API_TOKENS": f"sk_ops_{SECRET}:operate {entry}"}

    with pytest.raises(SettingsError) as refused:
        Settings.from_env(environ)

    assert said in str(refused.value)
    assert "SANDKEEPER_API_TOKENS=(hidden)" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_scope_of_an_older_version_is_no_scope(engine: Engine) -> None:
    """A row that this version does not understand lets nobody in."""
    tokens = Tokens(Store(engine).database)
    grant = Grant(id="old", scopes=frozenset({Scope.READ}))
    tokens.create(grant, digest(SECRET), name="n", seconds=None, actor="a")
    with engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE api_tokens SET scopes = '["admin"]'""")

    with pytest.raises(InvalidArgument, match="admin"):
        tokens.find("old")


def test_operators_make_list_and_revoke(
    database_url: str, engine: Engine, tmp_path: object
) -> None:
    """The token is shown once; afterwards nobody can read its secret, not even from the row."""
    environ = {
        "SANDKEEPER_DATABASE_URL": database_url,
        "SANDKEEPER_LOCAL_ROOT": f"{tmp_path}/sandboxes",
    }

    def types(*words: str) -> str:
        ran = CliRunner(env=environ).invoke(main, words)
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    token = types("tokens", "create", "ci", "--scope", "turns", "--tenant", "acme").strip()
    parts = taken_apart(token)
    assert parts is not None
    (listed,) = json.loads(types("tokens", "ls", "--json"))
    revoked = types("tokens", "revoke", parts[0])

    with engine.connect() as connection:
        row = str(connection.exec_driver_sql("SELECT * FROM api_tokens").one())
        ledger = connection.exec_driver_sql("SELECT kind FROM events ORDER BY id").scalars().all()
    assert (listed["id"], listed["name"], listed["tenant"]) == (parts[0], "ci", "acme")
    assert listed["scopes"] == ["turns"]
    assert parts[1] not in row
    assert parts[1] not in json.dumps(listed)
    assert "is revoked" in revoked
    assert ledger == ["token_created", "token_revoked"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("create", "ci"), 2, "--scope"),
        (("create", "ci", "--scope", "write"), 2, "write"),
        (("create", "ci", "--scope", "read", "--tenant", "a b"), 1, "tenant 'a b'"),
        (("create", "ci", "--scope", "read", "--expires-in", "-1"), 1, "--expires-in -1.0"),
        (("create", "\n", "--scope", "read"), 1, "name"),
        (("revoke", "nobody"), 1, "no token 'nobody' to revoke"),
    ],
)
def test_a_mistake_is_one_line(
    sqlite_url: str, tmp_path: object, words: tuple[str, ...], code: int, said: str
) -> None:
    """And no token is made."""
    environ = {
        "SANDKEEPER_DATABASE_URL": sqlite_url,
        "SANDKEEPER_LOCAL_ROOT": f"{tmp_path}/sandboxes",
    }

    ran = CliRunner(env=environ).invoke(main, ("tokens", *words))

    assert ran.exit_code == code
    assert said in ran.output
    assert CliRunner(env=environ).invoke(main, ("tokens", "ls", "--json")).stdout.strip() == "[]"
