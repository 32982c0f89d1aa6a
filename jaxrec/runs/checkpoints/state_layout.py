"""A state in the two parts that a checkpoint keeps: arrays of rows, and everything else.

*Read next*: jaxrec/runs/checkpoints/restore_rows.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrec import sharding
from jaxrec import tables as tables_lib
from jaxrec.runs.checkpoints import restore_rows
from jaxrec.training import state


def taken_apart(current: state.TrainState) -> tuple[restore_rows.Arrays, dict[str, Any]]:
  """Arrays with an entry a row, by kind and stack; and the rest."""
  kept = current.tables.fingerprints
  rows: restore_rows.Arrays = {"values": dict(current.tables.values)}
  if kept is not None:
    rows["words"] = dict(kept.words)
  for stack, leaves in current.row_state.rows.items():
    for i, leaf in enumerate(leaves):
      rows.setdefault(f"moment_{i}", {})[stack] = leaf
  rest = {name: getattr(current, name) for name in ("step", "params", "opt_state", "rng")}
  rest["row_globals"] = current.row_state.globals
  rest["planes"] = {} if kept is None else dict(kept.planes)
  return rows, rest


def put_together(
  like: state.TrainState, rows: restore_rows.Arrays, rest: dict[str, Any]
) -> state.TrainState:
  """The state of these parts, made as ``like`` is."""
  kept = like.tables.fingerprints
  if kept is not None:
    kept = dataclasses.replace(kept, words=rows["words"], planes=rest["planes"])
  moments = {
    stack: tuple(rows[f"moment_{i}"][stack] for i in range(len(leaves)))
    for stack, leaves in like.row_state.rows.items()
  }
  fields = {name: rest[name] for name in ("step", "params", "opt_state", "rng")}
  return state.TrainState(
    **fields,
    tables=dataclasses.replace(like.tables, values=rows["values"], fingerprints=kept),
    row_state=tables_lib.RowOptState(rows=moments, globals=rest["row_globals"]),
  )


def map_of(current: state.TrainState) -> sharding.RowMap:
  """Where its rows lie."""
  return sharding.row_map_of(current.tables.plan, current.tables.placement)
