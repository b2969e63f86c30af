"""What API servers do: open a session, run turns on it, keep it, end it; and how they die."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import SandboxState

from . import names, provider
from .checker import Breach, Step
from .promises import of_beginning, of_recording
from .rows import activity, closed, ended_by_caller, is_usable, next_generation
from .setup import Call, Fault, Naive, Setup, faulted
from .state import (
    NOBODY,
    Api,
    At,
    Due,
    Row,
    Session,
    Wire,
    World,
    current,
    with_api,
    with_key,
    with_row,
    with_session,
)


def steps(world: World, setup: Setup) -> Iterator[Step[World]]:
    """The wishes of callers, and what each thread does next."""
    resting = [number for number, api in enumerate(world.apis) if api.at is At.REST]
    if resting and world.calls:  # threads at rest are alike: let the first one be called
        yield from _called(world._replace(calls=world.calls - 1), setup, resting[0])
    for number, api in enumerate(world.apis):
        if api.at is At.ASKING:
            yield from _asking(world, setup, number, api)
        elif api.at is At.MADE:
            yield from _made(world, setup, number, api)
        elif api.at is At.TURN:
            yield from _in_turn(world, setup, number, api)
        elif api.at is At.CLEANING:
            after, breaches = provider.destroy(_at_rest(world, number), (api.box,))
            yield Step("destroys what it made", _of(number), after, breaches=breaches)
        if api.at is not At.REST and setup.may(world, Fault.API_CRASH):
            yield _crashed(faulted(world), number)


def _of(number: int) -> str:
    return f"api {number + 1}"


def _at_rest(world: World, number: int) -> World:
    return with_api(world, number, Api())


# What callers wish


def _called(world: World, setup: Setup, number: int) -> Iterator[Step[World]]:
    of = _of(number)
    yield from _opened(world, setup, number)
    session = world.store.session
    if session is None:
        return
    if is_usable(session):
        yield from _begun(world, setup, number)
        if Call.TOUCH in setup.wishes:
            yield Step(names.TOUCH, of, activity(world), fair=False)
        if Call.EXTEND in setup.wishes:
            yield Step(names.EXTEND, of, _extended(world), fair=False)
    if Call.END in setup.wishes and session.is_active:
        yield Step(names.END, of, ended_by_caller(world, setup), fair=False)


def _opened(world: World, setup: Setup, number: int) -> Iterator[Step[World]]:
    """Join what is there, finish what somebody began to create, or begin a generation."""
    session, row = world.store.session, current(world.store)
    if session is not None and session.is_active and row is not None:
        is_expired = row.state is SandboxState.CREATING and row.due is Due.NOW
        if not (session.is_too_old or is_expired):
            after = activity(world)
            if row.state is SandboxState.CREATING:
                after = _asks(after, number, row.key)
            yield Step(names.OPEN, _of(number), after, fair=False)
            return
        world = closed(world, setup)
    if world.keys >= setup.keys:
        return
    key = world.keys + 1
    if Naive.RECORD_AFTER_CREATE in setup.naive:
        after = world._replace(keys=key)
    else:
        after = next_generation(world._replace(keys=key), Row(key))
    yield Step(names.OPEN, _of(number), _asks(after, number, key), fair=False)


def _asks(world: World, number: int, key: int) -> World:
    rows = world.store.rows
    at = next((place for place, row in enumerate(rows, 1) if row.key == key), len(rows) + 1)
    return with_api(world, number, Api(At.ASKING, key, at))


def _begun(world: World, setup: Setup, number: int) -> Iterator[Step[World]]:
    row = current(world.store)
    if row is None or row.state is not SandboxState.RUNNING:
        return
    api = Api(At.TURN, row.key, len(world.store.rows), row.external_id, trusts=True)
    after = with_api(_with_turn(activity(world), number, row.key), number, api)
    breaches = tuple(of_beginning(world, row.external_id))
    yield Step(names.BEGIN, _of(number), after, fair=False, breaches=breaches)


def _with_turn(world: World, number: int, key: int) -> World:
    turns = world.store.turns
    turns = (*turns[:number], key, *turns[number + 1 :])
    return world._replace(store=world.store._replace(turns=turns))


def _extended(world: World) -> World:
    """Acknowledged: from now on the sandbox that it has is promised."""
    row = current(world.store)
    after = with_session(world, is_extended=True, noticed=Session().noticed)
    return after._replace(kept=row.key if row is not None else NOBODY, looked=False)


# Between the intent and the record


def _asking(world: World, setup: Setup, number: int, api: Api) -> Iterator[Step[World]]:
    wire = Wire("create", setup.name(api.key, api.generation), api.key)
    after, box = provider.create(world, setup, wire)
    made = with_api(after, number, api._replace(at=At.MADE, box=box))
    yield Step(names.CREATE, _of(number), made if box else _at_rest(world, number))
    if setup.may(world, Fault.CREATE_LATE):
        later = provider.on_the_wire(faulted(world), wire)
        yield Step(f"{Fault.CREATE_LATE}; it asks again", _of(number), later, fair=False)
        later = _at_rest(later, number)
        yield Step(f"{Fault.CREATE_LATE}; it gives up", _of(number), later, fair=False)
    if setup.may(world, Fault.CREATE_REFUSED):
        after = _at_rest(faulted(world), number)
        row = with_key(world.store.rows, api.key)
        if row is not None and row.state is SandboxState.CREATING:
            after = closed(after, setup)
        yield Step(names.GIVE_UP, _of(number), after, fair=False)


def _made(world: World, setup: Setup, number: int, api: Api) -> Iterator[Step[World]]:
    after, breaches = _recorded(world, setup, api)
    yield Step(names.RECORD, _of(number), _at_rest(after, number), breaches=breaches)
    if setup.may(world, Fault.ANSWER_LOST) and after is not world:
        after = _at_rest(faulted(after), number)
        if Naive.CLEANS_UP_AFTER_ITSELF in setup.naive:
            after = with_api(after, number, api._replace(at=At.CLEANING))
        yield Step(Fault.ANSWER_LOST, _of(number), after, fair=False)


def _recorded(world: World, setup: Setup, api: Api) -> tuple[World, tuple[Breach, ...]]:
    """By compare-and-set on `creating`; whoever lost that changes nothing, and destroys nothing."""
    if Naive.RECORD_AFTER_CREATE in setup.naive:
        session = world.store.session
        if session is not None and session.is_active:
            return world, ()
        world = next_generation(world, Row(api.key))
    row, session = with_key(world.store.rows, api.key), world.store.session
    if row is None or session is None or row.state is not SandboxState.CREATING:
        return world, ()
    running = row._replace(state=SandboxState.RUNNING, due=Due.NEVER, external_id=api.box)
    after = with_row(activity(world) if is_usable(session) else world, running)
    return after, tuple(of_recording(world, api.box, api.key))


# Inside a turn


def _in_turn(world: World, setup: Setup, number: int, api: Api) -> Iterator[Step[World]]:
    of = _of(number)
    if api.is_paused:
        yield Step("wakes up", of, with_api(world, number, api._replace(is_paused=False)))
        return
    if Naive.NO_HEARTBEATS not in setup.naive:
        yield _beaten(world, number, api)
    if not api.is_hung:
        after = activity(world) if _is_live(world, number, api) else world
        yield Step(names.END_TURN, of, _at_rest(_with_turn(after, number, NOBODY), number))
        if setup.may(world, Fault.TURN_HANGS):
            hung = with_api(faulted(world), number, api._replace(is_hung=True))
            yield Step(Fault.TURN_HANGS, of, hung, fair=False)
    if setup.may(world, Fault.HOLDER_PAUSED):
        paused = with_api(faulted(world), number, api._replace(is_paused=True))
        yield Step(Fault.HOLDER_PAUSED, of, paused, fair=False)


def _beaten(world: World, number: int, api: Api) -> Step[World]:
    """Accepted, it is activity; refused, the holder knows that the turn is lost, and lets go."""
    if _is_live(world, number, api):
        beaten = with_api(activity(world), number, api._replace(is_heard=True))
        return Step(names.BEAT, _of(number), beaten, fair=False)
    return Step(f"{names.BEAT}, refused", _of(number), _at_rest(world, number))


def _is_live(world: World, number: int, api: Api) -> bool:
    """A turn that is open, under its ceiling, of this generation, in an active session."""
    store, row = world.store, current(world.store)
    is_current = store.session is not None and store.session.is_active and row is not None
    is_open = store.turns[number] == api.key and not api.is_capped
    return is_current and is_open and row is not None and row.key == api.key


# Killed


def _crashed(world: World, number: int) -> Step[World]:
    """
    Its turn stays open in the store, and nobody beats for it. The same is left when the answer to
    open or begin is lost and the caller goes away; a request on its way is CREATE_LATE.
    """
    return Step(Fault.API_CRASH, _of(number), _at_rest(world, number), fair=False)
