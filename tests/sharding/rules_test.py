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
from jaxrec.sharding import layouts

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
    ((8, 8), PartitionSpec("data", "data"), "names mesh axis 'data' more than once"),
    ((8, 8), PartitionSpec(("data", "data")), "names mesh axis 'data' more than once"),
    ((8, 8), PartitionSpec(3), "no mesh axis 3; Known: data, model"),
  ],
)
def test_what_cannot_lie_so_is_named(shape, layout, message):
  rules = [("b", sharding.replicated()), ("c", sharding.replicated())]
  rules += [("a", layout)] if layout is not None else []
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  with pytest.raises(config.ConfigError, match=f"array 'a' .*{message}"):
    sharding.shardings({"a": np.zeros(shape)}, rules, mesh)


def test_numbers_are_scalars_and_what_has_no_shape_is_refused():
  mesh = sharding.make_mesh({"data": 8})
  tree = {"step": 3, "rate": 0.5, "done": True, "count": np.int32(1)}
  found = sharding.shardings(tree, [], mesh)
  assert {one.spec for one in found.values()} == {PartitionSpec()}
  with pytest.raises(config.ConfigError, match="'a/name' is no array or number but str; leave"):
    sharding.shardings({"a": {"name": "x"}}, {".*": "replicated"}, mesh)


def test_what_a_spec_leaves_to_the_compiler_passes():
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  spec = PartitionSpec(PartitionSpec.UNCONSTRAINED, "model")
  found = sharding.shardings({"a": np.zeros((7, 8))}, [("a", spec)], mesh)
  assert found["a"].spec == spec


FEATURES = [config.FeatureConfig("user", config.TableConfig("user", 64, 8))]


def planned(rules):
  return sharding.make_plan(FEATURES, {"data": 2, "model": 4}, rules)


def shared(rules):
  mesh = sharding.make_mesh({"data": 2, "model": 4})
  return sharding.shardings({"user": np.zeros((64, 8))}, rules, mesh)["user"].spec


@pytest.mark.parametrize("use", [planned, shared])
@pytest.mark.parametrize(
  ("text", "layout"),
  [
    ("row_wise", sharding.row_wise()),
    (" row_wise( model ) ", sharding.row_wise("model")),
    ("column_wise(model)", sharding.column_wise("model")),
    ("row_wise(data).and_columns(model)", sharding.row_wise("data").and_columns("model")),
    ("replicated().and_columns(data, model)", sharding.column_wise("data", "model")),
  ],
)
def test_layouts_may_be_text_and_rules_a_mapping(use, text, layout):
  assert use([(".*", text)]) == use({".*": text}) == use([(".*", layout)])


@pytest.mark.parametrize("use", [planned, shared])
@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ([("*", sharding.row_wise())], r"pattern '\*' of a rule is no regular expression \(nothing to"),
    ([(3, sharding.row_wise())], "pattern 3 of a rule is no regular expression"),
    ([(".*", "rowwise")], "layout 'rowwise'; did you mean 'row_wise'"),
    ([(".*", None)], r"the rule for '.\*' must have a layout, .* got None"),
    ([(".*", sharding.row_wise)], r"must have a layout, such as row_wise\(\), .* got <function"),
    ((".*", sharding.row_wise()), r"rules must be pairs .* got '.\*' among them"),
    ([(".*", "row_wise", 2)], "rules must be pairs"),
    ([(".*", sharding.row_wise(3))], "no mesh axis 3; Known: data, model"),
    ([(".*", sharding.table_wise(2))], "no mesh axis 2; Known: data, model"),
    ([(".*", sharding.table_row_wise("data"))], "num_shards must be an int, got 'data'"),
  ],
)
def test_rules_that_are_none_are_named(use, rules, message):
  with pytest.raises(config.ConfigError, match=message):
    use(rules)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      "table_row_wise(data)",
      r"takes names of mesh axes, after how many shards: table_row_wise\(8\)",
    ),
    ("table_row_wise", "after how many shards"),
    ("table_row_wise(2, 4)", "after how many shards"),
    ("row_wise(3)", "row_wise takes names of mesh axes$"),
    ("table_wise(2)", "table_wise takes names of mesh axes$"),
    ("replicated(data)", "replicated takes no arguments"),
    ("row_wise(data).and_columns()", "and_columns takes names of mesh axes, one at least"),
    ("row_wise(data).columns(model)", "did you mean 'row_wise'"),
    ("row_wise(data", "did you mean 'row_wise'"),
    ("", "Known: column_wise, replicated"),
  ],
)
def test_texts_of_no_layout_are_named(text, message):
  with pytest.raises(config.ConfigError, match=message) as error:
    layouts.parse(text)
  assert repr(text) in str(error.value)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"a": 0, "b": -1}, "axis 'a' must have a size of at least 1, or -1 .* got 0"),
    ({"a": -2}, "axis 'a' must have a size .* got -2"),
    ({"a": "4"}, "axis 'a' must have a size .* got '4'"),
    ({"a": 3, "b": -1}, "3 does not divide the 8 devices"),
    ({"a": 16, "b": -1}, "16 does not divide the 8 devices"),
    ({"a": -1, "b": 2, "c": -1}, "leaves the sizes of 'a' and 'c' open; only one may be -1"),
    ({"a": 16}, "needs 16 devices and there are 8"),
  ],
)
def test_sizes_of_no_mesh_are_named(sizes, message):
  with pytest.raises(config.ConfigError, match=message):
    sharding.make_mesh(sizes)


def test_an_open_size_takes_the_devices_that_are_left():
  assert dict(sharding.make_mesh({"a": 2, "b": -1}).shape) == {"a": 2, "b": 4}
