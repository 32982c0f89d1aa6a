"""Bad examples are found on the host, before they cost a step.

A NaN that reaches the model turns every parameter into NaN some steps later, where nobody can say
why. So each batch is checked as it is read, and the message names the column and the example.

Source: law M10 of the DLRM note: a label of -1 (Criteo's test files) trains to an AUC of 0.5 in
silence.
Read next: jaxrec/data/pipeline/input_batches.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrec.inputs import batch as batch_lib


class BadExampleError(ValueError):
  """An example that must not be trained on; the message names column, example and value."""


def label_of(batch: batch_lib.Batch, name: str) -> batch_lib.Array:
  """f32[B]: the label of that name; a ValueError names those there are."""
  if name not in batch.labels:
    raise ValueError(f"no label {name!r}; the data has {', '.join(batch.labels)}: set label=")
  return batch.labels[name]


def check_batch(
  batch: batch_lib.Batch, spec: batch_lib.BatchSpec, positions: np.ndarray | None = None
) -> None:
  """Raises BadExampleError unless a batch is what ``spec`` and ``positions`` promise.

  Every part is there, of its shape and dtype; dense values are finite, labels 0 or 1, and weights
  finite and >= 0.

  Args:
    batch: a host batch.
    spec: names of what it should hold.
    positions: i64[B] numbers of the examples asked for; None: as many as there are weights, named
      by their places in the batch.
  """
  size = len(batch.weights) if positions is None else len(positions)
  dense = _array(batch.dense, "dense", np.float32, (size, spec.num_dense))
  is_bad = ~np.isfinite(dense)
  if is_bad.any():
    row, column = np.argwhere(is_bad)[0]
    raise BadExampleError(
      f"dense column {column}{_name(spec.dense_names, column)}: {dense[row, column]} in "
      f"{_example(positions, row)} ({is_bad.sum()} such values in this batch); fill missing values "
      "before training"
    )
  for name, values in _named(batch.labels, spec.labels, "label"):
    values = _array(values, f"label {name!r}", np.float32, (size,))
    _check(values, f"label {name!r}", positions, binary=True)
  for name, values in _named(batch.groups, spec.groups, "group"):
    _array(values, f"group {name!r}", np.int32, (size,))
  weights = _array(batch.weights, "weights", np.float32, (size,))
  _check(weights, "weights", positions, binary=False)


def _named(
  found: Mapping[str, Any], wanted: tuple[str, ...], what: str
) -> Iterator[tuple[str, Any]]:
  for name in wanted:
    if name not in found:
      raise BadExampleError(f"{what} {name!r} is missing; the batch has {sorted(found)}")
    yield name, found[name]


def _array(values: Any, what: str, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
  array = np.asarray(values)
  if array.dtype != dtype or array.shape != shape:
    raise BadExampleError(
      f"{what}: expected {np.dtype(dtype)}{list(shape)} for {shape[0]} examples, got "
      f"{array.dtype}{list(array.shape)}; mend what the data set's read() returns"
    )
  return array


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
