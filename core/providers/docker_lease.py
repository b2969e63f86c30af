"""
A container that ends by itself: the engine has no TTL, so its first process looks at a date.

It guards against our forgetting, not against what runs inside, which could move the date.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

FOLDER = "/run/sandkeeper"
TMPFS = "rw,noexec,nosuid,nodev,mode=755,size=64k"
LABEL = "sandkeeper.self-lease"  # not one of those that make a sandbox ours
_FILE = f"{FOLDER}/until"
_OVER = f"{FOLDER}/over"

# Runs as the first process, with the TTL in seconds and the command as arguments. The engine's own
# clock is read, never ours: they may be on two machines. It says that it is over before it looks
# for the last time, and who extends looks for that word after the date is written: one of the two
# sees the other, and no container ends that was just promised to live.
_SUPERVISE = f"""
echo $(($(date +%s) + $0)) > {_FILE} || exit 125
"$@" &
while kill -0 $! 2>/dev/null; do
    if [ "$(date +%s)" -lt "$(cat {_FILE})" ]; then sleep 1; continue; fi
    echo > {_OVER}
    [ "$(date +%s)" -lt "$(cat {_FILE})" ] || break
    rm {_OVER}
done
"""
_EXTEND = f"""
until=$(($(date +%s) + $0))
echo $until > {_FILE}.new && mv {_FILE}.new {_FILE} && [ ! -e {_OVER} ] && echo $until
"""


def supervised(command: Sequence[str], ttl: float) -> list[str]:
    """The command of a container that lives `ttl` seconds unless it is extended."""
    return ["/bin/sh", "-c", _SUPERVISE, str(math.ceil(ttl)), *command]


def extend(ttl: float) -> list[str]:
    """What is run in it to let it live `ttl` seconds from now; it prints until when."""
    return ["/bin/sh", "-c", _EXTEND, str(math.ceil(ttl))]


def look() -> list[str]:
    """What is run in it to print until when it lives."""
    return ["/bin/cat", _FILE]
