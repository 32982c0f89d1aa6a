from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.layers import embedding_bag
from tests.layers import oracles

VOCAB_SIZE, EMBEDDING_DIM = 7, 3
BAGS = [[0, 6, 6], [], [2], [5, 1]]  # duplicates, an empty bag, the first row and the last
WEIGHTS = [[0.5, 2.0, 1.5], [], [3.0], [1.0, 0.25]]


def random_table(seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(VOCAB_SIZE, EMBEDDING_DIM)).astype(np.float32)


def expected_bags(table, bags, weights, combiner):
  pooled = np.zeros((len(bags), table.shape[1]))
  for b, bag in enumerate(bags):
    w = np.array(weights[b] if weights else [1.0] * len(bag))
    if bag:
      divisor = {"sum": 1.0, "mean": w.sum(), "sqrtn": np.sqrt((w * w).sum())}[combiner]
      pooled[b] = (w[:, None] * table[bag]).sum(axis=0) / divisor
  return pooled


def inputs_of(form: str, is_weighted: bool):
  """BAGS as (ids, row_splits, weights) of the matrix or of the jagged form, with absent ids."""
  if form == "jagged":
    pad = [-1, -1]
    ids = np.array([i for bag in BAGS for i in bag] + pad, np.int32)
    weights = np.array([w for bag in WEIGHTS for w in bag] + [9.0, 9.0], np.float32)
    row_splits = np.cumsum([0] + [len(bag) for bag in BAGS]).astype(np.int32)
    return ids, row_splits, weights if is_weighted else None
  ids = np.full((4, 3), -1, np.int32)
  weights = np.full((4, 3), 9.0, np.float32)
  for b, bag in enumerate(BAGS):
    ids[b, 3 - len(bag) :] = bag  # absent ids first: they may stand anywhere
    weights[b, 3 - len(bag) :] = WEIGHTS[b]
  return ids, None, weights if is_weighted else None


@pytest.mark.parametrize("form", ["matrix", "jagged"])
@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_bags_and_the_tables_gradient_equal_float64_numpy(
  strict_promotion, form, combiner, is_weighted
):
  table = random_table()
  ids, row_splits, weights = inputs_of(form, is_weighted)
  factors = np.random.default_rng(1).normal(size=(4, EMBEDDING_DIM)).astype(np.float32)
  module = embedding_bag.EmbeddingBag(VOCAB_SIZE, EMBEDDING_DIM, combiner=combiner)

  def loss_fn(table):
    pooled = module.apply({"params": {"embedding": table}}, ids, row_splits, weights)
    return jnp.sum(factors * pooled), pooled

  (_, pooled), grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(table)
  weights = WEIGHTS if is_weighted else None
  oracles.assert_close(pooled, expected_bags(table.astype(np.float64), BAGS, weights, combiner))
  expected_grad = oracles.numeric_grad(
    lambda t: float(np.sum(factors * expected_bags(t, BAGS, weights, combiner))), table
  )
  assert grad.shape == table.shape  # dense: untouched rows have their zeros too
  oracles.assert_close(grad, expected_grad)
  assert not np.asarray(grad)[[3, 4]].any()


def test_one_id_an_example_reads_its_row_and_absent_ids_read_zeros(strict_promotion):
  table = random_table()
  vectors = embedding_bag.embed_bags(table, np.array([6, -1, 0, 6], np.int32))
  np.testing.assert_array_equal(vectors, [table[6], np.zeros(3), table[0], table[6]])
  grad = jax.grad(lambda t: jnp.sum(embedding_bag.embed_bags(t, jnp.array([6, -1, 0, 6]))))(table)
  assert grad[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 2]


def test_the_table_is_annotated_for_sharding_rules():
  module = embedding_bag.EmbeddingBag(VOCAB_SIZE, EMBEDDING_DIM)
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(2, int))
  logical = nn.get_partition_spec(variables)["params"]["embedding"]
  assert logical == jax.sharding.PartitionSpec("vocab", "embed")
  rules = [("vocab", "model"), ("embed", None)]
  assert nn.logical_to_mesh(logical, rules) == jax.sharding.PartitionSpec("model", None)
  assert nn.unbox(variables)["params"]["embedding"].shape == (VOCAB_SIZE, EMBEDDING_DIM)


