from __future__ import annotations

import collections
import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrec import config
from jaxrec.layers import compression, embedding_bag
from tests.layers import oracles

# Rows of MLPerf's DLRM-DCNv2, as the benchmark lists them.
MLPERF_ROWS = (
  40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209,
  11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip


def feature_of(vocab_size: int, embedding_dim: int = 8, name: str = "item", **kwargs):
  table = config.TableConfig(f"{name}_table", vocab_size, embedding_dim, **kwargs)
  return config.FeatureConfig(name, table)


def compressed(features, **kwargs):
  return [p for f in features for p in compression.quotient_remainder(f, **kwargs)]


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_two_tables_stand_for_one(operation):
  feature = dataclasses.replace(feature_of(1001), ids_per_bag=5, weighted=True, combiner="mean")
  quotient, remainder = compression.quotient_remainder(feature, operation=operation)
  assert (quotient.name, remainder.name) == ("item/quotient", "item/remainder")
  assert (quotient.table.name, remainder.table.name) == (
    "item_table/quotient",
    "item_table/remainder",
  )
  assert (quotient.table.vocab_size, remainder.table.vocab_size) == (251, 4)
  width = 4 if operation == "concat" else 8
  for part in (quotient, remainder):
    assert part.table.embedding_dim == width
    assert (part.ids_per_bag, part.weighted, part.combiner) == (5, True, "mean")


def test_tables_up_to_the_threshold_stay_whole():
  assert compression.quotient_remainder(feature_of(200)) == (feature_of(200),)
  assert len(compression.quotient_remainder(feature_of(201))) == 2
  assert compression.quotient_remainder(feature_of(500), threshold=500) == (feature_of(500),)


@pytest.mark.parametrize("num_collisions", [499, 500, 1000, 50_000])
def test_tables_that_splitting_would_not_shrink_stay_whole(num_collisions):
  whole = compression.quotient_remainder(feature_of(500), num_collisions=num_collisions)
  assert whole == (feature_of(500),)


def test_features_that_share_a_table_share_its_parts():
  table = config.TableConfig("page", 1000, 8)
  features = [config.FeatureConfig(name, table) for name in ("seen", "clicked")]
  parts = compressed(features)
  config.check_features(parts)
  assert {part.table.name for part in parts} == {"page/quotient", "page/remainder"}
  assert compression.memory_ratio(features, parts) == 1000 / 254
  assert compression.memory_ratio(features, features[:1]) == 1  # one table, counted once


def test_merged_vectors_begin_in_the_range_of_the_whole_table():
  def bounds(operation, feature):
    parts = compression.quotient_remainder(feature, operation=operation)
    return [p.table.initializer.scale or p.table.vocab_size**-0.5 for p in parts]

  whole = 1000**-0.5
  assert np.prod(bounds("mult", feature_of(1000))) == pytest.approx(whole)
  assert bounds("add", feature_of(1000)) == [pytest.approx(whole)] * 2
  assert bounds("concat", feature_of(1000)) == [pytest.approx(whole)] * 2
  told = feature_of(1000, initializer=config.Initializer("normal", 0.3))
  for operation in ("mult", "add", "concat"):
    assert bounds(operation, told) == [0.3, 0.3]
    assert compression.quotient_remainder(told)[0].table.initializer.kind == "normal"


@pytest.mark.parametrize(
  ("feature", "kwargs", "message"),
  [
    (feature_of(1000), {"operation": "max"}, "'item'.*one of .*'concat'.*got 'max'"),
    (feature_of(1000), {"num_collisions": 1}, "'item': num_collisions must be >= 2, got 1"),
    (feature_of(1000, 7), {"operation": "concat"}, "'item'.*must be even, got 7"),
    (
      dataclasses.replace(feature_of(1000), combiner="none"),
      {},
      "'item': needs a combiner of sum, mean or sqrtn, got 'none'",
    ),
  ],
)
def test_features_that_cannot_be_split_are_refused(feature, kwargs, message):
  with pytest.raises(ValueError, match=message):
    compression.quotient_remainder(feature, **kwargs)


@hypothesis.given(vocab_size=st.integers(1, 2000), num_collisions=st.integers(2, 50))
def test_every_id_has_a_pair_of_its_own_within_both_tables(vocab_size, num_collisions):
  whole = feature_of(vocab_size)
  parts = compression.quotient_remainder(whole, num_collisions=num_collisions, threshold=0)
  if parts == (whole,):  # just when two tables would hold no fewer rows
    assert -(-vocab_size // num_collisions) + num_collisions >= vocab_size
    return
  quotient, remainder = parts
  ids = np.arange(vocab_size, dtype=np.int32)
  q, r = compression.split_ids(ids, num_collisions)
  assert q.dtype == r.dtype == np.int32
  assert 0 <= q.min() <= q.max() == quotient.table.vocab_size - 1
  assert 0 <= r.min() <= r.max() < remainder.table.vocab_size
  np.testing.assert_array_equal(q * num_collisions + r, ids)


def test_absent_ids_stay_absent_on_the_host_and_inside_jit(strict_promotion):
  ids = np.array([[9, -1], [-1, 4]], np.int32)
  host = compression.split_ids(ids, 4)
  assert all(isinstance(part, np.ndarray) for part in host)
  device = jax.jit(compression.split_ids, static_argnums=1)(ids, 4)
  for parts in (host, device):
    assert parts[0].tolist() == [[2, -1], [-1, 1]]
    assert parts[1].tolist() == [[1, -1], [-1, 0]]
    assert all(part.dtype == np.int32 for part in parts)


def expected_merge(quotients, remainders, ids, operation):
  """Float64: bags of ids, each pooled by sum in both tables, then joined."""
  q = np.array([sum((quotients[i // 4] for i in bag), np.zeros(2)) for bag in ids])
  r = np.array([sum((remainders[i % 4] for i in bag), np.zeros(2)) for bag in ids])
  return {"mult": q * r, "add": q + r, "concat": np.concatenate([q, r], axis=1)}[operation]


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_merged_bags_and_all_gradients_equal_float64_numpy(strict_promotion, operation):
  rng = np.random.default_rng(0)
  tables = tuple(rng.normal(size=(rows, 2)).astype(np.float32) for rows in (5, 4))
  bags, ids = [[17, 3], [], [8, 8]], np.array([[17, 3], [-1, -1], [8, 8]], np.int32)
  factors = rng.normal(size=(3, 4 if operation == "concat" else 2)).astype(np.float32)

  def loss_fn(tables):
    vectors = [
      embedding_bag.embed_bags(table, part)
      for table, part in zip(tables, compression.split_ids(ids, 4), strict=True)
    ]
    embeddings = dict(zip(("item/quotient", "item/remainder"), vectors, strict=True))
    merged = compression.merge_quotient_remainder(embeddings, operation)["item"]
    return jnp.sum(factors * merged), merged

  (_, merged), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(tables)
  oracles.assert_close(merged, expected_merge(*oracles.to_float64(tables), bags, operation))
  expected = oracles.numeric_grad(
    lambda t: float(np.sum(factors * expected_merge(*t, bags, operation))), tables
  )
  oracles.assert_close(grads, expected)


def test_a_merged_pair_takes_the_quotients_place_and_others_pass_through():
  one, two, three = (jnp.full((1, 1), value) for value in (1.0, 2.0, 3.0))
  embeddings = collections.OrderedDict(
    [("b/quotient", two), ("z", one), ("b/remainder", three), ("a/b", one)]
  )
  merged = compression.merge_quotient_remainder(embeddings, "mult")
  assert [(name, float(e[0, 0])) for name, e in merged.items()] == [("b", 6), ("z", 1), ("a/b", 1)]
  merged = compression.merge_quotient_remainder(dict(embeddings), "add")  # sorted, as jit does
  assert [(name, float(e[0, 0])) for name, e in merged.items()] == [("a/b", 1), ("b", 5), ("z", 1)]


@pytest.mark.parametrize("half", ["quotient", "remainder"])
def test_half_a_pair_is_refused_by_name(half):
  missing = {"quotient": "remainder", "remainder": "quotient"}[half]
  with pytest.raises(ValueError, match=f"'b/{half}' came without 'b/{missing}'"):
    compression.merge_quotient_remainder({f"b/{half}": jnp.ones((1, 1))}, "add")


def test_an_unknown_way_to_merge_is_refused():
  with pytest.raises(ValueError, match="merge_quotient_remainder: operation .* got 'dot'"):
    compression.merge_quotient_remainder({}, "dot")


def expected_dims(rows, base_dim, alpha, power_of_two):
  """The reference's power rule with d0, written for one table at a time."""
  dims = []
  for n in rows:
    dim = base_dim * (min(rows) ** alpha) * n**-alpha
    dim = max(1, round(dim))
    dims.append(2 ** round(np.log2(dim)) if power_of_two else dim)
  return tuple(dims)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.6])
def test_widths_follow_the_power_law_of_popularity(alpha, power_of_two):
  dims = compression.mixed_dims(
    MLPERF_ROWS, base_dim=128, alpha=alpha, threshold=0, power_of_two=power_of_two
  )
  assert dims == expected_dims(MLPERF_ROWS, 128, alpha, power_of_two)
  assert dims[MLPERF_ROWS.index(3)] == 128
  assert len(set(dims)) > 2


def test_equal_temperature_gives_every_table_the_base_width():
  assert compression.mixed_dims([10, 1000, 10**7], base_dim=48, alpha=0.0) == (48, 48, 48)


def test_small_tables_keep_the_base_width_and_none_exceeds_it():
  dims = compression.mixed_dims([4, 200, 201, 10**6], base_dim=48, alpha=0.1)
  assert dims[:2] == (48, 48)
  assert dims[2:] == (32, 16)  # 32.4 and 13.8
  assert compression.mixed_dims([4, 5], base_dim=48, alpha=0.1, threshold=0) == (48, 48)  # not 64


def test_the_most_popular_table_keeps_a_base_width_that_is_no_power_of_two():
  assert compression.mixed_dims([300, 10_000, 1_000_000], base_dim=20) == (20, 8, 2)
  assert compression.mixed_dims([300, 10_000], base_dim=20, alpha=0.0) == (20, 20)


def test_tables_looked_up_more_often_get_wider_rows():
  rows = [1000, 1000, 1000]
  assert compression.mixed_dims(rows, base_dim=16, alpha=0.5, lookups=[1, 4, 16]) == (4, 8, 16)


def test_widths_are_plain_ints_that_a_config_takes():
  for width in compression.mixed_dims([1000, 10**6], base_dim=16):
    assert type(width) is int
    feature_of(1000, width)


def test_quotient_remainder_divides_the_memory_by_the_collisions():
  features = [feature_of(rows, 128, name=f"c{i}") for i, rows in enumerate(MLPERF_ROWS)]
  for operation in ("mult", "add"):
    parts = compressed(features, operation=operation)
    rows_after = sum(n if n <= 200 else (n + 3) // 4 + 4 for n in MLPERF_ROWS)
    assert compression.memory_ratio(features, parts) == sum(MLPERF_ROWS) / rows_after
  assert 3.99 < compression.memory_ratio(features, compressed(features)) < 4
  # Halves of the width halve the parts of every table that is split.
  split = [feature_of(10**6)]
  ratio = compression.memory_ratio(split, compressed(split, operation="concat"))
  assert ratio == 10**6 * 8 / ((250_000 + 4) * 4)


def test_mixed_dims_shrink_the_memory_as_the_widths_say():
  features = [feature_of(rows, 128, name=f"c{i}") for i, rows in enumerate(MLPERF_ROWS)]
  dims = compression.mixed_dims(MLPERF_ROWS, base_dim=128)
  shapes = list(zip(MLPERF_ROWS, dims, strict=True))
  narrow = [feature_of(n, d, name=f"c{i}") for i, (n, d) in enumerate(shapes)]
  expected = 128 * sum(MLPERF_ROWS) / sum(n * d for n, d in shapes)
  assert compression.memory_ratio(features, narrow) == pytest.approx(expected)
  assert expected > 100
  assert compression.memory_ratio(features, features) == 1


def test_the_memory_ratio_counts_bytes_of_the_tables_own_dtypes():
  assert compression.memory_ratio([feature_of(10)], [feature_of(10, dtype="bfloat16")]) == 2
