"""What a run left behind: journals and rows, read once, with nothing concluded yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from core import schema
from core.engines import opened
from core.model import SandboxState, SessionStatus, sandbox_name
from tests.chaos.journal import Line, read
from tests.chaos.timings import Timings

Key = tuple[str, int]
"""A session's id and a generation."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Rows are plain mappings of column to value."""

    timings: Timings
    installation: str
    cloud: Sequence[Line]
    director: Sequence[Line]
    clients: Mapping[str, Sequence[Line]]
    sessions: Sequence[Mapping[str, Any]] = ()
    sandboxes: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()

    def names(self) -> dict[str, Key]:
        """Whose sandbox a name is, by the rows."""
        return {
            sandbox_name(self.installation, row["key"]): (row["session_id"], row["generation"])
            for row in self.sandboxes
        }

    def all_clients(self) -> Iterable[Line]:
        """The lines of every API server."""
        return (line for lines in self.clients.values() for line in lines)


def collect(folder: Path, timings: Timings, installation: str, database_url: str) -> Evidence:
    """Read it all."""
    rows = _rows(database_url)
    # For people: the database may be gone when they come to look.
    (folder / "rows.json").write_text(json.dumps(rows, default=str, indent=1))
    return Evidence(
        timings=timings,
        installation=installation,
        cloud=read(folder / "cloud.jsonl"),
        director=read(folder / "director.jsonl"),
        clients={path.stem: read(path) for path in sorted(folder.glob("clients/*.jsonl"))},
        sessions=rows["sessions"],
        sandboxes=rows["sandboxes"],
        events=rows["events"],
    )


def _rows(database_url: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    with opened(database_url) as engine, engine.connect() as connection:
        for table in schema.metadata.sorted_tables:
            query = select(table).order_by(*table.primary_key.columns)
            found[table.name] = [dict(row) for row in connection.execute(query).mappings()]
    return found


def unfinished(database_url: str) -> int:
    """How many rows are not in their final state."""
    sandboxes, sessions = schema.sandboxes.c, schema.sessions.c
    with opened(database_url) as engine, engine.connect() as connection:
        living = select(func.count()).where(sandboxes.state != SandboxState.GONE.value)
        active = select(func.count()).where(sessions.status != SessionStatus.ENDED.value)
        counts = connection.scalar(living) or 0, connection.scalar(active) or 0
    return sum(counts)


@dataclass
class Box:
    """One sandbox, as the cloud's journal tells its life."""

    id: str
    name: str
    born: float
    planted: str | None
    expires: float | None = None
    shortened: bool = False  # by an extension that left it less time than it had
    died: float | None = None
    why: str | None = None


def boxes(cloud: Iterable[Line]) -> list[Box]:
    """Every sandbox that ever was, in the order of birth."""
    found: dict[str, Box] = {}
    for line in cloud:
        if line["what"] == "born":
            found[line["id"]] = Box(
                id=line["id"],
                name=line["name"],
                born=line["at"],
                planted=line["planted"],
                expires=line["expires"],
            )
        elif line["what"] == "extended":
            box = found[line["id"]]
            box.shortened |= box.expires is not None and line["expires"] < box.expires - 1.0
            box.expires = line["expires"]
        elif line["what"] == "died":
            found[line["id"]].died, found[line["id"]].why = line["at"], line["why"]
    return list(found.values())


@dataclass
class Trust:
    """One turn, from when its holder may rely on its sandbox until it does so no more."""

    client: str
    turn: str
    key: Key
    external_id: str
    asked: float
    begun: float
    until: float
    beats: list[tuple[float, float]] = field(default_factory=list)  # asked, acknowledged

    def last_proof(self, moment: float) -> float:
        """When the last acknowledged beat before this moment was asked for, or the begin."""
        return max([self.asked, *(asked for asked, at in self.beats if at <= moment)])


@dataclass(frozen=True)
class Pause:
    """A time in which a process could do nothing, because it was stopped or got no processor."""

    since: float
    until: float

    def within(self, since: float, until: float) -> float:
        """How many seconds of it are in this span."""
        return max(0.0, min(self.until, until) - max(self.since, since))


def trusts(evidence: Evidence) -> list[Trust]:
    """Every turn that was begun, trusted until its holder let go, was told, or was killed."""
    killed = {line["name"]: line["at"] for line in evidence.director if line["what"] == "killed"}
    found: list[Trust] = []
    for client, lines in evidence.clients.items():
        end_of_client = killed.get(client, float("inf"))
        turns: dict[str, Trust] = {}
        for line in lines:
            if line["what"] == "begun":
                turns[line["turn"]] = Trust(
                    client=client,
                    turn=line["turn"],
                    key=(line["id"], line["generation"]),
                    external_id=line["external_id"],
                    asked=line["asked"],
                    begun=line["at"],
                    until=min(line["ceiling"], end_of_client),
                )
        _let_go(turns, lines)
        found += turns.values()
    return found


def _let_go(turns: Mapping[str, Trust], lines: Iterable[Line]) -> None:
    for line in lines:
        match line["what"]:
            case "beat":
                for turn in line["turns"]:
                    if turn in turns:
                        turns[turn].beats.append((line["asked"], line["at"]))
            case "ending" | "lost":
                # A turn that was lost before its begin was written down has no line to end.
                if line["turn"] in turns:
                    trust = turns[line["turn"]]
                    trust.until = min(trust.until, line["at"])


def pauses(evidence: Evidence) -> dict[str, list[Pause]]:
    """When each API server was stopped by us, or starved by the machine."""
    found: dict[str, list[Pause]] = {client: [] for client in evidence.clients}
    open_since: dict[str, float] = {}
    for line in evidence.director:
        if line["what"] == "stopped":
            open_since[line["name"]] = line["at"]
        elif line["what"] in {"resumed", "killed"} and line["name"] in open_since:
            since = open_since.pop(line["name"])
            found.setdefault(line["name"], []).append(Pause(since, line["at"]))
    for client, lines in evidence.clients.items():
        for line in lines:
            if line["what"] == "starved":
                found[client].append(Pause(line["since"], line["at"]))
    return {client: _merged(spans) for client, spans in found.items()}


def _merged(spans: Iterable[Pause]) -> list[Pause]:
    merged: list[Pause] = []
    for span in sorted(spans, key=lambda pause: pause.since):
        if merged and span.since <= merged[-1].until:
            merged[-1] = Pause(merged[-1].since, max(merged[-1].until, span.until))
        else:
            merged.append(span)
    return merged


def clock_steps(evidence: Evidence) -> list[float]:
    """When the database's clock was stepped, there and back."""
    return [
        line["at"]
        for line in evidence.director
        if line["what"] == "clock_stepped"
        or (line["what"] == "fault_over" and line["kind"].startswith("clock"))
        or line["what"] == "healed"
    ]


def database_back(evidence: Evidence) -> list[float]:
    """When the database could be asked again, after each outage."""
    return [
        line["at"]
        for line in evidence.director
        if line["what"] == "fault_over" and line["kind"].startswith("database")
    ]


def to_monotonic(evidence: Evidence, moment: datetime) -> float:
    """A date of the database as a moment of the journals. Wrong while its clock was stepped."""
    for line in evidence.director:
        if line["what"] == "clocks":
            return float(moment.timestamp() - line["wall"] + line["at"])
    return float("-inf")
