"""Logistic regression: the yardstick.

    logit = b + dense w + sum over features of e_f

with embeddings of width 1, so each id has one weight: linear over dense inputs and one-hot ids. For
T labels embeddings are T wide, and these are T regressions side by side. What a deeper model gains
over this one it gains from interactions.

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
  """A weight for each dense input, one for each id, and a bias; all begin at zero but the ids'.

  Attributes:
    num_logits: T, how many labels it predicts.
  """

  num_logits: int = 1

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Logits of B examples.

    Args:
      dense: f32[B, I]; I may be 0.
      embeddings: f32[B, T] by feature name.

    Returns:
      f32[B], or f32[B, T] for T > 1.

    Raises:
      ValueError: an embedding is not [B, T].
    """
    features = dlrm.pooled_features(dense, embeddings)
    zeros = nn.initializers.zeros_init()
    width = () if self.num_logits == 1 else (self.num_logits,)
    bias = self.param("bias", zeros, width, jnp.float32)
    logits = jnp.broadcast_to(bias, (*dense.shape[:1], *width))
    if dense.shape[1]:  # an array without elements would be no good in a checkpoint
      logits += dense @ self.param("kernel", zeros, (*dense.shape[1:], *width), jnp.float32)
    for name, embedding in features.items():
      if embedding.shape[1] != self.num_logits:
        raise ValueError(
          f"embedding {name!r}: expected [B, {self.num_logits}], got {embedding.shape}; logistic "
          f"regression has one weight an id and label: set embedding_dim={self.num_logits}"
        )
      logits += embedding.reshape(logits.shape).astype(jnp.float32)
    return logits
