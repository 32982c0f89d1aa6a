"""A fresh state that goes on from an earlier run's, whose vocabulary was another.

Rows follow their keys (features/vocabulary_remap.py) with all their moments, so FTRL's z and n, or
Adagrad's sums, go where their weight goes; a row with a new key keeps its first value and moments,
and keys that are gone are dropped. Layers and their optimizer's state are taken as they are. What
has no place in the new model is an error: nothing is mapped by guess.

Source: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016), section 4.2.
Read next: jaxrec/runs/checkpoints/restore_rows.py.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrec import config as config_lib
from jaxrec.data.views import view, wide_features
from jaxrec.features import transforms, vocabulary_remap
from jaxrec.runs import open_run, saved_transforms, text_table
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import state


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
  run: run_lib.Run, path: str | os.PathLike[str]
) -> tuple[state.TrainState, list[Followed]]:
  """A fresh state for ``run``, with what the model of the run in ``path`` has learned.

  On whichever devices: rows are read in pieces by those that hold them now.

  Args:
    run: the new run.
    path: folder of the earlier run; its best checkpoint is taken, of a refitted run the refit's.

  Returns:
    The state, and what became of each table's rows.

  Raises:
    ConfigError: a table, a layer or an optimizer of another shape, or rows without keys; it is
      named.
    WorkdirError, CheckpointError: there is no run, or no checkpoint, in ``path``.
  """
  path = saved_transforms.final_run(path)
  made_by = saved_transforms.load(path) if saved_transforms.folder_of(path).is_dir() else None
  dataset = None
  if made_by is not None:
    dataset = saved_transforms.WithoutRows(
      made_by, open_run.embedding_dim(open_run.config_of(path), made_by)
    )
  with open_run.opened(path, is_best=True, dataset=dataset) as (earlier, checkpoints, step):
    _check_settings(earlier, run)
    _check_columns(made_by, run)
    was, now = earlier.state_shapes(), run.state_shapes()
    _check_same("layer", was.params, now.params)
    _check_same("optimizer state", was.opt_state, now.opt_state)
    _check_same("row optimizer state", was.row_state.globals, now.row_state.globals)
    old_ids = _old_ids(earlier, made_by, run)
    report = _report(earlier, run, old_ids)
    num_labels = len(earlier.spec.labels)
    warm = checkpoints.follow(step, was, run.initial_state(), old_ids, num_labels=num_labels)
  if warm.tables.fingerprints is not None:  # of the rows as they are now, by the earlier planes
    warm = state.with_fingerprints(warm, run.model)
  return warm, report


def describe(report: list[Followed]) -> list[str]:
  """The report as lines of text."""
  rows = [[one.table, f"{one.kept:,}", f"{one.new:,}", f"{one.dropped:,}"] for one in report]
  return text_table.aligned([["table", "kept", "new", "dropped"], *rows])


def _check_settings(earlier: run_lib.Run, run: run_lib.Run) -> None:
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


def _check_columns(made_by: transforms.Transforms | None, run: run_lib.Run) -> None:
  """Raises ConfigError where a column's numbers would mean something else."""
  made_now = saved_transforms.of(view.original(run.dataset))
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


def _names_of_deep(run: run_lib.Run) -> tuple[str, ...]:
  wide = wide_features.sources(run.dataset)
  return tuple(f.name for f in run.spec.features if f.table.name not in wide)


def _old_ids(
  earlier: run_lib.Run, made_by: transforms.Transforms | None, run: run_lib.Run
) -> dict[str, np.ndarray]:
  """By name of a table of both runs, the ids of the earlier run's that its ids continue."""
  made_now = saved_transforms.of(view.original(run.dataset))
  before = _tables(earlier)
  if made_now is not None and made_by is not None:
    found = vocabulary_remap.old_rows(made_by, made_now)
  else:  # no vocabularies: an id is its row
    config_lib.require(
      earlier.config.data == run.config.data,
      "warm start: the runs' data differ, and without vocabularies nothing says which id is which; "
      "use the same data settings, or a table of rows",
    )
    found = _same_ids(before, _tables(run))
  sources = wide_features.sources(run.dataset)
  return {
    name: found[sources.get(name, name)]
    for name in _tables(run)
    if name in before and sources.get(name, name) in found
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


def _tables(run: run_lib.Run) -> dict[str, config_lib.TableConfig]:
  return {feature.table.name: feature.table for feature in run.spec.features}


def _report(
  earlier: run_lib.Run, run: run_lib.Run, old_ids: Mapping[str, np.ndarray]
) -> list[Followed]:
  """What becomes of all tables' rows.

  Raises:
    ConfigError: a table that goes on is of another kind.
  """
  before, report = _tables(earlier), []
  for name, table in _tables(run).items():
    num_before = before[name].vocab_size if name in before else 0
    ids = old_ids.get(name, np.full(table.vocab_size, -1, np.int32))
    if name in old_ids:
      _check_table(table, before[name])
    num_kept, num_used = np.count_nonzero(ids >= 0), len(np.unique(ids[ids >= 0]))
    report.append(
      Followed(name, int(num_kept), table.vocab_size - int(num_kept), num_before - num_used)
    )
  gone = [table for name, table in before.items() if name not in _tables(run)]
  return report + [Followed(table.name, 0, 0, table.vocab_size) for table in gone]


def _check_table(table: config_lib.TableConfig, old: config_lib.TableConfig) -> None:
  for field in ("embedding_dim", "dtype", "optimizer"):
    was, now = getattr(old, field), getattr(table, field)
    config_lib.require(
      was == now,
      f"warm start: table {table.name!r} has {field} {was!r} there and {now!r} here; make the two "
      "equal",
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
