"""A trained run as a function from rows of a table to probabilities.

A run's folder holds all that is needed: config, fitted transforms, checkpoints. New rows pass
through the very function that made the numbers of training (``Transforms.encode``), in chunks of
one shape, so one program is compiled whatever the number of rows, and a row's prediction does not
depend on its neighbours.

Read next: jaxrec/features/transforms.py, jaxrec/runs/saved_transforms.py.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import pyarrow as pa

from jaxrec.data.readers import frames
from jaxrec.data.views import view
from jaxrec.features import transforms
from jaxrec.inputs import batch as batch_lib
from jaxrec.inputs import row_plan
from jaxrec.runs import open_run, saved_transforms
from jaxrec.training import evaluation, state

CHUNK_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Predictor:
  """A model, its parameters and tables, and what makes its inputs of raw rows.

  Attributes:
    model: the model.
    state: parameters and tables.
    transforms: from the columns of a table to features.
    labels: what it predicts, in order.
    step: of the checkpoint.
    convert: from a batch of ``transforms`` to one of the model.
  """

  model: nn.Module
  state: state.TrainState
  transforms: transforms.Transforms
  labels: tuple[str, ...]
  step: int
  convert: Callable[[batch_lib.Batch], batch_lib.Batch] = lambda batch: batch

  def predict(self, rows: Any) -> np.ndarray:
    """Probabilities f32[N], or f32[N, T] of T labels.

    Args:
      rows: an Arrow table, a pandas frame, or a list of records, with the columns that training
        learned from; labels, weight and time are not asked for. A column of records may hold
        values of several types, 7 and "7".

    Raises:
      BadExampleError: a column is missing or holds what cannot be converted.
    """
    table = _as_table(rows)
    learned = self.transforms.schema.columns
    frames.require_once([name for name in table.schema.names if name in learned], "predict")
    found = [self._chunk(table.slice(k, CHUNK_ROWS)) for k in range(0, len(table), CHUNK_ROWS)]
    shape = (0,) if len(self.labels) == 1 else (0, len(self.labels))
    return np.concatenate(found) if found else np.zeros(shape, np.float32)

  def _chunk(self, table: pa.Table) -> np.ndarray:
    num_rows = table.num_rows
    padded = table.take(pa.array(np.minimum(np.arange(CHUNK_ROWS), num_rows - 1)))
    batch = self.convert(self.transforms.batch(padded))
    batch = row_plan.plan_rows(batch, self.state.tables.plan)
    logits = evaluation.predict(self.model, self.state.params, self.state.tables, batch)
    return _sigmoid(np.asarray(logits, np.float32)[:num_rows])


def load(
  workdir: str | os.PathLike[str], *, step: int | None = None, is_best: bool = True
) -> Predictor:
  """The predictor of the run in the folder ``workdir``; its data need not be there any more.

  Args:
    workdir: the run's folder; of a run that was refitted, the refitted model is loaded.
    step: of the checkpoint; None: the best evaluation's, or without ``is_best`` the latest.
    is_best: whether the best is wanted.

  Raises:
    WorkdirError, CheckpointError, ConfigError: it is no run, has no checkpoint, or is damaged.
  """
  if step is None:
    workdir = saved_transforms.final_run(workdir)
  made_by = saved_transforms.load(workdir)
  dataset = saved_transforms.WithoutRows(
    made_by, open_run.embedding_dim(open_run.config_of(workdir), made_by)
  )
  found = open_run.reopen(workdir, step=step, is_best=is_best and step is None, dataset=dataset)
  run = found.run
  convert = functools.partial(view.convert, run.dataset)
  return Predictor(
    run.model, found.state, made_by, tuple(run.spec.labels), found.progress.step, convert
  )


def _as_table(rows: Any) -> pa.Table:
  if isinstance(rows, pa.RecordBatch):
    return pa.Table.from_batches([rows])
  if isinstance(rows, pa.Table):
    return rows
  if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
    return frames.of_records(rows, "predict")
  expected = "an Arrow table, a pandas frame or a list of records"
  return frames.of_frame(rows, "predict", expected)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
  """f32, without overflow."""
  return np.exp(-np.logaddexp(np.float32(0), -logits)).astype(np.float32)
