"""Cross layers of DCN-v2: explicit feature crosses whose degree grows by one a layer.

    x_{l+1} = x_0 * (W_l (V_l x_l) + b_l) + x_l

``*`` is elementwise. V maps down to a small rank and W back, so a layer costs 2 n r and not n^2
parameters. A rank of None keeps one full n x n matrix.

*Source*: DCN V2 (Wang et al. 2021), equations 1 and 2; MLPerf's DLRM-DCNv2: 3 layers, rank 512,
matrices xavier normal, b = 0.
*Read next*: jaxrec/models/dcn.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes

CrossParams = Mapping[str, jax.Array]


def init_cross_layer(key: jax.Array, width: int, rank: int | None) -> dict[str, jax.Array]:
  """Parameters as ``cross_layer`` takes them, for inputs of ``width`` numbers."""
  kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
  bias = jnp.zeros((width,), jnp.float32)
  if rank is None:
    return {"kernel": kernel_init(key, (width, width), jnp.float32), "bias": bias}
  v_key, w_key = jax.random.split(key)
  return {
    "v_kernel": kernel_init(v_key, (width, rank), jnp.float32),
    "w_kernel": kernel_init(w_key, (rank, width), jnp.float32),
    "bias": bias,
  }


def cross_layer(
  params: CrossParams, x0: jax.Array, x: jax.Array, *, dtype: Any = None
) -> jax.Array:
  """x0 * (W (V x) + b) + x.

  Args:
    params: ``v_kernel`` f32[n, r], ``w_kernel`` f32[r, n], ``bias`` f32[n]; or, at full rank,
      ``kernel`` f32[n, n] and ``bias``.
    x0: f32[..., n], the input of the first layer.
    x: f32[..., n], the input of this layer.
    dtype: of the computation; None promotes the inputs' own.

  Returns:
    [..., n].
  """
  chex.assert_equal_shape([x0, x])  # or one example would be crossed with all
  names = ("kernel",) if "kernel" in params else ("v_kernel", "w_kernel")
  x0, x, bias, *kernels = dtypes.promote_dtype(
    x0, x, params["bias"], *(params[name] for name in names), dtype=dtype
  )
  projected = x
  for kernel in kernels:
    projected = projected @ kernel
  return x0 * (projected + bias) + x


def low_rank_cross(
  params: Mapping[str, CrossParams],
  x0: jax.Array,
  *,
  dtype: Any = None,
  on_layer: Callable[[str, jax.Array], Any] = lambda name, output: None,
) -> jax.Array:
  """All cross layers, ``layer_0``, ``layer_1``, ... of ``params``, over x0 f32[..., n].

  ``on_layer`` is called with each layer's name and output.
  """
  x = x0
  for i in range(len(params)):
    x = cross_layer(params[f"layer_{i}"], x0, x, dtype=dtype)
    on_layer(f"layer_{i}", x)
  return x


class LowRankCross(nn.Module):
  """``low_rank_cross`` with its parameters; sows each layer's output into ``intermediates``.

  Attributes:
    num_layers: number of cross layers.
    rank: width of the bottleneck; None for full matrices.
    dtype: of the computation; parameters are float32. None promotes the inputs' own.
  """

  num_layers: int = 3
  rank: int | None = 512
  dtype: Any = None

  @nn.compact
  def __call__(self, x0: jax.Array) -> jax.Array:
    """f32[..., n] -> [..., n]."""
    names = [f"layer_{i}" for i in range(self.num_layers)]
    params = {n: self.param(n, init_cross_layer, x0.shape[-1], self.rank) for n in names}
    sow = functools.partial(self.sow, "intermediates")
    return low_rank_cross(params, x0, dtype=self.dtype, on_layer=sow)
