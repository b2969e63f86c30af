"""The mutants of totals that do not lie."""

from __future__ import annotations

from tests.mutants import Mutant, at

TALLIES, RETENTION = "core/store/tallies.py", "core/store/retention.py"

TALLIES_MUTANTS = (
    Mutant(
        "what is counted is counted again",
        "H1: each line of the ledger once",
        TALLIES,
        "update(installation).values(told=bindparam",
        "update(installation).values(seen=bindparam",
        at("tallies", "every_line_is_counted_once", on="sqlite-1"),
    ),
    Mutant(
        "who is still writing is not waited for",
        "H1: a line that is committed late is counted",
        TALLIES,
        "if set(row.writers) & set(move.all(self._writers)[0].writers):",
        "if False:",
        at("tallies", "a_line_that_is_committed_late_is_counted", on=""),
    ),
    Mutant(
        "whoever writes is waited for",
        "a busy fleet is counted",
        TALLIES,
        "if set(row.writers) & set(move.all(self._writers)[0].writers):",
        "if move.all(self._writers)[0].writers:",
        at("tallies", "writers_that_come_later_are_not_waited_for", on=""),
    ),
    Mutant(
        "two sweepers count at once",
        "H1: each line of the ledger once",
        TALLIES,
        "self._lock = here.with_for_update(skip_locked=True)",
        "self._lock = here",
        at("tallies", "two_sweepers_count_nothing_twice", on=""),
    ),
    Mutant(
        "history is deleted before it was counted",
        "H1: totals have every line that ever was",
        RETENTION,
        "counted, ~kept, UNHELD)",
        "~kept, UNHELD)",
        at("tallies", "no_history_is_deleted_before_it_was_counted"),
    ),
    Mutant(
        "numbers that SQLite gives again are not counted",
        "H1: totals have every line that ever was",
        RETENTION,
        "                    move.run(self._back)\n",
        "                    pass\n",
        at("tallies", "what_comes_after_a_purge_of_everything_is_counted"),
    ),
    Mutant(
        "lateness begins when somebody looks",
        "L1: the figure is of the promise",
        "core/store/endings.py",
        "select(Earliest(rules.ends_at, rules.now))",
        "select(Earliest(rules.now, rules.now))",
        at("tallies", "a_teardown_counts_from_the_end_and_lateness_from_the_last_right"),
    ),
    Mutant(
        "a counter is rounded",
        "a counter grows by what happened",
        "core/web/metrics.py",
        "return str(int(value)) if float(value).is_integer() else repr(float(value))",
        'return f"{value:g}"',
        ("tests/web/test_metrics.py::test_every_digit_is_said",),
    ),
)
