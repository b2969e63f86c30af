"""All SQL. One method is one conditional statement, or one transaction of them: one move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import Engine, select

from ..errors import SettingsError
from ..events import Sink
from ..host import Host
from ..policy import Policy
from ..schema import installation as installation_table
from ..witness import InMemory, Witness
from .backstops import Backstops
from .calls import Calls
from .clamps import Clamps
from .database import Database
from .evidence import Evidence
from .guard import Guard
from .health import ProviderHealth
from .history import History
from .inventory import Inventory
from .openings import Openings, Wanted
from .orphans import Orphans
from .outlook import Outlook
from .overdue import Overdue
from .overview import Overview
from .pins import Pins
from .policies import Policies
from .publications import Publications
from .quarantine import Quarantine
from .records import Records
from .restore import Restore
from .retention import Retention
from .rules import Rules
from .savings import Savings
from .selection import Selection
from .sessions import Sessions
from .settling import Settling
from .standing import Standings
from .sweeps import Sweeps
from .tallies import Tallies
from .teardowns import Quarantined, Teardowns
from .turns import BegunTurn, Turns
from .watch import Watch
from .windows import Windows

__all__ = ["BegunTurn", "Quarantined", "Store", "Wanted"]


class Store:
    """
    The relational store of one installation. `engine` comes from `core.engines.make_engine`, or
    is prepared by it; `clock` is for tests. Raises SchemaOutdated when it was never migrated.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        policy: Policy | None = None,
        installation: str | None = None,
        clock: Callable[[], datetime] | None = None,
        sinks: Sequence[Sink] = (),
        host: Host | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.database = Database(engine, clock=clock, sinks=sinks)
        if host is None:
            # A clock that was handed in is the only one there is.
            host = Host() if clock is None else Host(monotonic=lambda: clock().timestamp())
        self.monotonic = host.monotonic
        self.installation = _installation(self.database, installation, host)
        rules = Rules(self.database.now, self.policy)
        self.guard = Guard(self.database, rules, witness or InMemory())
        self.guard.establish()
        self.sessions = Sessions(self.database, rules, self.installation)
        self.pins = Pins(self.database, rules, self.sessions)
        self.policies = Policies(self.database, rules)
        self.settling = Settling(self.database, rules)
        self.windows = Windows(self.database, rules)
        self.openings = Openings(
            self.database,
            rules,
            self.sessions,
            host.randbits,
            policies=self.policies,
            settling=self.settling,
        )
        self.turns = Turns(self.database, rules, self.sessions)
        self.clamps = Clamps(self.database, rules)
        self.sweeps = Sweeps(self.database, rules)
        self.publications = Publications(self.database, rules)
        self.outlook = Outlook(self.database, self.clamps, self.sweeps, self.policies)
        self.teardowns = Teardowns(self.database, rules, self.installation)
        self.calls = Calls(self.database, rules)
        self.inventory = Inventory(self.database, rules, self.installation)
        self.orphans = Orphans(self.database, rules, self.installation)
        self.backstops = Backstops(self.database, rules, self.installation)
        self.watch = Watch(self.database, rules)
        self.health = ProviderHealth(self.database, rules)
        self.restore = Restore(self.database, rules, self.guard)
        self.tallies = Tallies(self.database, rules)
        self.retention = Retention(self.database, rules)
        self.history = History(self.database)
        self.evidence = Evidence(self.database, rules, self.sessions)
        self.overview = Overview(self.database, rules)
        self.standings = Standings(self.database)
        self.overdue = Overdue(self.database, rules)
        self.selection = Selection(self.database, rules, self.overdue)
        self.quarantine = Quarantine(self.database)
        self.records = Records(self.database)
        self.savings = Savings(self.database, rules)


def _installation(database: Database, wanted: str | None, host: Host) -> str:
    """The id that this database has, or its first one. Two first processes agree on one."""
    table = installation_table
    with database.look() as look:
        row = look.one(select(table.c.id))
    if row is None:
        candidate = wanted or f"{host.randbits(32):08x}"
        insert = database.insert(table).values(row=1, id=candidate, created_at=database.now)
        with database.move() as move:
            move.run(insert.on_conflict_do_nothing(index_elements=["row"]))
            row = move.one(select(table.c.id))
    found = str(row.id) if row is not None else ""
    if wanted is not None and found != wanted:
        raise SettingsError(
            f"SANDKEEPER_INSTALLATION={wanted!r}: this database belongs to installation "
            f"{found!r}; leave the setting out, or point DATABASE_URL at the right database"
        )
    return found
