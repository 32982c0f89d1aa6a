"""DLRM, the reference ranking model.

Dense numbers go through a bottom MLP to a vector as wide as the embeddings; it and the embeddings
of all features meet in pairwise dot products; a top MLP reads the dense vector and the products.

    x = bottom(dense) ;  T = stack(x, e_1 .. e_F) ;  Z = T T^T, strict lower triangle
    logit = top([x, Z])

Models take embeddings, never tables: where the rows came from is not their business.

*Source*: DLRM (Naumov et al. 2019) and its reference code: ReLU everywhere, after the bottom's last
layer too; the last layer of the top is linear, as the sigmoid is part of the loss. Embeddings of
another width (mixed dimensions) are projected; without dense inputs there is no bottom.
*Read next*: jaxrec/models/dcn.py, then jaxrec/tables/device_table.py.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import interaction, mlp


class DLRM(nn.Module):
  """Dot-product interaction between dense and categorical features.

  Attributes:
    bottom_mlp: widths of the MLP over dense inputs; the last is the embeddings' width D.
    top_mlp: widths of the MLP over the interactions; the last is the number of logits.
    self_interaction: whether a vector also meets itself.
    dtype: of the computation; parameters are float32 and so are the logits. None: float32.
    dropout: share of both MLPs' hidden units set to zero when applied with a ``dropout`` key.
  """

  bottom_mlp: tuple[int, ...]
  top_mlp: tuple[int, ...]
  self_interaction: bool = False
  dtype: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Logits of B examples.

    Args:
      dense: f32[B, I]; I may be 0.
      embeddings: f32[B, D] by feature name, in the order of ``layers.ordered``.

    Returns:
      f32[B], or f32[B, T] if ``top_mlp`` ends in T > 1.

    Raises:
      ValueError: a shape does not fit; the message names it.
    """
    vectors = field_vectors(
      dense, embeddings, bottom_mlp=self.bottom_mlp, dtype=self.dtype, dropout=self.dropout
    )
    pairs = interaction.dot_interaction(
      jnp.stack(vectors, axis=1), self_interaction=self.self_interaction
    )
    self.sow("intermediates", "interactions", pairs)
    has_dense = dense.shape[1] > 0
    meeting = jnp.concatenate([vectors[0], pairs], axis=1) if has_dense else pairs
    return top_logits(meeting, top_mlp=self.top_mlp, dropout=self.dropout)


def field_vectors(
  dense: jax.Array,
  embeddings: Mapping[str, jax.Array],
  *,
  bottom_mlp: tuple[int, ...],
  dtype: Any = None,
  dropout: float = 0.0,
) -> list[jax.Array]:
  """The vectors that interact: x = bottom(dense), unless I = 0, then one a feature; each [B, D].

  Called inside a compact module, which then holds the parameters ``bottom`` and, for a feature
  whose width is not D, ``proj_<feature>``: a matrix without bias, xavier uniform as in the
  reference.
  """
  dtype = jnp.float32 if dtype is None else dtype
  features = pooled_features(dense, embeddings)
  width = _common_width(dense, features, bottom_mlp)
  vectors = []
  if dense.shape[1]:
    bottom = mlp.MLP(bottom_mlp, activate_last=True, dtype=dtype, dropout=dropout, name="bottom")
    vectors.append(bottom(dense))
  for name, embedding in features.items():
    if embedding.shape[1] == width:
      vectors.append(embedding.astype(dtype))
    else:
      init = nn.initializers.xavier_uniform()
      project = nn.Dense(width, use_bias=False, kernel_init=init, dtype=dtype, name=f"proj_{name}")
      vectors.append(project(embedding))
  return vectors


def top_logits(x: jax.Array, *, top_mlp: tuple[int, ...], dropout: float = 0.0) -> jax.Array:
  """``top`` over [B, n], inside a compact module: f32[B], or f32[B, T] if it ends in T > 1."""
  if not top_mlp:
    raise ValueError("top_mlp: expected the widths of its layers, the last 1, got none")
  if x.shape[1] == 0:
    raise ValueError(
      "nothing to interact: without dense inputs at least two embeddings are needed, got one; add "
      "a feature or dense inputs, or take a model without interactions: --model=deep or "
      "--model=wide_deep"
    )
  logits = mlp.MLP(top_mlp, activate_last=False, dtype=x.dtype, dropout=dropout, name="top")(x)
  return (logits[:, 0] if top_mlp[-1] == 1 else logits).astype(jnp.float32)


def pooled_features(
  dense: jax.Array, embeddings: Mapping[str, jax.Array]
) -> collections.OrderedDict[str, jax.Array]:
  """``layers.ordered(embeddings)``, once dense is seen to be [B, I] and each of them [B, D]."""
  if dense.ndim != 2:
    raise ValueError(f"dense: expected [B, I], got shape {dense.shape}")
  features = interaction.ordered(embeddings)
  for name, embedding in features.items():
    shape = getattr(embedding, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != dense.shape[0]:
      raise ValueError(
        f"embedding {name!r}: expected [B, D] with B = {dense.shape[0]}, got "
        f"{shape or type(embedding).__name__}; this model takes one vector an example: pool a "
        "sequence (combiner sum, mean or sqrtn)"
      )
  return features


def _common_width(
  dense: jax.Array, features: Mapping[str, jax.Array], bottom_mlp: tuple[int, ...]
) -> int:
  """D: what the bottom MLP ends in; without one, the widest embedding's width."""
  num_dense = dense.shape[1]
  widths = sorted({embedding.shape[1] for embedding in features.values()})
  if not num_dense and not widths:
    raise ValueError("a model needs dense inputs or embeddings, got neither")
  if num_dense and not bottom_mlp:
    raise ValueError(f"bottom_mlp: expected widths of layers over {num_dense} dense inputs, got ()")
  if bottom_mlp and widths and bottom_mlp[-1] not in widths:
    raise ValueError(
      f"bottom_mlp ends in {bottom_mlp[-1]}, but no embedding is so wide: embedding_dim is "
      f"{', '.join(map(str, widths))} ({', '.join(features)}); make the two equal"
    )
  return bottom_mlp[-1] if bottom_mlp else widths[-1]
