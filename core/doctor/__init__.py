"""
What an operator would look at, and what to do about each thing that is wrong. It changes nothing.
The broker and the workers are looked at in tasks/doctor: in here is nothing of Celery.
"""

from __future__ import annotations

from typing import Any, Final

from .clouds import CLOUDS
from .databases import DATABASE, SERVER, SETTINGS
from .doors import DOORS
from .findings import Examination, Finding, Level
from .patient import Patient
from .rounds import bounded, examine, worst
from .tables import CLOCKS, IDENTITY, TABLES
from .work import BLOAT, WORK

__all__ = ["GROUND", "REST", "Examination", "Finding", "Level", "Patient", "bounded", "examine"]
__all__ += ["worst"]

# In the order in which somebody would mend them; the broker and the workers come in between.
GROUND: Final[tuple[Examination[Any], ...]] = (
    SETTINGS,
    DATABASE,
    SERVER,
    TABLES,
    IDENTITY,
    CLOCKS,
)
REST: Final[tuple[Examination[Any], ...]] = (WORK, CLOUDS, DOORS, BLOAT)
