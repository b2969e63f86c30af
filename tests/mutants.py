"""
One mutant for every safeguard: the smallest change of the source that takes a promise back, and
the tests that have to notice. As a pytest plugin it makes property tests fail fast instead of
looking for the smallest example.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from hypothesis import Phase, settings

ROOT = Path(__file__).parents[1]
PARTS = ("core", "tasks", "tests", "celeryconfig.py", "pyproject.toml")

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate))


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new`, once, in `file`; then one of `tests` must fail."""

    name: str
    promise: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def source(self) -> str:
        """The changed file. A place that is not there exactly once makes the table stale."""
        text = (ROOT / self.file).read_text(encoding="utf-8")
        found = text.count(self.old)
        assert found == 1, f"{self.name}: found {found} times in {self.file}: {self.old!r}"
        return text.replace(self.old, self.new)


def copy_tree(to: Path, mutant: Mutant | None = None) -> Path:
    """The sources and tests, with one safeguard less."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, to / part)  # with what is compiled: it is as old as its source
        else:
            shutil.copy(source, to / part)
    if mutant is not None:
        changed = to / mutant.file
        for compiled in changed.parent.glob(f"__pycache__/{changed.stem}.*"):
            compiled.unlink()
        changed.write_text(mutant.source(), encoding="utf-8")
    return to


def at(file: str, *names: str, on: str = "sqlite") -> tuple[str, ...]:
    """Node ids. `on` is the database; "" for tests that have none in their name."""
    suffix = f"[{on}]" if on else ""
    return tuple(f"tests/test_{file}.py::test_{name}{suffix}" for name in names)


SWEEPS, RULES, TURNS = "core/store/sweeps.py", "core/store/rules.py", "core/store/turns.py"
TEARDOWNS, REAPER, LIFECYCLE = "core/store/teardowns.py", "core/reaper.py", "core/lifecycle.py"
TEARDOWN, CLAMPS = "core/teardown.py", "core/store/clamps.py"
OPENINGS, SESSIONS, DATABASE = (
    "core/store/openings.py",
    "core/store/sessions.py",
    "core/store/database.py",
)
MIGRATION = "core/migrations/versions/0001_first_tables.py"

PINS = "core/store/pins.py"
PROMISES = "core/store/promises.py"

MIGRATIONS = "core/migrations/__init__.py"

MUTANTS = (
    Mutant(
        "old processes refuse a schema that was added to",
        "S1: an upgrade harms no turn",
        MIGRATIONS,
        "needed <= found and _era(found) == _era(needed)",
        "needed == found",
        at("migrations", "an_old_process_starts_on_a_later_schema", on="sqlite-0011"),
    ),
    Mutant(
        "old processes work on a schema that took something away",
        "S4: what cannot be read is not taken for absent",
        MIGRATIONS,
        " and _era(found) == _era(needed)",
        "",
        at("migrations", "a_schema_that_took_something_away_is_refused"),
    ),
    Mutant(
        "a migration takes its tables one by one",
        "S1: an upgrade harms no turn",
        MIGRATIONS,
        "        _take_all_tables(connection)\n",
        "        pass\n",
        at("migrations", "a_migration_gives_way", on="postgresql"),
    ),
    Mutant(
        "a pin keeps nobody",
        "S1: what was acknowledged is kept",
        RULES,
        "return self.extended_until, self.pinned_until, earlier",
        "return self.extended_until, earlier",
        at("pins", "a_pin_is_kept_to_the_second", "the_provider_is_asked_to_let_it_live_as_long"),
    ),
    Mutant(
        "a pin of an ended session is acknowledged",
        "S1: the loser of the race is told",
        PINS,
        ".where(this, rules.usable)",
        ".where(this)",
        at("pins", "a_pin_is_refused_by_type"),
    ),
    Mutant(
        "a pin outlives the max age",
        "F5: the ceiling always holds",
        PINS,
        "pinned_until=Earliest(wished, func.coalesce(rules.age_ends, wished)),",
        "pinned_until=wished,",
        at("pins", "a_pin_ends_with_the_max_age"),
    ),
    Mutant(
        "a second pin shortens the first",
        "S1: the first was acknowledged",
        PINS,
        "wished = Latest(asked, func.coalesce(rules.pinned_until, asked))",
        "wished = asked",
        at("pins", "a_second_pin_never_shortens_the_first"),
    ),
    Mutant(
        "the caller has our word before the provider was asked",
        "S1: a pinned sandbox does not die by its TTL",
        LIFECYCLE,
        "        self._backstop.extend_now(session_id)  # as for an extension\n",
        "",
        at("pins", "the_provider_is_asked_to_let_it_live_as_long"),
    ),
    Mutant(
        "a pin is a date, whatever the clock does",
        "L1: it is over after as many seconds as were asked for",
        RULES,
        "self.pinned_until = self._counted(s.pinned_until, s.pinned_at)",
        "self.pinned_until = s.pinned_until",
        at("pins", "a_pin_lasts_as_long_as_it_was_asked_for_whatever_the_clock_does"),
    ),
    Mutant(
        "what was promised is forgotten when the clock steps back",
        "S1: it holds when that clock is put right",
        RULES,
        "return self.extended_until, self.pinned_until, earlier",
        "return self.extended_until, self.pinned_until",
        at("promises", "a_promise_holds_when_the_clock_is_put_right", on="sqlite-extension-far"),
    ),
    Mutant(
        "an earlier promise holds whatever the clock shows",
        "L1: it counts anew by the clock as it is",
        RULES,
        "e.generation == s.generation, ~self.ahead(e.at))",
        "e.generation == s.generation)",
        at(
            "promises",
            "a_promise_is_over_after_its_seconds_where_the_clock_stays_behind",
            on="sqlite-pin",
        ),
    ),
    Mutant(
        "an earlier promise holds for every generation",
        "F17: the next sandbox starts with its own clock",
        RULES,
        "e.generation == s.generation, ~self.ahead(e.at))",
        "~self.ahead(e.at))",
        at("promises", "what_was_promised_to_one_generation_keeps_no_other", on="sqlite-extension"),
    ),
    Mutant(
        "a sweep counts anew and forgets",
        "S1: it holds when that clock is put right",
        SWEEPS,
        "self._promises.set_aside(move, [row.id for row in rows if row.overtaken])",
        "pass",
        at("promises", "a_promise_holds_where_the_sweep_came_late", on="sqlite-pin"),
    ),
    Mutant(
        "dates that are brought back take promises with them",
        "S1: it holds when that clock is put right",
        CLAMPS,
        "self._promises.set_aside(move, [row.id for row in rows if row.overtaken])",
        "pass",
        at("promises", "a_promise_holds_when_the_clock_is_put_right", on="sqlite-pin-farther"),
    ),
    Mutant(
        "an extension takes the place of one that was made before",
        "S1: the first was acknowledged",
        SESSIONS,
        "self._promises.set_aside(move, [session_id])\n            row",
        "row",
        at(
            "promises",
            "one_promise_takes_no_other_s_place_while_the_clock_is_behind",
            on="sqlite-extension",
        ),
    ),
    Mutant(
        "a pin takes the place of one that was made before",
        "S1: the first was acknowledged",
        PINS,
        "self._promises.set_aside(move, [session_id])\n            row",
        "row",
        at(
            "promises",
            "one_promise_takes_no_other_s_place_while_the_clock_is_behind",
            on="sqlite-pin",
        ),
    ),
    Mutant(
        "a promise that changes nothing counts from then",
        "S1: a clock that was ahead for a moment takes nothing",
        RULES,
        "return case((and_(until > wished, ~self.ahead(at)), at), else_=self.now)",
        "return self.now",
        at("promises", "a_promise_that_changes_nothing_takes_nothing", on="sqlite-pin"),
    ),
    Mutant(
        "a pin that was lifted comes back with the clock",
        "unpin: it is lifted",
        PINS,
        "self._promises.lift_pins(move, session_id)",
        "pass",
        at("promises", "a_pin_that_is_lifted_keeps_nobody_when_the_clock_is_put_right"),
    ),
    Mutant(
        "promises that are over are remembered",
        "a clock that never rests leaves nothing behind",
        PROMISES,
        'move.run(self._forget, {"ids": list(session_ids)})\n            ',
        "",
        at("promises", "a_clock_that_never_rests_leaves_nothing_behind", on="sqlite-extension"),
    ),
    Mutant(
        "a rehearsal is committed",
        "a dry run writes nothing",
        DATABASE,
        "                whole.rollback()",
        "                whole.commit()",
        at("rehearsal", "nothing_is_written_and_nothing_published"),
    ),
    Mutant(
        "a rehearsal rings",
        "a dry run publishes nothing",
        REAPER,
        "        stage.doorbell = rung.extend\n",
        "",
        at("rehearsal", "nothing_is_written_and_nothing_published"),
    ),
    Mutant(
        "end without a notice",
        "S5: no session is ended at first sight",
        SWEEPS,
        ".where(idle, witnessed, confirmed, looked_again, UNHELD)",
        ".where(idle, UNHELD)",
        at("reaper", "an_idle_session_is_noticed_first_and_ended_at_a_later_look"),
    ),
    Mutant(
        "activity since the notice is not looked for",
        "S5: only a look that finds no activity since may end",
        SWEEPS,
        ".where(idle, witnessed, confirmed, looked_again, UNHELD)",
        ".where(idle, confirmed, looked_again, UNHELD)",
        at("reaper", "activity_between_notice_and_end_wins")
        + at("safeguards", "activity_after_a_notice_asks_for_a_new_notice"),
    ),
    Mutant(
        "the confirm interval is not waited for",
        "S5: live turns beat between notice and end",
        SWEEPS,
        ".where(idle, witnessed, confirmed, looked_again, UNHELD)",
        ".where(idle, witnessed, UNHELD)",
        at("reaper", "a_longer_confirm_interval_applies_to_what_was_noticed_before"),
    ),
    Mutant(
        "an open turn is not looked at again",
        "S1: the sweep may come back from an outage before the heartbeats",
        SWEEPS,
        "(HAS_OPEN_TURN, rules.in_(confirm - _one_beat(rules)))",
        "(HAS_OPEN_TURN, rules.in_(confirm))",
        at("reaper", "the_first_sweep_after_an_outage_ends_no_live_turn"),
    ),
    Mutant(
        "an open turn is looked at again without a pause",
        "S1: the sweep may come back from an outage before the heartbeats",
        SWEEPS,
        "Latest(confirmed_at, rules.in_(_one_beat(rules)))",
        "confirmed_at",
        at("reaper", "the_first_sweep_after_an_outage_ends_no_live_turn"),
    ),
    Mutant(
        "a notice from before a jump of the clock counts",
        "S1: heartbeats have had time to come since the notice",
        SWEEPS,
        "confirmed = and_(s.noticed_at >= since, no_jump, ",
        "confirmed = and_(since <= since, no_jump, ",
        at("reaper", "a_clock_that_jumps_ahead_delays_an_end_by_one_confirmation"),
    ),
    Mutant(
        "what was noticed before a jump is never noticed again",
        "L1: a jump delays an end by one confirmation",
        SWEEPS,
        "                    s.noticed_at < since,\n",
        "",
        at("reaper", "a_clock_that_jumps_ahead_delays_an_end_by_one_confirmation"),
    ),
    Mutant(
        "a jump in the middle of a sweep goes unseen",
        "S1: heartbeats have had time to come since the notice",
        SWEEPS,
        "confirmed = and_(s.noticed_at >= since, no_jump, ",
        "confirmed = and_(s.noticed_at >= since, no_jump | ~no_jump, ",
        at("reaper", "a_clock_that_jumps_ahead_in_a_sweep_ends_nobody_in_it"),
    ),
    Mutant(
        "a step that was held up counts as time for heartbeats",
        "S5: after an outage the first heartbeat comes before the second look",
        "core/timekeeper.py",
        "            if now - last <= max(self._tolerance.total_seconds(), SHORTEST_HOLD_UP):\n",
        "            if now - last <= 1e9:\n",
        at("reaper", "a_sweep_that_was_held_up_ends_nobody", on="sqlite-outlook-work"),
    ),
    Mutant(
        "a jump is forgotten",
        "L1, S1: what was noticed before it proves nothing",
        "core/timekeeper.py",
        "else min(since, now)",
        "else EVER",
        at("timekeeper", "a_jump_is_remembered_by_the_sweeps_that_follow", on=""),
    ),
    Mutant(
        "a jump that was taken back is remembered",
        "L1: notices of a clock that was put right count",
        "core/timekeeper.py",
        "else min(since, now)",
        "else since",
        at("timekeeper", "a_jump_that_was_taken_back_is_no_reason_to_wait_for_it", on=""),
    ),
    Mutant(
        "a clock that is put right looks like time",
        "S1: a jump after a step back is one",
        "core/timekeeper.py",
        "        self._known = now, before, since\n",
        "        self._known = self._known or (now, before, since)\n",
        at("timekeeper", "a_jump_after_a_step_back_is_one", on=""),
    ),
    Mutant(
        "a turn that was lost ends well",
        "S1: what it did at last is not taken for done",
        TURNS,
        "self._end.where(exists(select(1).select_from(alive)))",
        "self._end.add_cte(alive)",
        at("turns", "work_on_a_lost_turn_is_never_taken_for_done", on="postgresql"),
    ),
    Mutant(
        "a refused move is in the ledger",
        "S3: one effective teardown a generation",
        "core/store/ledger.py",
        "self._rows.where(exists(select(1).select_from(change)))",
        "self._rows",
        at(
            "teardown",
            "a_claim_that_ran_out_is_taken_over_and_its_holder_refused",
            on="postgresql",
        ),
    ),
    Mutant(
        "a fan-out is not waited for",
        "what is not with the broker is not published",
        "tasks/doorbell.py",
        "            confirms.wait(end, silence=CONFIRM_WITHIN)\n",
        "",
        at("confirms", "a_broker_that_is_slow_is_not_sent_everything_again", on=""),
    ),
    Mutant(
        "what the broker refuses is published",
        "what is not with the broker is not published",
        "tasks/confirms.py",
        "        self._refused += before - len(self._waiting)\n",
        "",
        at("confirms", "what_the_broker_refuses_is_no_success", on=""),
    ),
    Mutant(
        "begin takes what is not usable",
        "S1: the loser gets a typed refusal",
        TURNS,
        ".where(this, rules.usable, HAS_RUNNING)",
        ".where(this, HAS_RUNNING)",
        at("turns", "a_turn_is_refused_on_a_session_that_is_too_old"),
    ),
    Mutant(
        "begin takes what has no sandbox",
        "a turn gets a running sandbox or a refusal",
        TURNS,
        ".where(this, rules.usable, HAS_RUNNING)",
        ".where(this, rules.usable)",
        at("turns", "a_turn_is_refused_while_the_sandbox_is_made"),
    ),
    Mutant(
        "touch takes what has ended",
        "S1: the loser gets a typed refusal",
        SESSIONS,
        """            .where(self._this, rules.usable)
            .values(last_activity_at""",
        """            .where(self._this)
            .values(last_activity_at""",
        at("lifecycle", "a_touch_is_refused_by_type"),
    ),
    Mutant(
        "extend takes what has ended",
        "S1: the loser gets a typed refusal",
        SESSIONS,
        """            .where(self._this, rules.usable)
            .values(
                extended_until""",
        """            .where(self._this)
            .values(
                extended_until""",
        at("lifecycle", "an_extension_is_refused_by_type"),
    ),
    Mutant(
        "the sweep ends what is still being created",
        "S1: the create's own deadline decides",
        RULES,
        "HAS_RUNNING = exists(select(1).where(OF_SESSION, RUNNING).correlate(sessions))",
        "HAS_RUNNING = exists(select(1).where(OF_SESSION).correlate(sessions))",
        at("turns", "a_turn_is_refused_while_the_sandbox_is_made"),
    ),
    Mutant(
        "beats have no ceiling",
        "a wedged turn does not keep a sandbox for ever",
        RULES,
        "and_(OPEN_TURN, t.hard_until > now)",
        "OPEN_TURN",
        at("turns", "a_turn_ends_at_its_hard_ceiling"),
    ),
    Mutant(
        "a beat of an older generation counts",
        "S3: a late holder of g never keeps g+1",
        RULES,
        "t.session_id == s.id, t.generation == s.generation)\nHAS_OPEN",
        "t.session_id == s.id)\nHAS_OPEN",
        at("turns", "a_late_turn_of_one_generation_never_extends_the_next"),
    ),
    Mutant(
        "extensions are ignored",
        "S1: an acknowledged extension is kept",
        RULES,
        "return self.extended_until, self.pinned_until, earlier",
        "return self.pinned_until, earlier",
        at("lifecycle", "an_extension_is_kept_to_the_second"),
    ),
    Mutant(
        "an extension is a date",
        "L1: so many seconds were promised, whatever the clock does",
        RULES,
        "self.extended_until = self._counted(s.extended_until, self.extended_at)",
        "self.extended_until = s.extended_until",
        at("lifecycle", "an_extension_lasts_as_long_as_it_was_asked_for_whatever_the_clock_does"),
    ),
    Mutant(
        "an extension counts from the last activity",
        "S1: who is active while the clock is ahead takes no extension back",
        RULES,
        "self.extended_at = func.coalesce(s.extended_at, s.last_activity_at)",
        "self.extended_at = s.last_activity_at",
        at("lifecycle", "activity_while_the_clock_was_ahead_takes_no_extension_back"),
    ),
    Mutant(
        "the max age is ignored",
        "no sandbox is older than its max age",
        RULES,
        "self.ends_at = Earliest(kept_until, func.coalesce(self.age_ends, kept_until))",
        "self.ends_at = kept_until",
        at("reaper", "the_max_age_ends_an_active_session_in_two_looks"),
    ),
    Mutant(
        "the claim's token is not looked at",
        "S3: a worker whose claim ran out writes nothing",
        TEARDOWNS,
        'CLOSING, b.claim_token == bindparam("token"))',
        "CLOSING)",
        at("teardown", "a_claim_that_ran_out_is_taken_over_and_its_holder_refused"),
    ),
    Mutant(
        "a live claim can be claimed",
        "S3: one worker at a time",
        TEARDOWNS,
        "                or_(b.not_before <= rules.now, early),\n",
        "",
        at("safeguards", "a_live_claim_is_nobody_elses"),
    ),
    Mutant(
        "a claim takes any generation",
        "S3: a message of g never touches g+1",
        TEARDOWNS,
        '                b.generation == bindparam("of_generation"),\n',
        "",
        at("teardown", "a_late_message_of_one_generation_never_touches_the_next")
        + at("safeguards", "a_message_names_the_generation_that_it_claims"),
    ),
    Mutant(
        "a claim takes what is not closing",
        "S1: only a row that says closing can be torn down",
        TEARDOWNS,
        """                CLOSING,
                UNHELD,
                or_(b.not_before""",
        """                UNHELD,
                or_(b.not_before.is_(None), b.not_before""",
        at("teardown", "a_live_sandbox_is_never_torn_down"),
    ),
    Mutant(
        "an accepted destroy is believed",
        "L3: done only when the provider confirms absence",
        TEARDOWN,
        "    left = provider.get(ref, deadline=deadline)\n",
        "    left = None\n",
        at("teardown", "an_accepted_destroy_is_not_believed"),
    ),
    Mutant(
        "the scope is not compared",
        "S4: a not-found counts only from the right account",
        TEARDOWN,
        "        if scope != claim.scope:\n",
        "        if False:\n",
        at("teardown", "a_not_found_from_another_account_is_never_believed"),
    ),
    Mutant(
        "the provider is asked before the row is written",
        "L1: no crash leaves a sandbox that no row explains",
        LIFECYCLE,
        "        asked = self._host.monotonic()\n",
        "        asked = self._host.monotonic()\n"
        '        self.provider.create("sk-first", {}, Spec(), ttl=None, deadline=1e18)\n',
        at("lifecycle", "the_row_is_committed_before_the_provider_is_called"),
    ),
    Mutant(
        "record does not look at the state",
        "a sandbox that is closing never runs again",
        OPENINGS,
        '.where(b.key == bindparam("of_key"), b.state == SandboxState.CREATING.value)',
        '.where(b.key == bindparam("of_key"))',
        at("lifecycle", "a_session_ended_while_it_was_made_is_refused_with_that_reason"),
    ),
    Mutant(
        "a create is joined anywhere",
        "S2, L1: the sandbox is where its row says",
        LIFECYCLE,
        "        self._check_same_place(intent)\n",
        "",
        at("lifecycle", "a_create_is_never_joined_at_another_provider", on="sqlite-account"),
    ),
    Mutant(
        "no trigger",
        "a sandbox never goes back, whatever code does",
        MIGRATION,
        "    for statement in MONOTONE[op.get_bind().dialect.name]:\n",
        "    for statement in ():\n",
        at("schema", "a_sandbox_moves_as_it_is_drawn_and_never_back"),
    ),
    Mutant(
        "gone can be recorded twice",
        "S3: one gone event a generation",
        MIGRATION,
        "        unique=True,\n",
        "        unique=False,\n",
        at("schema", "there_is_one_gone_event_a_generation"),
    ),
    Mutant(
        "the publish lease is not taken",
        "a sweep does not publish again what it just published",
        "core/store/publications.py",
        ".values(due_at=rules.in_(rules.policy.publish_lease))",
        ".values(due_at=rules.now)",
        at(
            "reaper",
            "a_published_teardown_is_not_published_again_before_its_lease_has_run_out",
        )
        + at("safeguards", "the_doorbell_rings_after_the_lease"),
    ),
    Mutant(
        "the doorbell rings before the commit",
        "a worker that hears it at once finds the row",
        LIFECYCLE,
        """        session = self.store.sessions.end(
            check_session_id""",
        """        self._ring(self.get(session_id))
        session = self.store.sessions.end(
            check_session_id""",
        at("lifecycle", "an_end_closes_the_sandbox_and_rings_after_the_commit"),
    ),
    Mutant(
        "attempts are counted afterwards",
        "L3: what kills its worker each time is quarantined too",
        TEARDOWNS,
        "                attempts=b.attempts + 1,\n",
        "                attempts=b.attempts,\n",
        at("teardown", "an_attempt_that_kills_its_worker_is_counted"),
    ),
    Mutant(
        "quarantine is the end",
        "L3: retried for ever",
        SWEEPS,
        "self.failing = due.where(b.quarantined_at.is_not(None))",
        "self.failing = due.where(b.quarantined_at.is_not(None), b.attempts < 0)",
        at("safeguards", "what_is_quarantined_is_published_for_ever"),
    ),
    Mutant(
        "what is not gone is forgotten",
        "L1: the row that condemns a sandbox stays until it is gone",
        "core/store/retention.py",
        ", ~kept, UNHELD)",
        ", UNHELD)",
        at("retention", "a_session_with_a_sandbox_that_is_not_gone_is_never_forgotten"),
    ),
    Mutant(
        "dates of the future stay",
        "L1: a clock that steps back delays, it does not forget",
        CLAMPS,
        "locked(marked.limit(LIMIT), skip=True)",
        'locked(marked.where(s.id == "").limit(LIMIT), skip=True)',
        at("reaper", "a_clock_that_steps_back_delays_nothing_beyond_one_idle_time"),
    ),
    Mutant(
        "the end leaves the sandbox alone",
        "active exactly when its sandbox may run",
        "core/store/endings.py",
        '        move.run(self._close, {"session_ids": [row.id for row in ended]})\n',
        "",
        at("lifecycle", "an_end_closes_the_sandbox_and_rings_after_the_commit"),
    ),
    Mutant(
        "unfinished creates are left",
        "L1: what crashed between create and record is found",
        REAPER,
        "expired=self._until_short(lambda limit: expire(limit, watched))",
        "expired=0",
        at("reaper", "a_create_that_nobody_finished_is_closed_at_its_deadline"),
    ),
    Mutant(
        "one create that cannot be ended ends the sweep",
        "L1: a bad row stops no other",
        REAPER,
        "        except StoreError:\n            due = self.store.sweeps.due_creates",
        "        except SchemaOutdated:\n            due = self.store.sweeps.due_creates",
        at("reaper", "a_create_that_refuses_every_update_stops_no_other"),
    ),
    Mutant(
        "a sweep takes what comes due after it began",
        "S5: nothing ends that the breaker did not count",
        SWEEPS,
        "marked.where(s.due_at <= BEGAN, WANTED)",
        "marked.where(or_(BEGAN.is_not(None), WANTED), WANTED)",
        at(
            "guard",
            "a_sweep_that_takes_longer_than_the_confirmation_ends_nobody_unasked",
            "a_sweep_under_a_hold_comes_to_its_end",
        ),
    ),
    Mutant(
        "a sweep takes creates that expire after it began",
        "S5: nothing ends that the breaker did not count",
        SWEEPS,
        "self._due_creates.where(b.due_at <= BEGAN, WANTED)",
        "self._due_creates.where(or_(BEGAN.is_not(None), WANTED), WANTED)",
        at("guard", "creates_that_expire_while_a_sweep_goes_on_are_the_next_ones"),
    ),
    Mutant(
        "beats wait for locks",
        "S1: one stuck transaction starves no other turn",
        TURNS,
        "            skip=True,\n",
        "            skip=False,\n",
        at("turns", "a_row_that_somebody_holds_is_skipped_and_not_refused", on="postgresql"),
    ),
    Mutant(
        "nobody gives up",
        "a generation that can never be made makes room for the next",
        LIFECYCLE,
        "                    self.store.openings.give_up(intent, actor=self.holder)\n",
        "",
        at("lifecycle", "what_can_never_be_made_ends_its_generation"),
    ),
    Mutant(
        "events are recorded after the commit",
        "H1: a move and its record are one transaction",
        DATABASE,
        """            if move.events:
                connection.execute(""",
        """        with self.engine.begin() as connection:
            if move.events:
                connection.execute(""",
        at("events", "a_move_whose_record_is_refused_is_not_made"),
    ),
    Mutant(
        "sinks hear before the commit",
        "H1: only what is committed is told",
        DATABASE,
        """        sinks.emit(self.sinks, move.events)

    @contextmanager
    def look""",
        """            sinks.emit(self.sinks, move.events)

    @contextmanager
    def look""",
        at("events", "sinks_hear_only_what_is_committed"),
    ),
    Mutant(
        "an end takes any generation",
        "S3: a late caller never ends the next generation",
        SESSIONS,
        ".where(self._this, ACTIVE, s.generation == func.coalesce(only, s.generation))",
        ".where(self._this, ACTIVE, func.coalesce(only, s.generation) > 0)",
        at("lifecycle", "a_late_end_of_one_generation_never_ends_the_next"),
    ),
    Mutant(
        "children keep their parent's connections",
        "S1: two processes never read the answers to each other's statements",
        "core/engines.py",
        """    _ask_what_rested(engine)
    _forget_in_children(engine)
""",
        """    _ask_what_rested(engine)
""",
        at("engines", "a_forked_child_does_not_use_its_parents_connections", on=""),
    ),
    Mutant(
        "activity goes back",
        "S1: an acknowledged touch counts from when it was acknowledged",
        RULES,
        "self.active_now = case(",
        "self.active_now = now\n        _ = case(",
        at("races", "activity_never_goes_back", on=""),
    ),
    Mutant(
        "now is when the transaction began",
        "S1: who was stopped in a transaction takes nobody's dates for the future",
        "core/store/sql.py",
        'return "statement_timestamp()"',
        'return "now()"',
        at("races", "a_sweep_that_was_stopped_takes_nobody_s_dates_for_the_future", on=""),
    ),
    Mutant(
        "giving up does not look again",
        "S1: a create that failed late ends nothing that another caller made",
        OPENINGS,
        """if move.one(self._still_creating, {"of_key": intent.key}) is not None:""",
        """if move.one(self._still_creating, {"of_key": intent.key}) is not self:""",
        at(
            "races",
            "a_late_failure_of_one_create_leaves_a_session_that_another_made_alone",
            on="sqlite",
        ),
    ),
)
