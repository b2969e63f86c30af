"""What a sandbox costs an hour: the operator's own figures, none of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True)]
Provider = Annotated[str, StringConstraints(min_length=1, max_length=200)]
HOUR = 3600.0  # seconds


class Prices(BaseModel):
    """
    A price an hour for each provider, in one currency. `default` is for the providers that are
    not named; without it what they ran is told in hours alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
    default: Price | None = None
    providers: Mapping[Provider, Price] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.default is None and not self.providers:
            raise ValueError("it has no price: give `default`, or one of `providers`, an hour")
        return self

    def of(self, provider: str) -> float | None:
        """The price of an hour; None where nobody gave one."""
        return self.providers.get(provider, self.default)


def money(prices: Prices | None, provider: str, seconds: float) -> float | None:
    """What so many seconds of this provider cost; None where nobody gave a price."""
    price = None if prices is None else prices.of(provider)
    return None if price is None else price * seconds / HOUR
