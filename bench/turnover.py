"""Whole lives of sessions, thousands by a statement: what they leave in tables and indexes."""

from __future__ import annotations

import psycopg

from .ground import Ground

BATCH = 10_000
VACUUM_EVERY = 100_000  # lives, where the server itself never vacuums
TABLES = "sessions, sandboxes, turns, events"
LIFE = (
    """
INSERT INTO sessions (id, tenant, status, generation, turn_count, turns_before, idle_ttl, max_turn,
    metadata, created_at, opened_at, last_activity_at, due_at)
SELECT 'life-' || n, 'default', 'active', 1, 0, 0, 1800, 21600, '{}', now(), now(), now(),
    now() + interval '30 minutes'
FROM generate_series(%(first)s::int, %(last)s::int) AS n
""",
    """
INSERT INTO sandboxes (key, session_id, generation, provider, scope, spec, external_id, state,
    attempts, claim_token, created_at, running_at)
SELECT 'life' || lpad(n::text, 22, '0'), 'life-' || n, 1, 'fake', 'test-account', '{}', 'box-' || n,
    'running', 0, 0, now(), now()
FROM generate_series(%(first)s::int, %(last)s::int) AS n
""",
    """
INSERT INTO turns (id, session_id, generation, holder, started_at, hard_until)
SELECT 'life-' || n, 'life-' || n, 1, 'holder', now(), now() + interval '6 hours'
FROM generate_series(%(first)s::int, %(last)s::int) AS n
""",
    "UPDATE sessions SET last_activity_at = statement_timestamp(), turn_count = 1 "
    "WHERE id LIKE 'life-%%'",
    "UPDATE turns SET ended_at = now(), outcome = 'completed' WHERE session_id LIKE 'life-%%'",
    "UPDATE sessions SET status = 'ended', ended_at = now(), end_reason = 'idle' "
    "WHERE id LIKE 'life-%%'",
    "UPDATE sandboxes SET state = 'closing', closing_at = now(), due_at = now(), "
    "not_before = now() WHERE session_id LIKE 'life-%%'",
    "UPDATE sandboxes SET due_at = now() + interval '2 minutes', claimed_by = 'worker', "
    "not_before = now() + interval '2 minutes', attempts = 1, claim_token = 1 "
    "WHERE session_id LIKE 'life-%%'",
    "UPDATE sandboxes SET state = 'gone', gone_at = now(), due_at = NULL, not_before = NULL, "
    "claimed_by = NULL WHERE session_id LIKE 'life-%%'",
    """
INSERT INTO events (at, kind, session_id, generation, actor, detail)
SELECT now(), kind, 'life-' || n, 1, 'bench', '{}'
FROM generate_series(%(first)s::int, %(last)s::int) AS n,
    unnest(ARRAY['session_opened', 'session_ended', 'sandbox_gone']) AS kind
""",
    "DELETE FROM events WHERE session_id LIKE 'life-%%'",
    "DELETE FROM turns WHERE session_id LIKE 'life-%%'",
    "DELETE FROM sandboxes WHERE session_id LIKE 'life-%%'",
    "DELETE FROM sessions WHERE id LIKE 'life-%%'",
)


def turn_over(here: Ground, lives: int) -> int:
    """
    So many sessions are opened, used, ended, torn down and purged, as versions of rows see it.
    Returns how often this had to vacuum, because the server is set to leave that to others.
    """
    vacuums = 0
    with here.connect() as connection:
        left_to_us = _is_off(connection)
        for first in range(1, lives + 1, BATCH):
            numbers = {"first": first, "last": min(first + BATCH - 1, lives)}
            for statement in LIFE:
                connection.execute(statement, numbers)
            if left_to_us and (numbers["last"] % VACUUM_EVERY == 0 or numbers["last"] == lives):
                connection.execute(f"VACUUM ANALYZE {TABLES}")
                vacuums += 1
    return vacuums


def _is_off(connection: psycopg.Connection) -> bool:
    row = connection.execute("SHOW autovacuum").fetchone()
    return row is None or row[0] == "off"
