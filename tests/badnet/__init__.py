"""Goodput and fairness over bad cables, beside Linux to Linux over the same.

The cable is a program of its own (`cable.py`) between two ends: it delays, drops, reorders, doubles, damages and holds
up frames, with a seed, so that both subjects meet the same cable. `python -m tests.badnet` prints the table.
"""
