"""A fresh state that goes on from an earlier run's, whose vocabulary was another.

Rows follow their keys (features/remap.py) with all their moments, so FTRL's z and n, or Adagrad's
sums, go where their weight goes; a row with a new key keeps its first value and moments, and keys
that are gone are dropped. Layers and their optimizer's state are taken as they are. What has no
place in the new model is an error: nothing is mapped by guess.

Source: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016), section 4.2.
Read next: jaxrec/training/state.py.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config as config_lib
from jaxrec import tables as tables_lib
from jaxrec.features import remap, transforms
from jaxrec.training import fitted, reopen, setup, state, tabulate, views, widen

_ROWS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Followed:
  """What became of one table's rows.

  Attributes:
    table: its name.
    kept: rows that continue one of the earlier model.
    new: rows whose key it did not have.
    dropped: its rows that none continues.
  """

  table: str
  kept: int
  new: int
  dropped: int


def warm_start(
  current: state.TrainState, run: setup.Run, path: str | os.PathLike[str]
) -> tuple[state.TrainState, list[Followed]]:
  """``current``, fresh for ``run``, with what the model of the run in ``path`` has learned.

  Args:
    current: a fresh state of ``run``; its step and its key are kept.
    run: the new run.
    path: folder of the earlier run; its best checkpoint is taken, of a refitted run the refit's.

  Returns:
    The state, and what became of each table's rows.

  Raises:
    ConfigError: a table, a layer or an optimizer of another shape, or rows without keys; it is
      named.
    WorkdirError, CheckpointError: there is no run, or no checkpoint, in ``path``.
  """
  config_lib.require(
    run.placement is None,
    "warm start: rows are moved on one device; begin with --set sharding.mesh=none, and once there "
    "is a checkpoint go on with any mesh",
  )
  path = fitted.final_run(path)
  made_by = fitted.load(path) if fitted.folder_of(path).is_dir() else None
  dataset = None
  if made_by is not None:
    dataset = fitted.WithoutRows(made_by, reopen.embedding_dim(reopen.config_of(path), made_by))
  earlier = reopen.reopen(path, is_best=True, dataset=dataset)
  _check_settings(earlier.run, run)
  _check_columns(made_by, run)
  _check_same("layer", earlier.state.params, current.params)
  _check_same("optimizer state", earlier.state.opt_state, current.opt_state)
  _check_same("row optimizer state", earlier.state.row_state.globals, current.row_state.globals)
  old_rows = _old_rows(earlier.run, made_by, run)
  tables, row_state, report = _moved(earlier.state, current, old_rows)
  warm = dataclasses.replace(
    current,
    params=earlier.state.params,
    opt_state=earlier.state.opt_state,
    tables=tables,
    row_state=dataclasses.replace(row_state, globals=earlier.state.row_state.globals),
  )
  if warm.tables.fingerprints is not None:  # of the rows as they are now, by the earlier planes
    warm = state.with_fingerprints(warm, run.model)
  return warm, report


def describe(report: list[Followed]) -> list[str]:
  """The report as lines of text."""
  rows = [[one.table, f"{one.kept:,}", f"{one.new:,}", f"{one.dropped:,}"] for one in report]
  return tabulate.aligned([["table", "kept", "new", "dropped"], *rows])


def _check_settings(earlier: setup.Run, run: setup.Run) -> None:
  """Raises ConfigError where arrays of the same shape would mean something else."""
  models = [one.config.model.name for one in (earlier, run)]
  config_lib.require(
    models[0] == models[1],
    f"warm start: the model is {models[0]} there and {models[1]} here; use the same",
  )
  columns = [(one.spec.labels, one.spec.dense_names, _names_of_deep(one)) for one in (earlier, run)]
  whats = ("labels", "dense inputs", "features")
  for what, was, now in zip(whats, *columns, strict=True):
    config_lib.require(
      was == now,
      f"warm start: {what} are {', '.join(was)} there and {', '.join(now)} here; layers read them "
      "by their order: give the new run the same columns in the same order, by --schema",
    )
  for name in ("dense", "table"):
    was, now = (getattr(one.config.optimizer, name) for one in (earlier, run))
    config_lib.require(
      was == now, f"warm start: optimizer.{name} is {was} there and {now} here; use the same"
    )
  config_lib.require(
    run.config.compression.kind == earlier.config.compression.kind == "none",
    "warm start: rows of compressed tables are shared by ids and cannot be followed; leave "
    "compression out",
  )
  schedule = (run.config.optimizer.warmup_steps, run.config.optimizer.decay_steps)
  config_lib.require(
    schedule == (0, 0),
    "warm start: the optimizer's steps are counted on, so a warm-up or decay would not begin anew; "
    "leave optimizer.warmup_steps and optimizer.decay_steps at 0",
  )


def _check_columns(made_by: transforms.Transforms | None, run: setup.Run) -> None:
  """Raises ConfigError where a column's numbers would mean something else."""
  made_now = fitted.of(views.original(run.dataset))
  if made_by is None or made_now is None:
    return
  for name, column in made_now.schema.columns.items():
    before = made_by.schema.columns.get(name, column)
    for field in ("kind", "dense", "combiner"):
      was, now = (getattr(one, field) for one in (before, column))
      config_lib.require(
        was == now,
        f"warm start: column {name!r} has {field} {was!r} there and {now!r} here, so layers would "
        "read other numbers; make the two equal in the schema",
      )


