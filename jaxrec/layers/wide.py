"""The wide part of a model: a sum of weights.

A linear model over one-hot ids needs no matrix: the weight of an id is its row, looked up like any
embedding, and the logit is their sum.

*Source*: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016), section 3.1.
*Read next*: jaxrec/models/wide_deep.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxrec.layers import interaction


def wide_logits(weights: Mapping[str, jax.Array], *, num_logits: int | None = None) -> jax.Array:
  """f32[B, T]: the sum of features' weights.

  Args:
    weights: f32[B, T] by feature name, added in the order of ``ordered``.
    num_logits: T; None: as wide as the first.

  Raises:
    ValueError: there are none, or one is not [B, T].
  """
  if not weights:
    raise ValueError("wide part: no weights to add; expected at least one feature")
  total: jax.Array | None = None
  for name, weight in interaction.ordered(weights).items():
    if num_logits is None:
      num_logits = weight.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != num_logits:
      raise ValueError(
        f"wide feature {name!r}: expected weights [B, {num_logits}], one a label, got shape "
        f"{weight.shape}"
      )
    total = weight if total is None else total + weight
  assert total is not None
  return total
