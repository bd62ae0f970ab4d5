"""Rollouts: what a model thought aloud about a problem, what came of it, and its states before and after.

`keys` names problems, `problems` draws them from data sets, `sources` says how a model's turn is written and
cut, `roll` samples, judges and reads states, `folder` and `shards` keep all of it, `seed_layout` trades it
for one dictionary. `folder` imports no torch, so that a task can read chains without it.
"""