def _names_of_deep(run: setup.Run) -> tuple[str, ...]:
  wide = widen.sources(run.dataset)
  return tuple(f.name for f in run.spec.features if f.table.name not in wide)


def _old_rows(
  earlier: setup.Run, made_by: transforms.Transforms | None, run: setup.Run
) -> dict[str, np.ndarray]:
  """By name of a table of ``run``, the rows of the earlier run's that its rows continue."""
  made_now = fitted.of(views.original(run.dataset))
  if made_now is not None and made_by is not None:
    found = remap.old_rows(made_by, made_now)
  else:  # no vocabularies: an id is its row
    config_lib.require(
      earlier.config.data == run.config.data,
      "warm start: the runs' data differ, and without vocabularies nothing says which id is which; "
      "use the same data settings, or a table of rows",
    )
    found = _same_ids(_tables(earlier), _tables(run))
  sources = widen.sources(run.dataset)
  return {
    name: found[sources.get(name, name)]
    for name in _tables(run)
    if sources.get(name, name) in found
  }


def _same_ids(
  old: Mapping[str, config_lib.TableConfig], new: Mapping[str, config_lib.TableConfig]
) -> dict[str, np.ndarray]:
  found = {}
  for name, table in new.items():
    if name in old:
      config_lib.require(
        old[name].vocab_size == table.vocab_size,
        f"warm start: table {name!r} has {old[name].vocab_size} rows there and {table.vocab_size} "
        "here, and no vocabulary says which is which",
      )
      found[name] = np.arange(table.vocab_size, dtype=np.int32)
  return found


def _tables(run: setup.Run) -> dict[str, config_lib.TableConfig]:
  return {feature.table.name: feature.table for feature in run.spec.features}


