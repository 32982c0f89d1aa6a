"""Training that no longer yields numbers is stopped before anything of it is written.

One infinite gradient turns every parameter into NaN. A checkpoint of that would be resumed from for
ever, so each is preceded by a look at the losses since the last one, at the dense parameters and at
the number of bad rows that the steps have counted as they wrote them: to look through the tables
would cost O(vocabulary).

Read next: jaxrec/runs/divergence/first_nonfinite.py, which names the first such number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import features

ADVICE = (
  "Lower --set optimizer.learning_rate or --set optimizer.table_learning_rate, or clip with --set "
  "optimizer.clip_norm=1, in a new --workdir; the last checkpoint is intact"
)


class DivergedError(RuntimeError):
  """The model is no longer made of numbers; nothing of it was saved."""


def check(
  loss_sum: jax.Array, params: Any, step: int, *, num_bad_rows: jax.Array | int = 0
) -> None:
  """Raises DivergedError unless all is finite: the summed loss f32[] (or f32[T]), all parameters,
  and the rows written.
  """
  loss = float(np.sum(loss_sum))
  if int(num_bad_rows):
    raise DivergedError(
      _message(
        step, f"summed loss {loss}; the tables are no longer finite: {num_bad_rows} bad rows"
      )
    )
  if not (math.isfinite(loss) and _is_finite(params)):
    raise DivergedError(_message(step, f"summed loss {loss}"))


@contextlib.contextmanager
def noticed_at(step: int) -> Iterator[None]:
  """Turns what exact metrics say of logits that are not numbers into a DivergedError."""
  try:
    yield
  except features.BadExampleError:
    raise
  except ValueError as error:
    raise DivergedError(_message(step, str(error))) from error


def _message(step: int, what: str) -> str:
  return f"training has diverged by step {step} ({what}). {ADVICE}"


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
