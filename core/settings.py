"""Every knob: its unit, its default, and why it has that default. Read once, checked at start."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from .access import ENTRY, check_configured
from .errors import SettingsError
from .prices import Prices

PREFIX = "SANDKEEPER_"
# A provider reads and checks its own; the last marks whatever runs inside a local sandbox.
PROVIDER_PREFIXES = (
    "SANDKEEPER_DOCKER_",
    "SANDKEEPER_KUBERNETES_",
    "SANDKEEPER_LOCAL_",
    "SANDKEEPER_MODAL_",
    "SANDKEEPER_OPENSANDBOX_",
    "SANDKEEPER_SANDBOX",
)
SECRETS = ("DATABASE_URL", "BROKER_URL", "API_TOKENS")
FROM_FILES = (*SECRETS, "PRICES")  # may also come from a file: NAME_FILE
HIDDEN = (*SECRETS, "SPEC")  # a sandbox's environment has keys and passwords too
LONGEST = 315_576_000.0  # ten years in seconds; the tables' CHECKs repeat it


def _explicit_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _json_object(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_explicit_none)]


class Rhythm(Protocol):
    """Durations that have to fit each other, in seconds."""

    @property
    def idle_ttl(self) -> float: ...
    @property
    def never_used_ttl(self) -> float | None: ...
    @property
    def heartbeat(self) -> float: ...
    @property
    def confirm_interval(self) -> float: ...
    @property
    def create_deadline(self) -> float: ...
    @property
    def retention(self) -> float: ...


def check_rhythm(rhythm: Rhythm) -> None:
    """Raises ValueError with what is wrong and what would be right."""
    if rhythm.heartbeat > rhythm.confirm_interval / 2:
        raise ValueError(
            f"HEARTBEAT {rhythm.heartbeat:g} is more than half of CONFIRM_INTERVAL "
            f"{rhythm.confirm_interval:g}: a live turn could miss the look between notice and "
            f"end; set it to {rhythm.confirm_interval / 2:g} or less"
        )
    if rhythm.confirm_interval > rhythm.idle_ttl:
        raise ValueError(
            f"CONFIRM_INTERVAL {rhythm.confirm_interval:g} is longer than IDLE_TTL "
            f"{rhythm.idle_ttl:g}: set it to {rhythm.idle_ttl:g} or less"
        )
    if rhythm.never_used_ttl is not None and rhythm.never_used_ttl < rhythm.confirm_interval:
        raise ValueError(
            f"NEVER_USED_TTL {rhythm.never_used_ttl:g} is shorter than CONFIRM_INTERVAL "
            f"{rhythm.confirm_interval:g}: set it to {rhythm.confirm_interval:g} or more"
        )
    if rhythm.retention < 2 * rhythm.create_deadline:
        raise ValueError(
            f"RETENTION {rhythm.retention:g} is less than twice CREATE_DEADLINE "
            f"{rhythm.create_deadline:g}: a create that lands late would not find its row; set "
            f"it to {2 * rhythm.create_deadline:g} or more"
        )


class Settings(BaseModel):
    """
    The settings of one installation. Durations are seconds and may be fractions. Fields without
    a default of their own are derived from the others when they are not set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: Text = Field(
        "sqlite:///sandkeeper.db",
        repr=False,
        description="Where sessions live: a SQLAlchemy URL, `sqlite:///…` or `postgresql://…`. "
        "SQLite is for one host and a few processes; PostgreSQL needs "
        "`pip install 'sandkeeper[postgresql]'`.",
    )
    broker_url: Text = Field(
        "sandkeeper+filesystem:///.sandkeeper/broker",
        repr=False,
        description="The Celery broker: `amqp://…`, `redis://…`, or a folder shared by the "
        "processes of one host. It may lose everything: rows are the truth, messages a doorbell.",
    )
    provider: Text = Field(
        "local",
        description="Who runs sandboxes: a name from the entry points `sandkeeper.providers`, or "
        "`module:Class`. Several with commas: new sandboxes are made by the first, and those that "
        "the others still have are looked after.",
    )
    spec: Annotated[dict[str, Any], BeforeValidator(_json_object)] = Field(
        default_factory=dict,
        repr=False,
        description="What a sandbox runs when open() is not told: a JSON object with `image`, "
        "`command`, `env` and `options`. Each provider has a default of its own.",
    )
    installation: Annotated[str | None, Field(pattern=r"^[a-z0-9]{8}$")] = Field(
        None,
        description="Eight characters of a-z and 0-9 that are on every label. Generated once and "
        "kept in the database; when set, it must be the one that the database has.",
    )
    idle_ttl: Seconds = Field(
        1800.0, description="A session without activity for this long is ended (seconds)."
    )
    max_age: OptionalSeconds = Field(
        None,
        description="A sandbox is never older than this (seconds), or `none`. Turns that are "
        "open then have reached their hard ceiling.",
    )
    max_turn: Seconds = Field(
        21600.0,
        description="The hard ceiling of one turn (seconds): a wedged turn whose heartbeats go on "
        "does not keep a sandbox for ever.",
    )
    never_used_ttl: OptionalSeconds = Field(
        None,
        description="A session that never had a turn is ended after this long (seconds), where it "
        "is shorter than IDLE_TTL; or `none`.",
    )
    heartbeat: Seconds = Field(
        15.0,
        description="How often open turns are kept alive (seconds). At most half of "
        "CONFIRM_INTERVAL, so that a live turn beats between notice and end; lowered to that "
        "when not set.",
    )
    sweep_interval: Seconds = Field(
        60.0, description="How often beat enqueues `reap_idle_sessions` (seconds)."
    )
    confirm_interval: Seconds = Field(
        60.0,
        description="How long after its notice a session may be ended (seconds). SWEEP_INTERVAL, "
        "or IDLE_TTL if that is shorter, when not set.",
    )
    create_deadline: Seconds = Field(
        300.0,
        description="How long a create may take, with its retries, before the sandbox is closed "
        "(seconds).",
    )
    claim_ttl: Seconds = Field(
        120.0,
        description="How long a worker may hold one teardown before another may take it (seconds).",
    )
    publish_lease: Seconds = Field(
        60.0,
        description="How long the sweep waits for a published teardown to be claimed before it "
        "publishes it again (seconds). SWEEP_INTERVAL when not set.",
    )
    retry_base: Seconds = Field(
        5.0, description="The first pause after a failed teardown (seconds); it doubles, jittered."
    )
    retry_max: Seconds = Field(
        300.0, description="The longest pause between attempts before quarantine (seconds)."
    )
    quarantine_after: int = Field(
        8, ge=1, description="After this many failed attempts a teardown is shown as quarantined."
    )
    quarantine_retry: Seconds = Field(
        900.0, description="The pause between the attempts of a quarantined teardown (seconds)."
    )
    retention: Seconds = Field(
        2592000.0,
        description="How long ended sessions are kept after their last sandbox is gone (seconds). "
        "At least twice CREATE_DEADLINE: a create that lands late still finds its row.",
    )
    purge_interval: Seconds = Field(
        3600.0, description="How often beat enqueues `purge_ended_sessions` (seconds)."
    )
    reconcile_interval: Seconds = Field(
        300.0,
        description="How often beat enqueues `reconcile_sandboxes`, which compares the provider "
        "with the database (seconds).",
    )
    orphan_grace: Seconds = Field(
        600.0,
        description="How long a sandbox that no row explains is watched before it is torn down "
        "(seconds). It has to be seen in two passes as well.",
    )
    breaker_min: int = Field(
        25,
        ge=1,
        description="A sweep that would end more sessions than this, or a reconcile that would "
        "tear down more rowless sandboxes, asks an operator first, if it is also more than "
        "BREAKER_RATIO.",
    )
    breaker_ratio: float = Field(
        0.2,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="The same as a share of all active sessions, or of all listed sandboxes; 1 "
        "never asks.",
    )
    late_after: Seconds = Field(
        180.0,
        description="A sweep whose pulse is older than this is late (seconds): API processes say "
        "so, and sweep in its place. Three times SWEEP_INTERVAL when not set.",
    )
    longest_pin: Seconds = Field(
        604800.0,
        description="The longest that a pin may keep a session (seconds). Pins are forgotten, and "
        "a sandbox costs money: who wants it for longer has to say so again.",
    )
    backstop: Annotated[
        Annotated[float, Field(ge=3, le=1000, allow_inf_nan=False)] | None,
        BeforeValidator(_explicit_none),
    ] = Field(
        4.0,
        description="The provider's own TTL, as a multiple of the session's idle TTL: when all of "
        "Sandkeeper is dead, sandboxes still die. Heartbeats extend it. `none` sets no TTL.",
    )
    batch: int = Field(
        500, ge=1, le=10_000, description="How many rows one transaction of the sweep moves."
    )
    in_flight: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="How many teardowns of one provider may be published and not done. A backlog "
        "waits in the database, where tenants take turns, and not in the broker's queue; workers "
        "fetch more as they go. More than all workers can do at a time, and less than they do "
        "between two sweeps.",
    )
    provider_concurrency: Annotated[
        Annotated[int, Field(ge=1, le=10_000)] | None, BeforeValidator(_explicit_none)
    ] = Field(
        None,
        description="How many teardowns may call one provider at a time, all workers of the "
        "installation together, or `none`. Creates are not counted: what the provider allows "
        "beyond it is theirs.",
    )
    queue_prefix: str = Field(
        "sandkeeper",
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="The first part of the queues' names: installations can share a broker.",
    )
    log_format: str = Field(
        "console", pattern="^(console|json)$", description="`console` for people, `json` for logs."
    )
    api_tokens: Annotated[Text, AfterValidator(check_configured)] | None = Field(
        None,
        repr=False,
        description=f"Bearer tokens of the HTTP API: `{ENTRY}`, several with spaces or in lines. "
        "Besides those that `sandkeeper tokens create` makes.",
    )

    prices: Annotated[Prices, BeforeValidator(_json_object)] | None = Field(
        None,
        description="What an hour of a sandbox costs you, for `sandkeeper savings`: a JSON object "
        'such as `{"currency": "EUR", "default": 0.1, "providers": {"e2b": 0.08}}`. Without it '
        "savings are told in hours.",
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        Settings from environment variables with the prefix SANDKEEPER_. Raises SettingsError
        that names the variable, its value and what is wrong; unknown names are refused, because a
        misspelt limit would otherwise be a limit that nobody enforces.
        """
        values = _read(environ)
        known = {name.upper() for name in cls.model_fields}
        unknown = sorted(name for name in values if name not in known)
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
            raise SettingsError(
                f"{PREFIX}{unknown[0]} is not a setting: {hint}known are {', '.join(sorted(known))}"
            )
        try:
            return cls.model_validate({name.lower(): value for name, value in values.items()})
        except ValidationError as error:
            raise SettingsError(_explained(error, values)) from error

    @property
    def provider_names(self) -> list[str]:
        """The first is where new sandboxes are made."""
        return [name for name in (part.strip() for part in self.provider.split(",")) if name]

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: dict[str, Any]) -> dict[str, Any]:
        derived = dict(values)
        sweep = _number(values.get("sweep_interval"), 60.0)
        confirm = min(sweep, _number(values.get("idle_ttl"), 1800.0))
        derived.setdefault("confirm_interval", confirm)
        derived.setdefault("publish_lease", sweep)
        derived.setdefault("late_after", 3 * sweep)
        derived.setdefault(
            "heartbeat", min(15.0, _number(derived["confirm_interval"], confirm) / 2)
        )
        return derived

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.provider_names:
            raise ValueError(f"PROVIDER {self.provider!r} names no provider: set it to local")
        check_rhythm(self)
        if self.late_after <= self.sweep_interval:
            raise ValueError(
                f"LATE_AFTER {self.late_after:g} is not longer than SWEEP_INTERVAL "
                f"{self.sweep_interval:g}: every sweep would be late; set it to "
                f"{3 * self.sweep_interval:g}"
            )
        return self


def _read(environ: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(PROVIDER_PREFIXES):
            continue
        name = variable.removeprefix(PREFIX)
        if name.removesuffix("_FILE") in FROM_FILES and name.endswith("_FILE"):
            if variable.removesuffix("_FILE") in environ:
                raise SettingsError(
                    f"{variable} and {variable.removesuffix('_FILE')} are both set: keep one"
                )
            name, value = name.removesuffix("_FILE"), _file(variable, value)
        values[name] = value
    return values


def _file(variable: str, path: str) -> str:
    try:
        content = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{variable}={path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{variable}={path}: cannot read it (it is not UTF-8)") from error
    if not content:
        raise SettingsError(f"{variable}={path}: the file is empty")
    return content


def _number(value: object, default: float) -> float:
    """A best guess for what is derived from it; validation itself comes after."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return default


def _explained(error: ValidationError, given: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            if str(problem["loc"][0]).upper() not in given:
                continue  # derived from a value that is complained of already
            name = f"{PREFIX}{str(problem['loc'][0]).upper()}"
            within = "".join(f".{part}" for part in problem["loc"][1:])
            shown = "(hidden)" if name.removeprefix(PREFIX) in HIDDEN else repr(problem["input"])
            lines.append(f"{name}{within}={shown}: {message}")
        else:
            lines.append(PREFIX + message)
    return "; ".join(lines)
