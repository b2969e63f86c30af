"""
Fault runs with real processes: clients, workers and beats against a cloud that misbehaves, while
everything is killed, stopped, cut off and wiped. Afterwards a judge reads what they all wrote down.
"""
