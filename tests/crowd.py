"""Many sessions in a PostgreSQL database, written by one statement a table."""

from __future__ import annotations

import psycopg

# A tenth of the sessions ended long ago, a hundredth of the sandboxes is still closing and not due,
# the rest runs, has an open turn and is due later.
FILL = (
    """
INSERT INTO sessions (id, tenant, status, generation, turn_count, turns_before, idle_ttl, max_turn,
    metadata, created_at, opened_at, last_activity_at, due_at, ended_at, end_reason)
SELECT 'conv-' || n, 'default', CASE WHEN n %% 10 = 0 THEN 'ended' ELSE 'active' END, 1, 1, 0, 1800,
    21600, '{}', now() - interval '1 day', now() - interval '1 day',
    now() - interval '1 second' * (n %% 800), now() + interval '1 second' * (900 + n %% 800),
    CASE WHEN n %% 10 = 0 THEN now() - interval '1 hour' END, CASE WHEN n %% 10 = 0 THEN 'idle' END
FROM generate_series(%(first)s::int, %(last)s::int) AS n
""",
    """
INSERT INTO sandboxes (key, session_id, generation, provider, scope, spec, external_id, state,
    due_at, not_before, attempts, claim_token, created_at, running_at, closing_at, gone_at)
SELECT lpad(n::text, 26, '0'), 'conv-' || n, 1, 'fake', 'test-account', '{}', 'box-' || n,
    CASE WHEN n %% 10 > 0 THEN 'running' WHEN n %% 100 = 0 THEN 'closing' ELSE 'gone' END,
    CASE WHEN n %% 100 = 0 THEN now() + interval '15 minutes' END,
    CASE WHEN n %% 100 = 0 THEN now() + interval '15 minutes' END,
    0, 0, now() - interval '1 day', now() - interval '1 day',
    CASE WHEN n %% 100 = 0 THEN now() - interval '1 minute'
        WHEN n %% 10 = 0 THEN now() - interval '1 hour' END,
    CASE WHEN n %% 10 = 0 AND n %% 100 > 0 THEN now() - interval '1 hour' END
FROM generate_series(%(first)s::int, %(last)s::int) AS n
""",
    """
INSERT INTO turns (id, session_id, generation, holder, started_at, hard_until)
SELECT 'turn-' || n, 'conv-' || n, 1, 'holder', now(), now() + interval '6 hours'
FROM generate_series(%(first)s::int, %(last)s::int) AS n WHERE n %% 10 > 0
""",
)


def fill(url: str, last: int, *, first: int = 1) -> None:
    """Write sessions number `first` to `last`, none of them due; then the statistics are right."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in FILL:
            connection.execute(statement, {"first": first, "last": last})
        connection.execute("VACUUM ANALYZE")
