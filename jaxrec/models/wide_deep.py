"""Wide & Deep: memorise combinations, generalise by embeddings, in one model.

A linear model over ids and crosses knows by heart what it has seen and nothing else; an MLP over
embeddings finds what is alike, and smooths over rare exact pairs. Their logits are added and
trained by one loss, so each learns what the other leaves:

    logit = sum of wide weights + deep([dense, e_1 .. e_F])

Either part may be left out, for comparison.

*Source*: Cheng et al., "Wide & deep learning for recommender systems" (DLRS 2016), section 3.
*Read next*: jaxrec/data/views/wide_features.py, where the wide weights come from.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import mlp, wide
from jaxrec.models import dlrm


class WideDeep(nn.Module):
  """A linear part and an MLP over embeddings.

  Attributes:
    wide: names of the features whose embeddings are weights, [B, T] each.
    deep_mlp: widths of the MLP over the dense inputs and all other embeddings; the last is T, how
      many labels it predicts. Empty: there is no deep part, and dense inputs are not read.
    dtype: of the MLP's computation; parameters are float32 and so are the logits. None: float32.
    dropout: share of the MLP's hidden units set to zero when applied with a ``dropout`` key.
  """

  wide: tuple[str, ...]
  deep_mlp: tuple[int, ...]
  dtype: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Logits of B examples.

    Args:
      dense: f32[B, I]; I may be 0.
      embeddings: by feature name: f32[B, T] of wide features, f32[B, D] of others, of any D.

    Returns:
      f32[B], or f32[B, T] for T > 1.

    Raises:
      ValueError: a shape does not fit, or there is nothing to read; the message names it.
    """
    features = dlrm.pooled_features(dense, embeddings)
    weights = collections.OrderedDict((name, features[name]) for name in self.wide)
    deep = [embedding for name, embedding in features.items() if name not in weights]
    if not self.deep_mlp:
      logits = wide.wide_logits(weights)
      return _squeezed(logits + self.param("bias", nn.initializers.zeros_init(), logits.shape[1:]))
    if not deep and not dense.shape[1]:
      raise ValueError("deep part: nothing to read; expected dense inputs or embeddings")
    dtype = jnp.float32 if self.dtype is None else self.dtype
    inputs = jnp.concatenate([part.astype(dtype) for part in (dense, *deep)], axis=1)
    module = mlp.MLP(
      self.deep_mlp, activate_last=False, dtype=dtype, dropout=self.dropout, name="deep"
    )
    logits = module(inputs).astype(jnp.float32)
    if weights:
      logits += wide.wide_logits(weights, num_logits=self.deep_mlp[-1])
    return _squeezed(logits)


def _squeezed(logits: jax.Array) -> jax.Array:
  return logits[:, 0] if logits.shape[1] == 1 else logits
