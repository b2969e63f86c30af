"""The `options` of a spec: what a provider takes besides image, command and environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ..errors import InvalidSpec
from .base import Spec


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


# A list in JSON; strict models take nothing but the tuple that they say.
Listed = BeforeValidator(_listed)


class Options(BaseModel):
    """
    A provider's own, as fields with safe defaults. What it does not know it refuses: a misspelt
    limit must not be none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Raises InvalidSpec, with the name of the option and what it may be."""
        try:
            return cls.model_validate(dict(spec.options))
        except ValidationError as error:
            first: Mapping[str, Any] = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            known = ", ".join(cls.model_fields)
            raise InvalidSpec(
                f"options.{name} {first.get('input')!r}: {first['msg']}; known are {known}"
            ) from error


def check_text(spec: Spec, labels: Mapping[str, str] | None = None) -> None:
    """
    Raises InvalidSpec for what no program can be given: NUL, half of a character, and names of
    variables that are none.
    """
    said = (spec.image or "", *spec.command, *spec.env, *spec.env.values())
    for text in (*said, *(labels or {}).values()):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidSpec(f"{text!r}: give text without NUL and lone surrogates")
    for key in spec.env:
        if not key or "=" in key:
            raise InvalidSpec(f"env {key!r}: a name is not empty and has no `=`")
