"""Attention over very long histories: find the steps that matter by their bits, then attend.

The k steps whose fingerprints are nearest to the candidate's are found by XOR and popcount, at a
32nd of the memory that their vectors would take; attention over these k is then the ordinary one.
What is found has no gradient: it reaches the rows of the k steps alone. The hyperplanes are drawn
once and never change, so the same state finds the same steps.

*Source*: ETA (Chen et al. 2021, arXiv 2108.04468, section 3); there are k = 48 steps and about 2 D
bits. The paper once says *largest* distance, a slip. Public ports draw new planes in every pass, or
learn them; we do not.
*Read next*: jaxrec/models/history.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec.layers import attention, hamming_scan, sequences, simhash

CONSTANTS = "constants"  # the collection of what is kept with the parameters and never trained


def nearest_steps(
  target: jax.Array,
  sequence: sequences.RowSequence,
  planes: jax.Array,
  k: int,
  *,
  variant: str = "inner_product",
) -> sequences.RowSequence:
  """The k steps of each sequence nearest to its candidate, the nearest first, of equals the latest.

  Args:
    target: f32[B, D].
    sequence: of rows f32[U, D]; each is hashed once, or not at all if the sequence has ``words``. A
      history that all candidates share is not copied for them either.
    planes: f32[D, m].
    k: how many; of a shorter sequence, all.
    variant: of ``simhash.fingerprints``.
  """
  asked = simhash.fingerprints(target, planes, variant=variant)
  of_rows = _words_of(sequence.rows, sequence.words, planes, variant)
  if len(sequence.places) == len(target):
    distances = hamming_scan.distances(of_rows, sequence.places, asked)
  else:  # words that stand there need no kernel on a TPU: see hamming_scan
    of_steps = of_rows.at[sequence.places].get(mode="fill", fill_value=0)
    distances = simhash.hamming(of_steps, asked[:, None])
  mask = jnp.broadcast_to(sequence.mask, distances.shape)
  return sequence.take(*simhash.nearest(distances, mask, k, num_bits=planes.shape[1]))


def _words_of(
  rows: jax.Array, words: jax.Array | None, planes: jax.Array, variant: str
) -> jax.Array:
  """u32[U, W] of rows f32[U, D]: ``words``, if these are known."""
  if words is None:
    return simhash.fingerprints(rows, planes, variant=variant)
  expected = (len(rows), simhash.num_words(planes.shape[1]))
  if words.shape != expected:
    raise ValueError(
      f"fingerprints: expected words u32{list(expected)} of {len(rows)} rows and "
      f"{planes.shape[1]} bits, got {list(words.shape)}; make them with the planes of this search"
    )
  return words


class LSHSearch(nn.Module):
  """``nearest_steps`` with hyperplanes of its own, drawn at ``init`` and kept as constants.

  Attributes:
    k: how many steps.
    num_bits: m; None: twice the rows' width, beyond which the paper sees no gain.
    variant: of ``simhash.fingerprints``.
  """

  k: int = 48
  num_bits: int | None = None
  variant: str = "inner_product"

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> sequences.RowSequence:
    """The steps found, [B, min(k, L)], of a target f32[B, D] and rows of the same width."""
    dim = sequence.rows.shape[-1]
    planes = self.variable(
      CONSTANTS,
      "hyperplanes",
      lambda: simhash.hyperplanes(
        self.make_rng("params"), dim, 2 * dim if self.num_bits is None else self.num_bits
      ),
    )
    return nearest_steps(target, sequence, planes.value, self.k, variant=self.variant)


class LSHAttention(nn.Module):
  """Target attention over the k steps that the candidate's fingerprint finds.

  Attributes:
    k, num_bits, variant: of ``LSHSearch``.
    num_heads, head_dim: of ``TargetAttention``.
  """

  k: int = 48
  num_bits: int | None = None
  num_heads: int = 2
  head_dim: int | None = None
  variant: str = "inner_product"

  @nn.compact
  def __call__(self, target: jax.Array, sequence: sequences.RowSequence) -> jax.Array:
    """f32[B, H d] of a target f32[B, D] and a sequence of rows of the same width."""
    search = LSHSearch(self.k, self.num_bits, self.variant, name="search")
    attend = attention.TargetAttention(self.num_heads, self.head_dim, name="attention")
    return attend(target, search(target, sequence))
