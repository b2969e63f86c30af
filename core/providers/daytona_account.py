"""Which Daytona it is and whose account: its address, our credentials, their organisation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from ..errors import AuthFailed, SettingsError, Unavailable
from .daytona_answers import message
from .rest import Rest, only_looking

API = "https://app.daytona.io/api"
ASKS_WITHIN = 10.0  # seconds


class Account:
    """
    One organisation at one API. A token is sent with its organisation, which the API checks; a key
    does not say whose it is, so that is asked for.
    """

    def __init__(self, rest: Rest, *, given: str | None, known: str | None) -> None:
        self.rest = rest
        self._given = given
        self._known = known

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """
        From Daytona's own variables: DAYTONA_API_KEY, or DAYTONA_JWT_TOKEN with
        DAYTONA_ORGANIZATION_ID; DAYTONA_API_URL is optional. Raises SettingsError; connects to
        nothing.
        """
        key, token = environ.get("DAYTONA_API_KEY"), environ.get("DAYTONA_JWT_TOKEN")
        organization = environ.get("DAYTONA_ORGANIZATION_ID") or None
        if key:
            headers = {"Authorization": f"Bearer {_header('DAYTONA_API_KEY', key)}"}
        elif not token:
            raise SettingsError(
                "DAYTONA_API_KEY is not set: give a key, or DAYTONA_JWT_TOKEN and "
                "DAYTONA_ORGANIZATION_ID"
            )
        elif organization is None:
            raise SettingsError("DAYTONA_ORGANIZATION_ID is not set: DAYTONA_JWT_TOKEN needs it")
        else:
            headers = {
                "Authorization": f"Bearer {_header('DAYTONA_JWT_TOKEN', token)}",
                "X-Daytona-Organization-ID": _header("DAYTONA_ORGANIZATION_ID", organization),
            }
        # The older name is still read by Daytona's SDK: whoever has it must not reach the cloud.
        setting = "DAYTONA_API_URL"
        if not environ.get(setting) and environ.get("DAYTONA_SERVER_URL"):
            setting = "DAYTONA_SERVER_URL"
        rest = Rest(environ.get(setting) or API, headers=headers, setting=setting)
        return cls(rest, given=organization, known=None if key else organization)

    def scope(self) -> str:
        """
        `daytona:` and the organisation, whose id nobody else has, at whatever address. Raises
        AuthFailed when DAYTONA_ORGANIZATION_ID is another's than the key.
        """
        if self._known is None:
            self._known = self._asked_who()
        return f"daytona:{self._known}"

    def _asked_who(self) -> str:
        """
        Of the one call for keys that always names the organisation. It is made for uploads and
        gives a login to them, which is thrown away; where an installation has no store for them,
        nobody can tell but its operator.
        """
        deadline = time.monotonic() + ASKS_WITHIN
        found: object = self._given
        with only_looking():
            answer = self.rest.call(
                "GET", "/object-storage/push-access", doing="ask whose key it is", deadline=deadline
            )
            if answer.is_success:
                found = answer.fields().get("organizationId")
            elif not (answer.status == 503 and "not configured" in message(answer)):
                raise answer.error()
        if not isinstance(found, str) or not found:
            raise Unavailable(
                f"{answer.url} does not say whose key it is: set DAYTONA_ORGANIZATION_ID"
            )
        if self._given not in {None, found}:
            raise AuthFailed(
                f"DAYTONA_ORGANIZATION_ID={self._given}, and DAYTONA_API_KEY is a key of {found}"
            )
        return found


def _header(variable: str, value: str) -> str:
    """What can be sent as it is. The value is not repeated: it may be a secret."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise SettingsError(f"{variable} has spaces or letters that no header takes: copy it again")
    return value
