"""Logistic regression: the yardstick.

    logit = b + dense w + sum over features of e_f

with embeddings of width 1, so each id has one weight: linear over dense inputs and one-hot ids.
What a deeper model gains over this one it gains from interactions.

*Source*: the wide part of Wide & Deep (Cheng et al. 2016), without crosses.
*Read next*: jaxrec/models/dlrm.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.models import dlrm


class LogisticRegression(nn.Module):
  """A weight for each dense input, one for each id, and a bias; all begin at zero but the ids'."""

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Logits of B examples.

    Args:
      dense: f32[B, I]; I may be 0.
      embeddings: f32[B, 1] by feature name.

    Returns:
      f32[B].

    Raises:
      ValueError: an embedding is not [B, 1].
    """
    features = dlrm.pooled_features(dense, embeddings)
    zeros = nn.initializers.zeros_init()
    logits = jnp.broadcast_to(self.param("bias", zeros, (), jnp.float32), dense.shape[:1])
    if dense.shape[1]:  # an array without elements would be no good in a checkpoint
      logits += dense @ self.param("kernel", zeros, dense.shape[1:], jnp.float32)
    for name, embedding in features.items():
      if embedding.shape[1] != 1:
        raise ValueError(
          f"embedding {name!r}: expected [B, 1], got {embedding.shape}; logistic regression has "
          "one weight an id: set embedding_dim=1"
        )
      logits += embedding[:, 0].astype(jnp.float32)
    return logits