def _moved(
  earlier: state.TrainState, current: state.TrainState, old_rows: Mapping[str, np.ndarray]
) -> tuple[tables_lib.DeviceTables, tables_lib.RowOptState, list[Followed]]:
  values, leaves = dict(current.tables.values), dict(current.row_state.rows)
  report = []
  for stack in current.tables.plan.stacks:
    for table, offset in zip(stack.tables, stack.offsets, strict=True):
      place = earlier.tables.plan.place(table.name)
      if place is None or table.name not in old_rows:
        gone = 0 if place is None else place.table.vocab_size
        report.append(Followed(table.name, 0, table.vocab_size, gone))
        continue
      rows = old_rows[table.name]
      _check_table(table, place.table)
      arrays = (values[stack.name], *leaves[stack.name])
      old = place.stack.name
      before = (earlier.tables.values[old], *earlier.row_state.rows[old])
      layouts = (earlier.tables.placement.layout(old), current.tables.placement.layout(stack.name))
      _check_leaves(table.name, layouts, before, arrays)
      moved = _followed(layouts, before, arrays, jnp.asarray(rows), place.offset, offset)
      values[stack.name], leaves[stack.name] = moved[0], moved[1:]
      kept = np.unique(rows[rows >= 0])
      report.append(
        Followed(
          table.name,
          int(np.count_nonzero(rows >= 0)),
          int(np.count_nonzero(rows < 0)),
          place.table.vocab_size - len(kept),
        )
      )
  for name, table in ((t.name, t) for s in earlier.tables.plan.stacks for t in s.tables):
    if current.tables.plan.place(name) is None:
      report.append(Followed(name, 0, 0, table.vocab_size))
  return (
    dataclasses.replace(current.tables, values=values),
    dataclasses.replace(current.row_state, rows=leaves),
    report,
  )


@functools.partial(jax.jit, static_argnums=0)
def _followed(
  layouts: tuple[tables_lib.Layout, tables_lib.Layout],
  before: tuple[jax.Array, ...],
  arrays: tuple[jax.Array, ...],
  rows: jax.Array,
  old_offset: int,
  offset: int,
) -> tuple[jax.Array, ...]:
  """``arrays`` with rows ``offset ..`` taken from ``before`` where ``rows`` names one there.

  Piece by piece, as a row that is read from a line takes a whole line of memory meanwhile.
  """
  old_layout, layout = layouts
  count = min(_ROWS_AT_ONCE, rows.shape[0])
  past_end = jnp.iinfo(jnp.int32).max - jnp.arange(count, dtype=jnp.int32)

  def follow(piece: jax.Array, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    own = piece * count + jnp.arange(count, dtype=jnp.int32)
    old = rows.at[own].get(mode="fill", fill_value=-1)
    places = jnp.where(old >= 0, own + offset, past_end)  # those of new keys are not written
    return tuple(
      layout.write(array, places, old_layout.read(source, old + old_offset))
      for source, array in zip(before, arrays, strict=True)
    )

  return jax.lax.fori_loop(0, -(-rows.shape[0] // count), follow, arrays)


def _check_table(table: config_lib.TableConfig, old: config_lib.TableConfig) -> None:
  for field in ("embedding_dim", "dtype", "optimizer"):
    was, now = getattr(old, field), getattr(table, field)
    config_lib.require(
      was == now,
      f"warm start: table {table.name!r} has {field} {was!r} there and {now!r} here; make the two "
      "equal",
    )


def _check_leaves(
  name: str,
  layouts: tuple[tables_lib.Layout, tables_lib.Layout],
  before: tuple[jax.Array, ...],
  arrays: tuple[jax.Array, ...],
) -> None:
  was, now = (
    [layout.read_range(leaf, 0, 1).shape[1:] for leaf in leaves]
    for layout, leaves in zip(layouts, (before, arrays), strict=True)
  )
  config_lib.require(
    was == now,
    f"warm start: table {name!r}: a row and its moments have shapes {was} there and {now} here; "
    "use the same row optimizer",
  )


def _check_same(what: str, old: Any, new: Any) -> None:
  """Raises ConfigError, naming the first that differs, unless both have the same arrays."""
  was, now = (
    {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for tree in (old, new)
  )
  for name in [*now, *was]:
    shapes = [tree[name].shape if name in tree else "none" for tree in (was, now)]
    config_lib.require(
      shapes[0] == shapes[1],
      f"warm start: {what} {name or '(the whole)'} has shape {shapes[0]} there and {shapes[1]} "
      "here; only rows of tables can be mapped: keep the model, its optimizer and its columns as "
      "they were",
    )
