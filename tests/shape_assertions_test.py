"""Arrays that would be broadcast or fall out in silence are refused where they are traced."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jaxrec import tables
from jaxrec.layers import attention, compression, cross, hamming_scan, pooling, sequences, simhash
from jaxrec.tables import unique
from jaxrec.training import metrics


def words(*shape):
  return jnp.zeros(shape, jnp.uint32)


def ints(*shape):
  return jnp.zeros(shape, jnp.int32)


def flags(*shape):
  return jnp.ones(shape, bool)


def history(places=(3, 4), mask=(3, 4), rows=(5, 2)):
  return sequences.RowSequence(jnp.ones(rows), ints(*places), flags(*mask))


window = metrics.WindowMetrics.from_batch
WEIGHTS = {name: jnp.ones((2, 1, 2)) for name in ("query", "key", "value")}
WEIGHTS["out"] = jnp.ones((1, 2, 2))
BAD = {
  "a bag id too few": lambda: pooling.pool(jnp.ones((4, 2)), ints(3), 2),
  "one weight for all": lambda: pooling.pool(jnp.ones((4, 2)), ints(4), 2, weights=jnp.ones(1)),
  "bag ids that are floats": lambda: pooling.pool(jnp.ones((4, 2)), jnp.ones(4), 2),
  "rows without a dim": lambda: pooling.pool(jnp.ones(4), ints(4), 2),
  "a sequence's bag id too few": lambda: pooling.to_sequence(jnp.ones((4, 2)), ints(1), ints(3), 2),
  "one example crossed with all": lambda: cross.cross_layer(
    {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, jnp.ones((1, 2)), jnp.ones((5, 2))
  ),
  "a mask for one sequence": lambda: attention.target_attention(
    WEIGHTS, jnp.ones((3, 2)), history(mask=(1, 4))
  ),
  "two histories for three": lambda: attention.target_attention(
    WEIGHTS, jnp.ones((3, 2)), history(places=(2, 4), mask=(2, 4))
  ),
  "counts of two histories for three": lambda: attention.kernel_counts(
    jnp.ones((3, 2)), history(places=(2, 4), mask=(2, 4)), jnp.ones(1)
  ),
  "a mask of other steps": lambda: attention.masked_softmax(jnp.ones((3, 4)), flags(3, 3)),
  "steps without a found flag": lambda: history().take(ints(3, 2), flags(3, 1)),
  "a mask of other length": lambda: sequences.of_embeddings(jnp.ones((2, 3, 4)), flags(2, 1)),
  "words of other lengths": lambda: simhash.hamming(words(3, 2), words(3, 1)),
  "words that are signed": lambda: simhash.hamming(ints(3, 2), ints(3, 2)),
  "one mask for all distances": lambda: simhash.nearest(ints(3, 4), flags(1, 4), 2, num_bits=8),
  "one candidate for all": lambda: hamming_scan.distances(words(5, 2), ints(3, 4), words(1, 2)),
  "ids of two axes": lambda: unique.unique_rows(ints(3, 2), 10),
  "a gradient too few": lambda: tables.coalesce(ints(3), jnp.ones((2, 4)), 10),
  "a label for all": lambda: window(jnp.ones(3), jnp.ones(1), jnp.ones(3)),
  "a weight for all": lambda: window(jnp.ones(3), jnp.ones(3), jnp.ones(1)),
  "halves of other batches": lambda: compression.merge_quotient_remainder(
    {"a/quotient": jnp.ones((3, 2)), "a/remainder": jnp.ones((1, 2))}, "mult"
  ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_shapes_that_do_not_fit_are_refused(what):
  with pytest.raises(AssertionError, match=r"Assertion assert_\w+ failed"):
    BAD[what]()
