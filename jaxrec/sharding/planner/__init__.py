"""Chooses a layout for each table, by what it costs in time and bytes; no step imports it.

Read next: jaxrec/sharding/planner/planner.py.
"""

from jaxrec.sharding.planner.planner import find_plan

__all__ = ["find_plan"]
