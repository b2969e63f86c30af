"""
What the model's actions are called: as the code calls them, taken from the code, so that a method
that is renamed or removed there takes the model with it.
"""

from __future__ import annotations

from core.providers.base import SandboxProvider
from core.store.clamps import Clamps
from core.store.guard import Guard
from core.store.inventory import Inventory
from core.store.openings import Openings
from core.store.orphans import Orphans
from core.store.publications import Publications
from core.store.restore import Restore
from core.store.retention import Retention
from core.store.sessions import Sessions
from core.store.sweeps import Sweeps
from core.store.teardowns import Teardowns
from core.store.turns import Turns

OPEN = Openings.open.__qualname__
RECORD = Openings.record.__qualname__
GIVE_UP = Openings.give_up.__qualname__
BEGIN = Turns.begin.__qualname__
BEAT = Turns.beat.__qualname__
END_TURN = Turns.end.__qualname__
TOUCH = Sessions.touch.__qualname__
EXTEND = Sessions.extend.__qualname__
END = Sessions.end.__qualname__
SWEEP = Sweeps.sessions.__qualname__
EXPIRE = Sweeps.expired_creates.__qualname__
PUBLISH = Publications.take.__qualname__
CLAMP = Clamps.clamp.__qualname__
CLAIM = Teardowns.claim.__qualname__
GONE = Teardowns.gone.__qualname__
RELEASE = Teardowns.release.__qualname__
RETRY_NOW = Teardowns.retry_now.__qualname__
PURGE = Retention.purge.__qualname__

SIGHT = Orphans.sight.__qualname__
CLAIM_ORPHAN = Orphans.claim.__qualname__
LOST = Inventory.lost.__qualname__
HOLD = Guard.hold.__qualname__
APPROVE = Guard.approve.__qualname__

PARDON = Restore.everything.__qualname__
RESTORED = Restore.finish.__qualname__

CREATE = SandboxProvider.create.__qualname__
DESTROY = SandboxProvider.destroy.__qualname__
GET = SandboxProvider.get.__qualname__
LIST = SandboxProvider.list.__qualname__
OF_PROVIDER = frozenset({CREATE, DESTROY, GET, LIST})

OF_STORE = frozenset(
    {OPEN, RECORD, GIVE_UP, BEGIN, BEAT, END_TURN, TOUCH, EXTEND, END}
    | {SWEEP, EXPIRE, PUBLISH, CLAMP, CLAIM, GONE, RELEASE, RETRY_NOW, PURGE}
    | {SIGHT, CLAIM_ORPHAN, LOST, HOLD, APPROVE, PARDON, RESTORED}
)

# Methods of the store that write and are no action of the model, each with its reason.
NOT_MODELLED = {
    "Endings.close": "half of each move that ends a session; the model's `closed` is the same",
    "Pins.pin": "an extension that has an owner: to the model's one session the same as EXTEND",
    "Pins.unpin": "the extension is over, as time makes it over in the model at any moment",
    "Promises.set_aside": "an extension is kept for longer where a clock was put right",
    "Promises.lift_pins": "half of Pins.unpin, inside of its transaction",
    "Overdue.ids": "reads inside somebody's transaction",
    "Savings.read": "reads, each stretch in a look of its own",
    "Policies.set": "limits of later rows; what follows is a date that comes sooner or later",
    "Policies.unset": "likewise",
    "Policies.edit": "likewise",
    "Policies.advance": "how far open sessions have come to follow a policy",
    "Policies.exists": "reads inside somebody's transaction",
    "Settling.settle": "limits of a row: in the model a session may become idle at any moment",
    "Settling.follow": "likewise, and looks sooner, as the model's sweep may at any moment",
    "Settling.follow_one": "likewise",
    "Quotas.admit": "ends as END does, where no turn is open; inside of OPEN's transaction",
    "Windows.add": "that nothing ends for a while: the model's sweep may stay away as long",
    "Windows.remove": "likewise",
    "Checkup.census": "reads, for the doctor",
    "Checkup.changes_backends": "likewise: it only takes another connection",
    "Checkup.close": "lets go of the connections",
    "Checkup.pulse": "reads, for the doctor",
    "Checkup.server": "likewise, in a transaction as moves have it",
    "Checkup.tokens": "likewise",
    "Checkup.try_to_write": "takes back what it wrote, which is no row",
    "Tokens.create": "who may call the HTTP API; no session depends on it",
    "Tokens.revoke": "likewise",
    "Records.note": "a line in the ledger; no row moves",
    "Ledger.insert_with": "makes a statement, and runs none",
    "Sessions.touch_in": "what touch and open do, inside of their transactions",
    "Sessions.end_in": "what end, open and give_up do, inside of their transactions",
    "Sessions.of": "reads a row that was returned",
    "Sessions.seen": "reads inside somebody's transaction",
    "Sessions.refusal": "makes an error, and asks nothing",
    "Sweeps.pulse": "says that a sweep ran; no row of a session or sandbox moves",
    "Tallies.fold": "counts what the ledger says; no row of a session or sandbox moves",
    "Adding.run": "what the pulse adds to the totals, inside of its statement",
    "Adding.with_": "makes a statement, and runs none",
    "Sweeps.postpone": "puts a due date off, which time and the next sweep undo",
    "Teardowns.put_off": "a release after no call; DESTROY_FAILS and release leave the same",
    "Inventory.finish": "keeps a cursor and a report, on which no verdict rests",
    "Orphans.forget_unseen": "begins a grace again: it only delays",
    "Orphans.gone": "forgets the sighting of what is not there any more",
    "Orphans.failed": "a pause; the model's next listing finds the orphan again at any time",
    "Guard.establish": "the first use of a database, before anything that the model begins with",
    "Guard.check": "asks by hold, whose cause in the model may be any",
    "Guard.deny": "the mass is left alone: to the model's one session that is being held",
    "Guard.deny_in": "half of the word on a restore, inside of its transaction",
    "Guard.trust_in": "half of the word on a restore, inside of its transaction",
    "Publications.failing": "what take does, for the quarantined",
    "Calls.take": "whether a call is made now; a worker that has none does nothing",
    "Calls.give": "likewise",
    "ProviderHealth.admit": "when a call is made, and not which",
    "ProviderHealth.answered": "likewise",
    "ProviderHealth.failed": "likewise",
    "ProviderHealth.limited": "likewise",
    "Backstops.claim": "the provider's own TTL, on which no move of ours depends",
    "Backstops.granted": "likewise",
    "Backstops.release": "likewise",
}
