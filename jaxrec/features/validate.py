"""Bad examples are found on the host, before they cost a step.

A NaN that reaches the model turns every parameter into NaN some steps later, where nobody can say
why. So each batch is checked as it is read, and the message names the column and the example.

Source: law M10 of the DLRM note: a label of -1 (Criteo's test files) trains to an AUC of 0.5 in
silence.
Read next: jaxrec/data/pipeline.py.
"""

from __future__ import annotations

import numpy as np

from jaxrec.features import batch as batch_lib


class BadExampleError(ValueError):
  """An example that must not be trained on; the message names column, example and value."""


def check_batch(
  batch: batch_lib.Batch, spec: batch_lib.BatchSpec, positions: np.ndarray | None = None
) -> None:
  """Raises BadExampleError unless dense values are finite, labels 0 or 1, and weights finite and >=
  0.

  Args:
    batch: a host batch.
    spec: names of what it should hold.
    positions: i64[B] numbers of its examples, to name them; None: places in the batch.
  """
  dense = np.asarray(batch.dense)
  if dense.ndim != 2 or dense.shape[1] != spec.num_dense:
    raise BadExampleError(f"dense: expected f32[B, {spec.num_dense}], got {list(dense.shape)}")
  is_bad = ~np.isfinite(dense)
  if is_bad.any():
    row, column = np.argwhere(is_bad)[0]
    raise BadExampleError(
      f"dense column {column}{_name(spec.dense_names, column)}: {dense[row, column]} in "
      f"{_example(positions, row)} ({is_bad.sum()} such values in this batch); fill missing values "
      "before training"
    )
  for name in spec.labels:
    if name not in batch.labels:
      raise BadExampleError(f"label {name!r} is missing; the batch has {sorted(batch.labels)}")
    _check(np.asarray(batch.labels[name]), f"label {name!r}", positions, binary=True)
  _check(np.asarray(batch.weights), "weights", positions, binary=False)


def _check(values: np.ndarray, what: str, positions: np.ndarray | None, *, binary: bool) -> None:
  is_good = (values == 0) | (values == 1) if binary else np.isfinite(values) & (values >= 0)
  if not is_good.all():
    row = int(np.argmin(is_good))
    expected = "0 or 1 (is this an unlabeled test file?)" if binary else "a finite weight >= 0"
    raise BadExampleError(
      f"{what}: expected {expected}, got {values[row]} in {_example(positions, row)} "
      f"({np.count_nonzero(~is_good)} such examples in this batch)"
    )


def _example(positions: np.ndarray | None, row: int) -> str:
  return f"row {row} of the batch" if positions is None else f"example {positions[row]}"


def _name(names: tuple[str, ...], column: int) -> str:
  return f" ({names[column]!r})" if column < len(names) else ""
