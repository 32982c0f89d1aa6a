"""Rules for parameters that are not jaxrec's: a model of Flax's own layers on eight devices."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from jaxrec import config, sharding

USERS, DIM = 4096, 16
RULES = (
  (".*/users/embedding", sharding.row_wise()),
  (".*/Dense_0/kernel", sharding.row_wise("data").and_columns("model")),
  (".*/Dense_0/bias", sharding.column_wise("model")),
  (".*/Dense_1/kernel", PartitionSpec("model")),
  (".*", sharding.replicated()),
)
SPECS = {
  "users/embedding": PartitionSpec(("data", "model"), None),
  "Dense_0/kernel": PartitionSpec("data", "model"),
  "Dense_0/bias": PartitionSpec("model"),
  "Dense_1/kernel": PartitionSpec("model"),
  "LayerNorm_0/scale": PartitionSpec(None),
}


class Foreign(nn.Module):
  """Whoever wrote this knows nothing of meshes but for one annotation."""

  @nn.compact
  def __call__(self, users, dense):
    rows = nn.Embed(USERS, DIM, name="users")(users)
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    hidden = nn.Dense(32, kernel_init=kernel_init)(jnp.concatenate([rows, dense], axis=1))
    return nn.Dense(1)(nn.LayerNorm()(nn.relu(hidden)))[:, 0]


def examples(step):
  rng = np.random.default_rng(step)
  users = rng.integers(0, USERS, 64).astype(np.int32)
  return users, rng.standard_normal((64, 4)).astype(np.float32), (users % 2).astype(np.float32)


def trained(mesh=None):
  """Parameters and Adam's state after five steps, on one device or by ``RULES`` on a mesh."""
  model, tx = Foreign(), optax.adam(1e-2)

  def fresh():
    params = model.init(jax.random.key(0), *examples(0)[:2])
    return params, tx.init(params)

  def step(state, users, dense, clicks):
    def loss_fn(params):
      return optax.sigmoid_binary_cross_entropy(model.apply(params, users, dense), clicks).mean()

    params, opt_state = state
    updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state

  if mesh is None:
    where = None
    make, run = jax.jit(fresh), jax.jit(step)
  else:
    where = sharding.shardings(jax.eval_shape(fresh), RULES, mesh)
    make, run = jax.jit(fresh, out_shardings=where), jax.jit(step, out_shardings=where)
  state = make()
  for number in range(5):
    state = run(state, *examples(number))
  return state, where


def test_a_foreign_model_trains_as_on_one_device():
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  (plain, _), (found, where) = trained(), trained(mesh)
  for one, other, wanted in zip(*map(jax.tree.leaves, (plain, found, where)), strict=True):
    assert other.sharding.is_equivalent_to(wanted, other.ndim)
    assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
  specs = {jax.tree_util.keystr(path): s.spec for path, s in jax.tree.leaves_with_path(where)}
  for name, spec in SPECS.items():  # of the parameter and of both moments
    known = [
      found
      for path, found in specs.items()
      if "".join(f"['{part}']" for part in name.split("/")) in path
    ]
    assert known == [spec] * 3
  params, _ = found
  (part, *_) = params["params"]["users"]["embedding"].addressable_shards
  assert part.data.shape == (USERS // 8, DIM)  # and no device has the table


def test_names_are_paths_in_nnx_too():
  mesh = sharding.make_mesh({"data": 8})
  model = nnx.eval_shape(lambda: nnx.Sequential(nnx.Embed(64, 4, rngs=nnx.Rngs(0))))
  rules = [("layers/0/embedding", sharding.row_wise())]
  (found,) = jax.tree.leaves(sharding.shardings(nnx.state(model), rules, mesh))
  assert found.spec == PartitionSpec("data", None)


def test_the_first_rule_that_matches_the_whole_name_counts():
  mesh = sharding.make_mesh({"data": 8})
  tree = {
    "a": {"b": np.zeros((8, 8))},
    "b": np.zeros((8, 8)),
    "bb": np.zeros((8, 8)),
    "count": np.zeros(()),
  }
  rules = [("b", sharding.column_wise()), (".*b", sharding.row_wise()), ("b", PartitionSpec())]
  found = sharding.shardings(tree, rules, mesh)
  assert found["b"].spec == PartitionSpec(None, "data")
  assert found["a"]["b"].spec == found["bb"].spec == PartitionSpec("data", None)
  assert found["count"].spec == PartitionSpec()


@pytest.mark.parametrize(
  ("shape", "layout", "message"),
  [
    ((8, 8), None, "no rule matches it; the patterns are b, c; end them with"),
    ((9, 8), sharding.row_wise(), r"dimension 0 is 9, which 8 devices along .* pad it to 16"),
    ((8, 6), sharding.column_wise("model"), "dimension 1 is 6, which 4 devices"),
    ((8, 8), sharding.table_wise(), "lie tables of a plan"),
    ((8, 8), sharding.table_row_wise(2), "lie tables of a plan"),
    ((8, 8), sharding.row_wise("rows"), "no mesh axis 'rows'"),
    ((8, 8), PartitionSpec(("data", "rows")), "no mesh axis 'rows'"),
    ((8,), PartitionSpec(None, "data"), "names 2 dimensions, and it has fewer"),
    ((8,), sharding.row_wise("data").and_columns("model"), "are one dimension here"),
  ],
)
def test_what_cannot_lie_so_is_named(shape, layout, message):
  rules = [("b", sharding.replicated()), ("c", sharding.replicated())]
  rules += [("a", layout)] if layout is not None else []
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  with pytest.raises(config.ConfigError, match=f"array 'a' .*{message}"):
    sharding.shardings({"a": np.zeros(shape)}, rules, mesh)