def test_tables_begin_uniform_in_dlrms_range_or_as_told():
  module = embedding_bag.EmbeddingBag(400, 50)
  table = nn.unbox(module.init(jax.random.key(0), jnp.zeros(1, int)))["params"]["embedding"]
  assert 0.049 < np.abs(table).max() <= 0.05  # sqrt(1 / 400)
  np.testing.assert_allclose(np.std(table), 0.05 / np.sqrt(3), rtol=0.02)
  assert abs(np.mean(table)) < 0.001
  module = embedding_bag.EmbeddingBag(400, 50, embedding_init=nn.initializers.ones)
  assert module.init_with_output(jax.random.key(0), jnp.zeros(1, int))[0].tolist() == [[1.0] * 50]


def test_it_trains_in_an_ordinary_flax_and_optax_loop():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, ids):
      return nn.Dense(1)(embedding_bag.EmbeddingBag(VOCAB_SIZE, 4, combiner="mean")(ids))[:, 0]

  ids = jnp.array([[0, 1], [2, -1], [3, 4], [-1, -1]])
  labels = jnp.array([1.0, 0.0, 1.0, 0.0])
  model, tx = Model(), optax.adam(0.1)
  variables = model.init(jax.random.key(0), ids)
  opt_state = tx.init(variables)

  @jax.jit
  def step(variables, opt_state):
    def loss_fn(variables):
      return optax.sigmoid_binary_cross_entropy(model.apply(variables, ids), labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(variables)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(variables, updates), opt_state, loss

  losses = []
  for _ in range(30):
    variables, opt_state, loss = step(variables, opt_state)
    losses.append(float(loss))
  assert losses[-1] < 0.1 < 0.5 < losses[0]


def test_a_bfloat16_lookup_keeps_a_float32_table(strict_promotion):
  module = embedding_bag.EmbeddingBag(VOCAB_SIZE, EMBEDDING_DIM, dtype=jnp.bfloat16)
  ids, _, weights = inputs_of("matrix", is_weighted=True)
  vectors, variables = module.init_with_output(jax.random.key(0), ids, None, weights)
  assert vectors.dtype == jnp.bfloat16
  assert nn.unbox(variables)["params"]["embedding"].dtype == jnp.float32


@pytest.mark.parametrize(
  ("combiner", "expected"), [("sum", 2000.0), ("mean", 2.0), ("sqrtn", 2000 / 1000**0.5)]
)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_bfloat16_lookup_pools_in_float32(strict_promotion, combiner, expected, is_weighted):
  module = embedding_bag.EmbeddingBag(
    VOCAB_SIZE, EMBEDDING_DIM, combiner=combiner, dtype=jnp.bfloat16,
    embedding_init=nn.initializers.constant(2.0),
  )  # fmt: skip
  ids = np.full((1, 1000), 3, np.int32)
  weights = np.ones(ids.shape, np.float32) if is_weighted else None
  vectors, _ = module.init_with_output(jax.random.key(0), ids, None, weights)
  assert vectors.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=2**-8)


@pytest.mark.parametrize("bad", [7, -2, 2**40])
def test_a_host_id_out_of_range_is_refused_by_value(bad):
  ids = np.array([3, bad])
  with pytest.raises(
    ValueError, match=rf"table: id {bad} is out of range.*0\.\.6 and -1 is absent"
  ):
    embedding_bag.embed_bags(random_table(), ids)


def test_an_id_past_the_table_inside_jit_reads_as_nan():
  vectors = jax.jit(embedding_bag.embed_bags)(random_table(), jnp.array([3, 7]))
  assert np.isfinite(vectors[0]).all()
  assert np.isnan(vectors[1]).all()


@pytest.mark.parametrize(
  ("kwargs", "error", "message"),
  [
    ({"ids": np.zeros(2)}, TypeError, "EmbeddingBag: expected integer ids, got float64"),
    ({"ids": np.zeros((2, 2, 2), int)}, ValueError, r"expected ids \[B\], \[B, L\], or \[N\]"),
    (
      {"ids": np.zeros((2, 2), int), "row_splits": np.zeros(3, int)},
      ValueError,
      r"got shape \(2, 2\) with row_splits",
    ),
    (
      {"ids": np.zeros((2, 2), int), "weights": np.zeros(2)},
      ValueError,
      r"expected one weight an id, \(2, 2\), got shape \(2,\)",
    ),
  ],
)
def test_inputs_that_do_not_fit_are_refused(kwargs, error, message):
  module = embedding_bag.EmbeddingBag(VOCAB_SIZE, EMBEDDING_DIM)
  with pytest.raises(error, match=message):
    module.init(jax.random.key(0), **kwargs)


def test_errors_carry_the_modules_name():
  module = embedding_bag.EmbeddingBag(VOCAB_SIZE, EMBEDDING_DIM, name="user")
  with pytest.raises(ValueError, match="EmbeddingBag 'user': id 9 is out of range"):
    module.init(jax.random.key(0), np.array([9]))
