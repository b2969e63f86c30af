"""What workers and beats write: our events, and nothing when nothing happened."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from celery import signals

from core.settings import Settings

# A line for each message, received and done, every minute, for ever. What a task did is an event.
_CHATTER = ("celery.worker.strategy", "celery.app.trace", "celery.beat")


@signals.after_setup_logger.connect
def set_up(**_: Any) -> None:
    """
    Runs when Celery has set up its own logging. Our lines are shown from INFO on, whatever the
    level of the rest, and stand alone when they are JSON.
    """
    for name in _CHATTER:
        if logging.getLogger().getEffectiveLevel() >= logging.INFO:
            logging.getLogger(name).setLevel(logging.WARNING)
    ours = logging.getLogger("sandkeeper")
    ours.setLevel(min(logging.INFO, logging.getLogger().getEffectiveLevel()))
    if ours.handlers:
        return
    style = Settings.from_env(os.environ).log_format
    handler = logging.StreamHandler(sys.stdout)
    line = "%(message)s" if style == "json" else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(line))
    ours.addHandler(handler)
    ours.propagate = False
