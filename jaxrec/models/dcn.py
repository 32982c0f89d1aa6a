"""DLRM-DCNv2: DLRM with cross layers in place of dot products.

    x_0 = concat(bottom(dense), e_1 .. e_F) ;  logit = top(cross(x_0))

*Source*: MLPerf's training benchmark (mlcommons/training, TorchRec's DLRM_DCN), after DCN V2
(Wang et al. 2021). We differ as in DLRM: embeddings of another width are projected, and dense
inputs may be absent.
*Read next*: jaxrec/models/linear.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import cross
from jaxrec.models import dlrm


class DLRMDCNv2(nn.Module):
  """Low-rank cross layers over all features, then a top MLP.

  Attributes:
    bottom_mlp: widths of the MLP over dense inputs; the last is the embeddings' width D.
    top_mlp: widths of the MLP over the crosses; the last is the number of logits.
    cross_layers: number of cross layers.
    cross_rank: their rank; None for full matrices.
    dtype: of the computation; parameters are float32 and so are the logits. None: float32.
    dropout: share of both MLPs' hidden units set to zero when applied with a ``dropout`` key.
  """

  bottom_mlp: tuple[int, ...]
  top_mlp: tuple[int, ...]
  cross_layers: int = 3
  cross_rank: int | None = 512
  dtype: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, dense: jax.Array, embeddings: Mapping[str, jax.Array]) -> jax.Array:
    """Logits of B examples: arguments, result and errors as ``DLRM``'s."""
    vectors = dlrm.field_vectors(
      dense, embeddings, bottom_mlp=self.bottom_mlp, dtype=self.dtype, dropout=self.dropout
    )
    x0 = jnp.concatenate(vectors, axis=1)
    crosses = cross.LowRankCross(self.cross_layers, self.cross_rank, dtype=x0.dtype, name="cross")(
      x0
    )
    return dlrm.top_logits(crosses, top_mlp=self.top_mlp, dropout=self.dropout)
