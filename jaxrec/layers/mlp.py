"""Dense layers, and the multi-layer perceptrons at both ends of a ranking model.

A layer's parameters are a plain dict and its arithmetic a plain function of them; the Flax module
only names and initialises them. So ``apply_mlp(variables["params"], x)`` is ``MLP.apply`` without a
module. Dropout is Flax's own, between the layers; it is on exactly when the module is applied with
a ``dropout`` key (``rngs={"dropout": key}``), so a model needs no flag that says it is trained.

*Source*: DLRM (Naumov et al. 2019) and its reference code, whose initialisation this is: a layer
from n to m units has W ~ N(0, sqrt(2 / (m + n))) and b ~ N(0, sqrt(1 / m)), ReLU after each
layer. The biases are random, unlike most libraries'.
*Read next*: jaxrec/layers/interaction.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes

DenseParams = Mapping[str, jax.Array]


def init_dense(key: jax.Array, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
  """DLRM's first ``kernel`` f32[fan_in, fan_out] and ``bias`` f32[fan_out]."""
  kernel_key, bias_key = jax.random.split(key)
  kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
  bias_init = nn.initializers.normal(fan_out**-0.5)
  return {
    "kernel": kernel_init(kernel_key, (fan_in, fan_out), jnp.float32),
    "bias": bias_init(bias_key, (fan_out,), jnp.float32),
  }


def dense(params: DenseParams, x: jax.Array, *, dtype: Any = None) -> jax.Array:
  """Affine map, x W + b.

  Args:
    params: ``kernel`` f32[n, m] and ``bias`` f32[m].
    x: f32[..., n].
    dtype: of the computation; None promotes the inputs' own.

  Returns:
    [..., m].
  """
  x, kernel, bias = dtypes.promote_dtype(x, params["kernel"], params["bias"], dtype=dtype)
  return x @ kernel + bias


def apply_mlp(
  params: Mapping[str, DenseParams],
  x: jax.Array,
  *,
  activate_last: bool = False,
  dtype: Any = None,
  hidden_fn: Callable[[jax.Array], jax.Array] = lambda hidden: hidden,
  on_layer: Callable[[str, jax.Array], Any] = lambda name, output: None,
) -> jax.Array:
  """Dense layers with ReLU between them, and after the last one too if ``activate_last``.

  Args:
    params: ``layer_0``, ``layer_1``, ... each as ``dense`` takes it.
    x: f32[..., n].
    activate_last: whether ReLU follows the last layer.
    dtype: of the computation; None promotes the inputs' own.
    hidden_fn: applied to what each layer but the last hands on, such as dropout.
    on_layer: called with each layer's name and output, before its ReLU.

  Returns:
    [..., m], m the width of the last layer.
  """
  for i in range(len(params)):
    x = dense(params[f"layer_{i}"], x, dtype=dtype)
    on_layer(f"layer_{i}", x)
    if activate_last or i + 1 < len(params):
      x = nn.relu(x)
    if i + 1 < len(params):
      x = hidden_fn(x)
  return x


class MLP(nn.Module):
  """``apply_mlp`` with its parameters; sows each layer's output into ``intermediates``.

  Attributes:
    features: width of each layer.
    activate_last: whether ReLU follows the last layer.
    dtype: of the computation; parameters are float32. None promotes the inputs' own.
    dropout: share of hidden units set to zero, and the others scaled up, when there is a
      ``dropout`` key. What the last layer yields is left alone.
  """

  features: tuple[int, ...]
  activate_last: bool = False
  dtype: Any = None
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """f32[..., n] -> [..., features[-1]]."""
    params, fan_in = {}, x.shape[-1]
    for i, fan_out in enumerate(self.features):
      params[f"layer_{i}"] = self.param(f"layer_{i}", init_dense, fan_in, fan_out)
      fan_in = fan_out
    return apply_mlp(
      params,
      x,
      activate_last=self.activate_last,
      dtype=self.dtype,
      hidden_fn=nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout")),
      on_layer=functools.partial(self.sow, "intermediates"),
    )
