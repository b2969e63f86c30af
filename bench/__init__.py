"""
What Sandkeeper costs, measured beside its limit or its peers in the same run.

    ./run bench                 everything, with tables; --json adds one line a figure
    ./run bench touch sweep     these
    ./run bench --plot          the peers, and their picture in docs/sweep.svg

A machine is slow today and fast tomorrow: so every figure is a ratio of two things that were
measured in turns, within minutes of each other. docs/performance.md shows the last whole run.
"""
