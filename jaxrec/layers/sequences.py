"""A history as a value: which of the batch's rows stand where, and not one copy of a row a step.

The histories of a batch hold the same rows again and again; a thousand steps of five hundred
examples are a few thousand rows. ``RowSequence`` keeps the rows once and says by number which
stands where, so whatever is a function of a row (its fingerprint, say) is computed once a row, and
what is picked from a history is gathered alone, and its gradient is the picked rows' alone.

One history may meet many candidates, as in serving. It is then kept once, as one sequence, and
layers broadcast it.

*Source*: ours; ETA (arXiv 2108.04468) keeps fingerprints in the embedding table to the same end.
*Read next*: jaxrec/layers/attention.py.
"""

from __future__ import annotations

import dataclasses

import chex
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class RowSequence:
  """One sequence an example, the oldest step first; or one that B examples share.

  Attributes:
    rows: f32[U, D]: rows, in any order.
    places: i32[B, L], or [1, L] if shared: of each step its row; U or more, which reads as zeros,
      where there is none.
    mask: bool[B, L], or [1, L]: True where there is a step: steps come first, padding last.
    words: u32[U, W]: fingerprints of ``rows`` where the table keeps them, or None. Whoever changes
      ``rows`` sets them to None.
  """

  rows: jax.Array
  places: jax.Array
  mask: jax.Array
  words: jax.Array | None = None

  @property
  def max_length(self) -> int:
    """L."""
    return self.places.shape[1]

  def embeddings(self) -> jax.Array:
    """f32[B, L, D], or [1, L, D]: the sequence spelt out, with zeros where there is no step."""
    places = jnp.where(self.mask, self.places, self.rows.shape[0])
    return self.rows.at[places].get(mode="fill", fill_value=0)

  def take(self, steps: jax.Array, is_found: jax.Array) -> RowSequence:
    """The steps i32[B, K] of each sequence, or of the one, in that order; none where
    ``is_found: bool[B, K]`` is False.
    """
    chex.assert_equal_shape([steps, is_found])
    places = jnp.take_along_axis(self.places, steps, axis=1)
    places = jnp.where(is_found, places, self.rows.shape[0])
    is_found &= jnp.take_along_axis(self.mask, steps, axis=1)
    return dataclasses.replace(self, places=places, mask=is_found)

  def latest(self, k: int) -> RowSequence:
    """The last k steps of each sequence, as [B, min(k, L)], or of the one."""
    k = min(k, self.max_length)
    lengths = jnp.sum(self.mask, axis=1, dtype=jnp.int32)
    steps = jnp.maximum(lengths - k, 0)[:, None] + jnp.arange(k, dtype=jnp.int32)
    is_there = steps < lengths[:, None]
    return self.take(jnp.minimum(steps, self.max_length - 1), is_there)


def of_embeddings(embeddings: jax.Array, mask: jax.Array) -> RowSequence:
  """Sequences f32[B, L, D] that are spelt out already, with their mask bool[B, L]."""
  chex.assert_rank(embeddings, 3)
  chex.assert_shape(mask, embeddings.shape[:2])
  batch_size, length, dim = embeddings.shape
  places = jnp.arange(batch_size * length, dtype=jnp.int32).reshape(batch_size, length)
  places = jnp.where(mask, places, batch_size * length)
  return RowSequence(embeddings.reshape(-1, dim), places, mask)
