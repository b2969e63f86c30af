"""The trigger that refuses to let a sandbox go back, as each database spells it."""

from __future__ import annotations

_RANK = (
    "CASE {0}.state WHEN 'creating' THEN 1 WHEN 'running' THEN 2 WHEN 'closing' THEN 3 ELSE 4 END"
)
_FORBIDDEN = " ".join(
    f"""
    {_RANK.format("new")} < {_RANK.format("old")}
    OR new.claim_token < old.claim_token
    OR (old.external_id IS NOT NULL AND new.external_id IS NOT old.external_id)
    OR new.key <> old.key OR new.session_id <> old.session_id OR new.generation <> old.generation
""".split()
)
_REFUSAL = "a sandbox never goes back: state, claim_token and external_id are monotone"

MONOTONE = {
    "postgresql": (
        "CREATE FUNCTION sandboxes_monotone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF ("
        + _FORBIDDEN.replace("IS NOT old.external_id", "IS DISTINCT FROM old.external_id")
        + f") THEN RAISE EXCEPTION '{_REFUSAL}'; END IF; RETURN new; END $$",
        "CREATE TRIGGER sandboxes_monotone BEFORE UPDATE ON sandboxes "
        "FOR EACH ROW EXECUTE FUNCTION sandboxes_monotone()",
    ),
    "sqlite": (
        "CREATE TRIGGER sandboxes_monotone BEFORE UPDATE ON sandboxes "
        f"WHEN {_FORBIDDEN} BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END",
    ),
}
