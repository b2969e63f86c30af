"""The whole system on this machine, killed before your eyes: `./run demo`."""
