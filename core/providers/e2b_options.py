"""What provider `e2b` makes of a spec: safe unless somebody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..errors import InvalidSpec
from .base import Spec
from .options import Listed, Options, check_text

DEFAULT_TEMPLATE = "base"  # E2B's own, and what its SDK takes
EVERYWHERE = "0.0.0.0/0"

Host = Annotated[str, Field(pattern=r"^[^\s\x00]{1,253}$")]
Hosts = Annotated[tuple[Host, ...], Listed]


class E2BOptions(Options):
    """The `options` of a spec. What runs in a sandbox is taken to be hostile."""

    internet: bool = False  # whether it may reach anything at all
    allow_out: Hosts = ()  # addresses, CIDRs, domains that it may reach all the same
    deny_out: Hosts = ()  # addresses and CIDRs that it may not reach
    public_traffic: bool = False  # whether its ports answer those who have no traffic token

    def network(self) -> dict[str, Any]:
        """As the API takes it."""
        rules: dict[str, Any] = {"allowPublicTraffic": self.public_traffic}
        denied = list(self.deny_out)
        if self.allow_out:
            rules["allowOut"] = list(self.allow_out)
            if not self.internet and EVERYWHERE not in denied:
                denied.append(EVERYWHERE)  # or a domain in `allowOut` is refused
        if denied:
            rules["denyOut"] = denied
        return rules


def body(spec: Spec, labels: Mapping[str, str], seconds: int) -> dict[str, Any]:
    """
    The body of a create. Retries of it are the same bytes, or E2B takes them for another create.
    Raises InvalidSpec that names what is wrong with the spec; nothing was sent.
    """
    _check(spec)
    options = E2BOptions.of(spec)
    return {
        "templateID": spec.image or DEFAULT_TEMPLATE,
        "timeout": seconds,
        # Where these are left out the project's own defaults count, and those may be "pause": an
        # orphan would then be billed for its disk for ever, and come back at the next request.
        "autoPause": False,
        "autoResume": {"enabled": False},
        "allow_internet_access": options.internet,
        "network": options.network(),
        "metadata": dict(sorted(labels.items())),
        "envVars": dict(sorted(spec.env.items())),
    }


def _check(spec: Spec) -> None:
    if spec.command:
        raise InvalidSpec(
            f"command {list(spec.command)}: E2B starts what the template says; make a template "
            "with this start command, and name it as the image"
        )
    if spec.image == "":
        raise InvalidSpec("image '': give the name or the id of a template, or leave it out")
    check_text(spec)
