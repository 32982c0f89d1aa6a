"""Smaller tables for the same ids: quotient-remainder and mixed dimensions.

Quotient-remainder: an id i is the pair (i div c, i mod c), looked up in two tables of ceil(V / c)
and c rows and merged into one vector. Ids still have vectors of their own, V rows shrink c-fold,
and the price is that c ids share a quotient row.

Mixed dimensions: rows that are looked up rarely get fewer numbers, and a projection (which the
models make) brings each embedding back to the common width.

Both change specs and ids, not tables: the tables never know.

*Source*: quotient-remainder: Shi et al. 2019 (arXiv:1909.02107). Mixed dimensions: Ginart et al.
2019 (arXiv:1909.11810). Both as in DLRM's reference code; differences are named below.
*Read next*: jaxrec/models/dlrm.py.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import config
from jaxrec.layers import interaction

OPERATIONS = ("mult", "add", "concat")
QUOTIENT, REMAINDER = "/quotient", "/remainder"


def quotient_remainder(
  feature: config.FeatureConfig,
  *,
  num_collisions: int = 4,
  threshold: int = 200,
  operation: str = "mult",
) -> tuple[config.FeatureConfig, ...]:
  """The two features that stand for ``feature``: ``<name>/quotient`` and ``<name>/remainder``.

  Give the first the quotients and the second the remainders of ``split_ids``, and join their
  embeddings by ``merge_quotient_remainder`` before the model.

  Tables of at most ``threshold`` rows are left whole, and so are those that the two parts would
  not be smaller than: the result is then ``(feature,)``. With
  ``concat`` each part is half of ``embedding_dim`` wide, so that the merged vector has the
  feature's own width; the reference code gives each part the full width and doubles the result.

  First values: an initializer without a scale keeps the merged vector in the range of the whole
  table's, ±sqrt(1 / V): each part's own default multiplies to about that under ``mult``; under
  ``add`` and ``concat`` both parts are given that scale. An initializer with a scale is kept as
  it is.

  Raises:
    ValueError: the operation is unknown, ``num_collisions`` is below 2, the width cannot be
      halved, or the feature is an unpooled sequence.

  >>> table = config.TableConfig("item", vocab_size=1001, embedding_dim=16)
  >>> parts = quotient_remainder(config.FeatureConfig("item", table))
  >>> [(part.name, part.table.vocab_size) for part in parts]
  [('item/quotient', 251), ('item/remainder', 4)]
  """
  table, where = feature.table, f"quotient_remainder of feature {feature.name!r}"
  _check_operation(operation, where)
  if num_collisions < 2:
    raise ValueError(f"{where}: num_collisions must be >= 2, got {num_collisions}")
  if table.vocab_size <= threshold:
    return (feature,)
  if feature.combiner == "none":
    raise ValueError(f"{where}: needs a combiner of sum, mean or sqrtn, got 'none'")
  embedding_dim, initializer = table.embedding_dim, table.initializer
  if operation == "concat":
    if embedding_dim % 2:
      raise ValueError(
        f"{where}: concat halves the width, so embedding_dim must be even, got {embedding_dim}"
      )
    embedding_dim //= 2
  if operation != "mult" and initializer.scale is None:
    initializer = dataclasses.replace(initializer, scale=table.vocab_size**-0.5)
  sizes = {QUOTIENT: -(-table.vocab_size // num_collisions), REMAINDER: num_collisions}
  if sum(sizes.values()) * embedding_dim >= table.vocab_size * table.embedding_dim:
    return (feature,)
  return tuple(
    dataclasses.replace(
      feature,
      name=feature.name + part,
      table=dataclasses.replace(
        table,
        name=table.name + part,
        vocab_size=rows,
        embedding_dim=embedding_dim,
        initializer=initializer,
      ),
    )
    for part, rows in sizes.items()
  )


def split_ids(ids: jax.Array, num_collisions: int) -> tuple[jax.Array, jax.Array]:
  """Quotients and remainders of ``ids: i32[...]``; a negative id (none) is -1 in both.

  NumPy in, NumPy out; JAX arrays work under ``jit``.

  >>> split_ids(np.array([9, 4, -1], np.int32), 4)
  (array([ 2,  1, -1], dtype=int32), array([ 1,  0, -1], dtype=int32))
  """
  xp = np if isinstance(ids, np.ndarray) else jnp
  is_absent = ids < 0
  return (
    xp.where(is_absent, -1, ids // num_collisions),
    xp.where(is_absent, -1, ids % num_collisions),
  )


def merge_quotient_remainder(
  embeddings: Mapping[str, jax.Array], operation: str
) -> collections.OrderedDict[str, jax.Array]:
  """Joins each pair of quotient and remainder into ``<name>``, in the quotient's place.

  As in the reference code, *pooled* vectors are joined: under ``mult`` a bag of several ids gets
  the product of two sums and not the sum of products, and weights act in both factors.

  Args:
    embeddings: f32[B, D] by feature name; other features pass through.
    operation: ``mult``, ``add`` or ``concat``, as given to ``quotient_remainder``.

  Raises:
    ValueError: the operation is unknown, or half of a pair is missing.
  """
  _check_operation(operation, "merge_quotient_remainder")
  merged: collections.OrderedDict[str, jax.Array] = collections.OrderedDict()
  for name, embedding in interaction.ordered(embeddings).items():
    stem, slash, part = name.rpartition("/")
    if slash + part not in (QUOTIENT, REMAINDER):
      merged[name] = embedding
      continue
    partner = stem + (REMAINDER if slash + part == QUOTIENT else QUOTIENT)
    if partner not in embeddings:
      raise ValueError(
        f"merge_quotient_remainder: {name!r} came without {partner!r}, only with "
        f"{sorted(embeddings)}; declare both features that quotient_remainder returns"
      )
    if slash + part == QUOTIENT:
      merged[stem] = _merge(embedding, embeddings[partner], operation)
  return merged


def _merge(quotient: jax.Array, remainder: jax.Array, operation: str) -> jax.Array:
  if operation == "concat":
    return jnp.concatenate([quotient, remainder], axis=-1)
  chex.assert_equal_shape([quotient, remainder])
  return quotient * remainder if operation == "mult" else quotient + remainder


def _check_operation(operation: str, where: str) -> None:
  if operation not in OPERATIONS:
    raise ValueError(f"{where}: operation must be one of {OPERATIONS}, got {operation!r}")


def mixed_dims(
  vocab_sizes: Sequence[int],
  *,
  base_dim: int,
  alpha: float = 0.3,
  lookups: Sequence[float] | None = None,
  threshold: int = 200,
  power_of_two: bool = True,
) -> tuple[int, ...]:
  """Embedding widths by a power law of popularity.

      p_f = lookups_f / V_f ;  D_f = base_dim * (p_f / max p)^alpha

  rounded, then to the nearest power of two if below ``base_dim``, and kept in [1, base_dim]. A
  row's popularity p is taken to be the same throughout a table, so big tables get narrow rows.
  Unlike the reference code, the base width goes to the most popular table, not to the smallest
  (the same when ``lookups`` is None), and rounding never exceeds ``base_dim``.

  Args:
    vocab_sizes: V_f, rows of each table.
    base_dim: width of the most popular table, and the model's.
    alpha: temperature: 0 gives all tables ``base_dim``.
    lookups: average ids an example looks up in each table; None: one each.
    threshold: tables of at most so many rows keep ``base_dim``, as they cost nothing.
    power_of_two: whether to round to powers of two; few distinct widths make few stacks.

  Returns:
    One width a table, in the order given.

  >>> mixed_dims([100, 10_000, 1_000_000], base_dim=16)
  (16, 4, 1)
  """
  sizes = np.asarray(vocab_sizes, np.float64)
  popularity = (np.ones_like(sizes) if lookups is None else np.asarray(lookups, np.float64)) / sizes
  widths = np.maximum(1, np.round(base_dim * (popularity / popularity.max()) ** alpha))
  if power_of_two:
    widths = np.where(widths < base_dim, 2 ** np.round(np.log2(widths)), widths)
  widths = np.where(sizes <= threshold, base_dim, np.minimum(widths, base_dim))
  return tuple(int(width) for width in widths)


def memory_ratio(
  before: Sequence[config.FeatureConfig], after: Sequence[config.FeatureConfig]
) -> float:
  """How many times smaller the tables of ``after`` are than those of ``before``, in bytes.

  A table that features share counts once; projections and optimizer moments do not count.
  """
  return _num_bytes(before) / _num_bytes(after)


def _num_bytes(features: Sequence[config.FeatureConfig]) -> int:
  config.check_features(features)
  return sum(table.num_bytes for table in {feature.table for feature in features})
