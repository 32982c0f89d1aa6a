"""The control of every comparison with ETA: the same search, by hyperplanes that do not stay.

Public ports of ETA draw new hyperplanes in every pass, of training and of evaluation. Nothing that
a model learns about what its hash finds can then last.

Read next: benchmarks/histories.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrec import layers


class RedrawnSearch(nn.Module):
  """``layers.LSHSearch`` with hyperplanes drawn anew in every pass, from the batch itself.

  Attributes:
    k: how many steps.
    num_bits: m.
  """

  k: int
  num_bits: int

  def __call__(self, target: jax.Array, sequence: layers.RowSequence) -> layers.RowSequence:
    """As ``layers.LSHSearch``."""
    word = jax.lax.bitcast_convert_type(jnp.sum(target), jnp.uint32)
    key = jax.random.fold_in(jax.random.key(0), word)
    planes = layers.hyperplanes(key, target.shape[1], self.num_bits)
    return layers.nearest_steps(target, sequence, planes, self.k)
