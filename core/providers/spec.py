"""What to run, from the JSON that a caller, a setting or a row has."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidSpec
from .base import Spec


def spec_of(fields: Mapping[str, object]) -> Spec:
    """The Spec, or InvalidSpec that names the field that is wrong."""
    if not isinstance(fields, Mapping):
        raise InvalidSpec(f"spec: {fields!r} is not an object")
    known = {"image", "command", "env", "options"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InvalidSpec(f"spec: {unknown[0]!r} is unknown; known are {', '.join(sorted(known))}")
    image, command = fields.get("image"), fields.get("command", ())
    env, options = fields.get("env", {}), fields.get("options", {})
    if not (image is None or isinstance(image, str)):
        raise InvalidSpec(f"spec: image {image!r} is not a string")
    if not isinstance(command, list | tuple) or not all(isinstance(c, str) for c in command):
        raise InvalidSpec(f"spec: command {command!r} is not a list of strings")
    if not isinstance(env, Mapping) or not all(isinstance(v, str) for v in env.values()):
        raise InvalidSpec("spec: env is not an object of strings")
    if not isinstance(options, Mapping):
        raise InvalidSpec(f"spec: options {options!r} is not an object")
    return Spec(image=image, command=tuple(command), env=dict(env), options=dict(options))
