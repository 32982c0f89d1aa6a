"""From a column of numbers to a dense input, step by step.

Each step is fitted on what the step before it makes of the training values, and is a monotone
function of one number; arithmetic is float64 and elementwise, rounded once to float32 at the end,
so a value comes out the same alone, in a batch and in a column.

Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxrec.features import quantiles


@dataclasses.dataclass(frozen=True)
class Log:
  """sign(x) log(1 + |x|); NaN, a missing value, becomes 0."""

  def __call__(self, values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values))


@dataclasses.dataclass(frozen=True)
class Standardise:
  """(x - mean) / deviation; a column of one value is only centred."""

  mean: float
  deviation: float

  def __call__(self, values: np.ndarray) -> np.ndarray:
    return (values - self.mean) / (self.deviation or 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Cdf:
  """The rank of x, centred, of deviation 1."""

  quantiles: quantiles.Quantiles

  def __call__(self, values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.nan, self.quantiles.cdf(values))


Step = Log | Standardise | Cdf


class _Mapped:
  """``counts`` with ``steps`` taken; iterable as often as ``counts`` is."""

  def __init__(self, counts: quantiles.Counts, steps: Sequence[Step]):
    self._counts, self._steps = counts, steps

  def __iter__(self) -> Any:
    for values, number in self._counts:
      yield apply(self._steps, values), number


def fit(names: Iterable[str], counts: quantiles.Counts) -> tuple[Step, ...]:
  """The steps called ``names``, fitted in order to distinct values and how often each occurs."""
  steps: list[Step] = []
  for name in names:
    mapped = _Mapped(counts, tuple(steps))
    if name == "log":
      steps.append(Log())
    elif name == "standardise":
      steps.append(_standardise(mapped))
    else:
      steps.append(Cdf(quantiles.fit(mapped, num_buckets=1)))
  return tuple(steps)


def apply(steps: Sequence[Step], values: np.ndarray) -> np.ndarray:
  """f64[N] -> f64[N]; NaN stays NaN."""
  for step in steps:
    values = step(values)
  return values


def to_dense(steps: Sequence[Step], values: np.ndarray) -> np.ndarray:
  """f32[N]: the dense input; a missing value (NaN) is 0, which is the middle after any last step
  but ``log``.
  """
  return np.nan_to_num(apply(steps, values), nan=0.0).astype(np.float32)


def to_plain(step: Step) -> list[Any]:
  """A step as JSON takes it."""
  if isinstance(step, Log):
    return ["log"]
  if isinstance(step, Standardise):
    return ["standardise", step.mean, step.deviation]
  return ["cdf", step.quantiles.knots.tolist(), step.quantiles.ranks.tolist()]


def from_plain(found: list[Any]) -> Step:
  """The step that ``to_plain`` wrote."""
  name, *values = found
  if name == "log":
    return Log()
  if name == "standardise":
    return Standardise(*values)
  return Cdf(quantiles.Quantiles(np.zeros(0), np.array(values[0]), np.array(values[1])))


def _standardise(counts: quantiles.Counts) -> Standardise:
  """Mean and deviation by exact sums, so chunks do not change a bit."""
  total = sum(int(number.sum()) for _, number in counts)
  if not total:
    return Standardise(0.0, 1.0)
  mean = math.fsum(x for v, n in counts for x in (v * n).tolist()) / total
  variance = math.fsum(x for v, n in counts for x in ((v - mean) ** 2 * n).tolist()) / total
  return Standardise(mean, math.sqrt(variance))
