"""Target attention: what of a history matters to this candidate.

The candidate asks, each step of the history answers by how well it fits, and the answers are
averaged by it. With one question a sequence, keys and values need no arrays of their own: a head's
key projection is folded into its question and its value projection is applied to the average, so
the cost is that of reading the history once a head, and not of projecting it. A history may be one
for all candidates (``RowSequence``); it is then not copied for each.

    score_l = (W_K q) . e_l / sqrt(d) ;  out = W_V (sum_l softmax(score)_l e_l)

*Source*: the multi-head target attention of ETA (arXiv 2108.04468, section 3); the activation unit
of DIN (Zhou et al., KDD 2018, section 4.3); counts by kernels of the cosine as in K-NRM (Xiong et
al., SIGIR 2017). The folding is ours; it is the same function.
*Read next*: jaxrec/layers/lsh_attention.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import mlp, sequences

KERNELS = (4.0, 16.0, 64.0)  # sharpness of the counts, at first

AttentionParams = Mapping[str, jax.Array]


def target_attention(
  params: AttentionParams, target: jax.Array, sequence: sequences.RowSequence
) -> jax.Array:
  """f32[B, D_out]: the history as the candidate sees it; zeros where there is none.

  Args:
    params: ``query`` f32[D_t, H, d], ``key`` and ``value`` f32[D, H, d], ``out`` f32[H, d, D_out].
    target: f32[B, D_t].
    sequence: of rows f32[U, D], for each candidate or for all.
  """
  _check_shapes(target, sequence)
  dtype = target.dtype
  query, key, value, out = (params[name].astype(dtype) for name in ("query", "key", "value", "out"))
  asked = jnp.einsum("bt,thd->bhd", target, query) / jnp.sqrt(jnp.asarray(query.shape[-1], dtype))
  asked = jnp.einsum("bhd,nhd->bhn", asked, key)
  steps, axes = _spelt_out(sequence, len(target))
  steps = steps.astype(dtype)
  weights = masked_softmax(jnp.einsum(f"bhn,{axes}->bhl", asked, steps), sequence.mask[:, None])
  seen = jnp.einsum(f"bhl,{axes}->bhn", weights, steps)
  return jnp.einsum("bhd,hdo->bo", jnp.einsum("bhn,nhd->bhd", seen, value), out)


def kernel_counts(
  target: jax.Array, sequence: sequences.RowSequence, sharpness: jax.Array
) -> jax.Array:
  """How many steps are like the candidate, by ever narrower meanings of like: f32[B, K].

      log(1 + sum_l exp(kappa (cos(e_l, target) - 1)))

  A softmax tells what the steps that fit best say, and not how many there are or how well they fit;
  DIN keeps that by not normalising. The same item counts as 1 under any kappa.

  Args:
    target: f32[B, D].
    sequence: of rows f32[U, D].
    sharpness: f32[K], the kappas.
  """
  _check_shapes(target, sequence)
  chex.assert_rank(sharpness, 1)
  rows = _unit(sequence.rows.astype(jnp.float32))
  steps, axes = _spelt_out(dataclasses.replace(sequence, rows=rows), len(target))
  cosines = jnp.einsum(f"{axes},bn->bl", steps, _unit(target.astype(jnp.float32)))
  near = jnp.exp(sharpness * (cosines[..., None] - 1))
  return jnp.log1p(jnp.sum(jnp.where(sequence.mask[..., None], near, 0), axis=1))


def _check_shapes(target: jax.Array, sequence: sequences.RowSequence) -> None:
  """Asserts that there is one sequence for each candidate, or one for all."""
  chex.assert_rank([target, sequence.rows, sequence.places], 2)
  chex.assert_equal_shape([sequence.places, sequence.mask])
  chex.assert_shape(sequence.places, ({1, len(target)}, None))


def _spelt_out(sequence: sequences.RowSequence, batch_size: int) -> tuple[jax.Array, str]:
  """The steps, f32[B, L, D], or f32[L, D] if all share them; and what einsum calls their axes."""
  steps = sequence.embeddings()
  return (steps, "bln") if len(steps) == batch_size else (steps[0], "ln")


def _unit(x: jax.Array) -> jax.Array:
  squares = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.where(squares > 0, squares, 1))  # zeros stay zeros


def masked_softmax(scores: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis where ``mask``; zeros elsewhere, and all zeros where it is empty.

  In float32 whatever the dtype of ``scores``, which is that of the result.
  """
  chex.assert_is_broadcastable(mask.shape, scores.shape)
  wide = scores.astype(jnp.float32)
  # Finite even where nothing is there: where() alone would let NaN into the gradient.
  wide = jnp.where(mask, wide, -1e30)
  grown = jnp.where(
    mask, jnp.exp(wide - jax.lax.stop_gradient(wide.max(-1, keepdims=True, initial=-1e30))), 0
  )
  total = grown.sum(-1, keepdims=True)
  return (grown / jnp.where(total == 0, 1, total)).astype(scores.dtype)


class TargetAttention(nn.Module):
  """Multi-head target attention with its own parameters.

  Attributes:
    num_heads: H.
    head_dim: d; None: the sequence's D / H, rounded up.
  """

  num_heads: int = 2
  head_dim: int | None = None

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, H d]; arguments as ``target_attention``."""
    width, dim = target.shape[-1], sequence.rows.shape[-1]
    heads = self.num_heads
    head_dim = self.head_dim or -(-dim // heads)
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=(1, 2))
    out_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=2)
    params = {
      "query": self.param("query", init, (width, heads, head_dim)),
      "key": self.param("key", init, (dim, heads, head_dim)),
      "value": self.param("value", init, (dim, heads, head_dim)),
      "out": self.param("out", out_init, (heads, head_dim, heads * head_dim)),
    }
    return target_attention(params, target, sequence)


class KernelCounts(nn.Module):
  """``kernel_counts`` whose sharpness is learned.

  Attributes:
    sharpness: at first, one kernel each.
  """

  sharpness: tuple[float, ...] = KERNELS

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, K]."""
    first = jnp.log(jnp.asarray(self.sharpness, jnp.float32))
    logs = self.param("log_sharpness", lambda key, value: value, first)
    return kernel_counts(target, sequence, jnp.exp(logs))


class ActivationUnit(nn.Module):
  """DIN's: each step is weighed by an MLP that sees it and the candidate; the weights are not
  normalised, so that their sum says how strong the interest is.

  Attributes:
    hidden: widths of the MLP's layers before its one output.
  """

  hidden: tuple[int, ...] = (32,)

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, D] of a target f32[B, D] and a sequence of rows of the same width."""
    steps = sequence.embeddings().astype(target.dtype)
    steps = jnp.broadcast_to(steps, (len(target), *steps.shape[1:]))
    asked = jnp.broadcast_to(target[:, None], steps.shape)
    seen = jnp.concatenate([steps, asked, steps - asked, steps * asked], axis=-1)
    unit = mlp.MLP((*self.hidden, 1), activate_last=False, dtype=target.dtype, name="unit")
    return jnp.einsum("bl,bln->bn", unit(seen)[..., 0], steps)  # steps that are not there are 0
