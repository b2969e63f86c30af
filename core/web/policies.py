"""Limits by layer, and maintenance windows: what operators look at and set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path

from ..layers import parse_scope
from ..store.policies import PolicyLine
from ..store.windows import Window
from .answers import PolicyAnswer, PolicyList, WindowAnswer, WindowList
from .gate import Admitted
from .requests import Nothing, PolicyRequest, WindowRequest

router = APIRouter(prefix="/v1", tags=["policies"])

ScopeName = Annotated[
    str,
    Path(
        description="`installation`, `tenant:NAME` or `profile:NAME`.",
        examples=["tenant:acme"],
        max_length=80,
    ),
]
WindowName = Annotated[
    str,
    Path(
        description="1 to 64 characters of A-Z a-z 0-9 . _ : -", examples=["upgrade"], max_length=64
    ),
]


@router.get("/policies", response_model=PolicyList)
async def list_policies(caller: Admitted, _: Nothing) -> dict[str, Sequence[PolicyLine]]:
    """List what was set, by layer and name."""
    return {"items": await caller.desk.quick(caller.desk.keeper.store.policies.all)}


@router.get("/policies/{scope}", response_model=PolicyAnswer)
async def get_policy(caller: Admitted, scope: ScopeName, _: Nothing) -> PolicyLine:
    """Look at one policy."""
    return await caller.desk.quick(caller.desk.keeper.store.policies.get, parse_scope(scope))


@router.patch("/policies/{scope}", response_model=PolicyAnswer)
async def set_policy(
    caller: Admitted, scope: ScopeName, wanted: PolicyRequest, _: Nothing
) -> PolicyLine:
    """
    Set the fields that are given, and leave the others as they are; null leaves one to the layer
    below. Open sessions follow with the next sweep.
    """
    given: dict[str, Any] = wanted.model_dump(exclude_unset=True)
    store, of = caller.desk.keeper.store.policies, parse_scope(scope)
    return await caller.desk.quick(store.edit, of, given, actor=caller.actor)


@router.delete("/policies/{scope}", response_model=PolicyAnswer)
async def unset_policy(caller: Admitted, scope: ScopeName, _: Nothing) -> PolicyLine:
    """Leave all of its limits to the layer below."""
    store, of = caller.desk.keeper.store.policies, parse_scope(scope)
    return await caller.desk.quick(store.unset, of, actor=caller.actor)


@router.get("/windows", response_model=WindowList)
async def list_windows(caller: Admitted, _: Nothing) -> dict[str, Sequence[Window]]:
    """List maintenance windows, those that are over as well."""
    return {"items": await caller.desk.quick(caller.desk.keeper.store.windows.all)}


@router.put("/windows/{name}", response_model=WindowAnswer)
async def put_window(
    caller: Admitted, name: WindowName, wanted: WindowRequest, _: Nothing
) -> Window:
    """Add a maintenance window, or change the one of this name. Safe to repeat."""
    return await caller.desk.quick(
        caller.desk.keeper.store.windows.add,
        name,
        wanted.from_,
        wanted.until,
        reason=wanted.reason,
        actor=caller.actor,
    )


@router.delete("/windows/{name}", response_model=WindowAnswer)
async def delete_window(caller: Admitted, name: WindowName, _: Nothing) -> Window:
    """Take it away: what fell due in it is ended by the next sweeps."""
    return await caller.desk.quick(
        caller.desk.keeper.store.windows.remove, name, actor=caller.actor
    )
