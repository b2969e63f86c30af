"""How alembic runs our migrations: on the connection that it is given, never on one of its own."""

from __future__ import annotations

from alembic import context

from core.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
