"""`lazily(tx)` is its definition: the dense update, then untouched rows restored."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxrec import tables
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.inputs import table_plan
from jaxrec.tables.optimizers import row_optimizer

V, D = 37, 5  # V is no other dimension: a leaf with V entries along its first axis is a row leaf
NAME = "d5_float32"


def _decay(step):
  return optax.exponential_decay(0.1, transition_steps=2, decay_rate=0.5)(step)


TRANSFORMS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "nesterov": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda: optax.adagrad(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, centered=True),
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.01),
    "scheduled adam": lambda: optax.adam(_decay),
    "scheduled chain": lambda: optax.chain(optax.clip(0.5), optax.sgd(_decay, momentum=0.9)),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=_decay),
    "ftrl": lambda: tables.ftrl(0.1, l1=0.05, l2=0.01, l2_shrinkage=0.01),
    "scheduled ftrl": lambda: tables.ftrl(_decay, power=-0.4, initial_accumulator=0.0),
    "masked on": lambda: optax.masked(optax.adam(0.1), {NAME: True}),
    "masked off": lambda: optax.chain(
        optax.sgd(0.1), optax.masked(optax.trace(0.9), {NAME: False})
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {NAME: "a"}
    ),
}  # fmt: skip


def device_tables(values):
  plan = table_plan.plan_tables([FeatureConfig("f", TableConfig("f", V, D))])
  return tables.DeviceTables(values={NAME: jnp.asarray(values)}, plan=plan)


def dense_then_restored(tx, values, state, gradient, is_touched):
  """The definition, literally. Row leaves are recognised by their length alone."""
  updates, new_state = tx.update({NAME: gradient}, state, {NAME: values})
  new_values = optax.apply_updates({NAME: values}, updates)[NAME]

  def restore(new, old):
    if new.ndim and new.shape[0] == V:
      return jnp.where(is_touched.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return new

  return restore(new_values, values), jax.tree.map(restore, new_state, state)


def random_gradients(rng, num_ids):
  """Ids with duplicates, padding, and the first and last row; a gradient for each."""
  ids = rng.integers(0, V, num_ids).astype(np.int32)
  if num_ids > 1:
    ids[0], ids[-1] = V - 1, 0
  rows = (rng.normal(size=(num_ids, D)) * 10.0 ** rng.integers(-3, 2)).astype(np.float32)
  pad = rng.random(num_ids) < 0.2
  return np.where(pad, -1, ids).astype(np.int32), rows


def run_both(tx, seed, num_steps, num_ids):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(V, D)).astype(np.float32)
  optimizer = tables.lazily(tx)
  lazy_tables, lazy_state = device_tables(values), optimizer.init({NAME: jnp.asarray(values)})
  dense_values, dense_state = jnp.asarray(values), tx.init({NAME: jnp.asarray(values)})
  dense_step = jax.jit(functools.partial(dense_then_restored, tx))
  lazy_step = jax.jit(functools.partial(tables.apply_row_gradients, optimizer=optimizer))
  num_touched = 0
  for _ in range(num_steps):
    ids, rows = random_gradients(rng, num_ids)
    gradient, touched = np.zeros((V, D), np.float32), np.zeros(V, bool)
    for i, row in zip(ids, rows, strict=True):  # in order of occurrence, one float32 add at a time
      if i >= 0:
        gradient[i] += row
        touched[i] = True
    row_grads = {NAME: jax.jit(tables.coalesce, static_argnums=2)(ids, rows, V)}
    assert int(row_grads[NAME].num_valid) == touched.sum()
    lazy_tables, lazy_state = lazy_step(lazy_tables, lazy_state, row_grads)
    dense_values, dense_state = dense_step(dense_values, dense_state, gradient, touched)
    num_touched += touched.sum()
  assert num_touched > 0
  return lazy_tables.values[NAME], lazy_state, dense_values, dense_state


@pytest.mark.parametrize("name", TRANSFORMS)
def test_lazily_equals_the_dense_update_with_untouched_rows_restored_bit_for_bit(name):
  values, state, dense_values, dense_state = run_both(TRANSFORMS[name](), 0, 4, 24)
  if name == "adamw" and jax.default_backend() == "gpu":  # fuses its decay in another way
    np.testing.assert_allclose(values, dense_values, rtol=1e-6)
  else:
    np.testing.assert_array_equal(values, dense_values)
  dense_leaves = jax.tree.leaves(dense_state)
  dense_rows = [x for x in dense_leaves if x.ndim and x.shape[0] == V]
  dense_globals = [x for x in dense_leaves if not (x.ndim and x.shape[0] == V)]
  for ours, theirs in zip(state.rows[NAME], dense_rows, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert len(state.globals) == len(dense_globals)
  for path, theirs in jax.tree_util.tree_leaves_with_path(dense_state):
    if not (theirs.ndim and theirs.shape[0] == V):
      ours = state.globals[jax.tree_util.keystr(path, simple=True, separator=".")]
      np.testing.assert_array_equal(ours, theirs)


def test_an_injected_hyperparameter_is_found_by_name_and_can_be_changed_between_steps():
  optimizer = tables.lazily(optax.inject_hyperparams(optax.sgd)(learning_rate=0.5))
  values = {NAME: jnp.ones((2, D))}
  grads = {NAME: jnp.ones((2, D))}
  state = optimizer.init(values)
  assert float(state.globals["hyperparams.learning_rate"]) == 0.5
  slower = {**state.globals, "hyperparams.learning_rate": jnp.float32(0.25)}
  moved, _, rest = optimizer.update(grads, state.rows, slower, values)
  np.testing.assert_array_equal(moved[NAME], np.full((2, D), 0.75))
  assert int(rest["count"]) == 1


@hypothesis.given(
  st.sampled_from(["momentum", "adam", "rmsprop"]), st.integers(0, 2**31), st.integers(1, 40)
)
@hypothesis.settings(max_examples=8)
def test_lazily_equals_its_definition_for_any_ids(name, seed, num_ids):
  try:
    values, _, dense_values, _ = run_both(TRANSFORMS[name](), seed, 2, num_ids)
  except AssertionError as error:
    if "num_touched" in str(error):  # all ids were padding
      hypothesis.reject()
    raise
  np.testing.assert_array_equal(values, dense_values)


class Oracle:
  """float64, row by row, written from the textbook."""

  def __init__(self, values):
    self.x = values.astype(np.float64)
    self.m, self.v = np.zeros_like(self.x), np.zeros_like(self.x)
    self.count = 0

  def step(self, kind, ids, g):
    self.count += 1
    if kind == "sgd":
      self.x[ids] -= 0.1 * g
    elif kind == "momentum":
      self.m[ids] = 0.9 * self.m[ids] + g
      self.x[ids] -= 0.1 * self.m[ids]
    elif kind == "adagrad":
      self.v[ids] += g * g
      self.x[ids] -= 0.1 * g / np.sqrt(self.v[ids] + 1e-7)
    elif kind == "rmsprop":
      self.v[ids] = 0.9 * self.v[ids] + 0.1 * g * g
      self.x[ids] -= 0.1 * g / np.sqrt(self.v[ids] + 1e-8)
    elif kind in ("adam", "adamw"):
      self.m[ids] = 0.9 * self.m[ids] + 0.1 * g
      self.v[ids] = 0.999 * self.v[ids] + 0.001 * g * g
      m = self.m[ids] / (1 - 0.9**self.count)
      v = self.v[ids] / (1 - 0.999**self.count)
      decay = 0.01 * self.x[ids] if kind == "adamw" else 0.0
      self.x[ids] -= 0.1 * (m / (np.sqrt(v) + 1e-8) + decay)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw"])
def test_lazily_equals_float64_numpy(kind):
  tx = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.0),
    "rmsprop": optax.rmsprop(0.1),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.01),
  }[kind]
  rng = np.random.default_rng(1)
  values = rng.normal(size=(V, D)).astype(np.float32)
  optimizer = tables.lazily(tx)
  ours, state, oracle = device_tables(values), optimizer.init({NAME: values}), Oracle(values)
  step = jax.jit(functools.partial(tables.apply_row_gradients, optimizer=optimizer))
  for _ in range(6):
    ids, rows = random_gradients(rng, 30)
    touched = np.unique(ids[ids >= 0])
    oracle.step(
      kind, touched, np.stack([rows[ids == i].astype(np.float64).sum(0) for i in touched])
    )
    ours, state = step(ours, state, {NAME: tables.coalesce(jnp.asarray(ids), jnp.asarray(rows), V)})
  np.testing.assert_allclose(ours.values[NAME], oracle.x, rtol=2e-5, atol=2e-6)


def test_rowwise_adagrad_follows_its_definition_and_leaves_other_rows_alone():
  rng = np.random.default_rng(2)
  values = rng.normal(size=(V, D)).astype(np.float32)
  optimizer = tables.rowwise_adagrad(0.05)
  ours, state = device_tables(values), optimizer.init({NAME: jnp.asarray(values)})
  x, accumulator = values.astype(np.float64), np.zeros(V)
  step = jax.jit(functools.partial(tables.apply_row_gradients, optimizer=optimizer))
  for _ in range(5):
    ids, rows = random_gradients(rng, 12)
    before = np.asarray(ours.values[NAME])
    ours, state = step(ours, state, {NAME: tables.coalesce(jnp.asarray(ids), jnp.asarray(rows), V)})
    touched = np.unique(ids[ids >= 0])
    untouched = np.setdiff1d(np.arange(V), touched)
    np.testing.assert_array_equal(np.asarray(ours.values[NAME])[untouched], before[untouched])
    for i in touched:
      g = rows[ids == i].astype(np.float64).sum(0)
      accumulator[i] += np.mean(g**2)
      x[i] -= 0.05 * g / (np.sqrt(accumulator[i]) + 1e-10)
  np.testing.assert_allclose(ours.values[NAME], x, rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(state.rows[NAME][0], accumulator, rtol=1e-5)
  assert state.rows[NAME][0].shape == (V,)
  assert int(state.globals) == 5


@pytest.mark.parametrize("dim", [1, 3, 16, 100, 128])
def test_mean_over_dim_has_the_same_bits_whatever_the_number_of_rows(dim):
  x = np.random.default_rng(3).normal(size=(257, dim)).astype(np.float32)
  whole = np.asarray(jax.jit(row_optimizer.mean_over_dim)(x))
  np.testing.assert_allclose(whole, x.astype(np.float64).mean(1), rtol=2e-5, atol=1e-6)
  for count in (1, 2, 7, 64):
    np.testing.assert_array_equal(jax.jit(row_optimizer.mean_over_dim)(x[:count]), whole[:count])


def test_a_row_whose_gradient_is_zero_does_not_become_nan():
  optimizer = tables.rowwise_adagrad(0.05)
  values = {NAME: jnp.ones((2, D))}
  state = optimizer.init(values)
  new_values, leaves, _ = optimizer.update(
    {NAME: jnp.zeros((2, D))}, state.rows, state.globals, values
  )
  np.testing.assert_array_equal(new_values[NAME], values[NAME])
  np.testing.assert_array_equal(leaves[NAME][0], jnp.zeros(2))


REFUSED = {
    "clip_by_global_norm": (lambda: optax.clip_by_global_norm(1e9), "tables.clip_by_global_norm"),
    "lamb": (lambda: optax.lamb(0.1), "rowwise_adagrad"),
    "lars": (lambda: optax.lars(0.1), "rowwise_adagrad"),
    "adafactor": (lambda: optax.adafactor(0.1), "rowwise_adagrad"),
    "add_noise": (lambda: optax.add_noise(0.1, 0.1, 0), "tables.add_noise"),
    "MultiSteps": (lambda: optax.MultiSteps(optax.sgd(0.1), 4), "--accumulate_steps"),
    "MultiSteps ": (
        lambda: optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(), "accumulate_steps"
    ),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.sgd(0.1), 3), "tables.global_norm"),
    "this transform": (lambda: optax.clip_by_block_rms(1.0), "RowGradients"),
    "this transform ": (lambda: optax.adaptive_grad_clip(0.01), "RowGradients"),
    "this transform  ": (lambda: optax.contrib.dadapt_adamw(), "RowGradients"),
    "this transform   ": (lambda: optax.contrib.prodigy(0.01), "RowGradients"),
    "this transform    ": (
        lambda: optax.conditionally_transform(
            optax.normalize_by_update_norm(), lambda step, **_: step >= 5
        ),
        "RowGradients",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Specifying a key:UserWarning")
@pytest.mark.parametrize("wrap", ["bare", "chained", "injected"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_transform_whose_rows_see_each_other_is_refused_by_name(name, wrap):
  make, instead = REFUSED[name]
  tx = make()
  if wrap != "bare" and isinstance(tx, optax.MultiSteps):
    tx = tx.gradient_transformation()
  if wrap == "chained":
    tx = optax.chain(optax.clip(100.0), optax.masked(tx, lambda p: jax.tree.map(lambda _: True, p)))
  if wrap == "injected":
    built = tx
    tx = optax.inject_hyperparams(lambda rate: optax.chain(built, optax.scale(rate)))(rate=0.1)
  with pytest.raises(ValueError, match=name.strip()) as error:
    tables.lazily(tx)
  assert "not row-separable" in str(error.value) and instead in str(error.value)


@pytest.mark.parametrize(
  "make",
  [
    lambda: optax.adam(0.1, mu_dtype=jnp.bfloat16),
    lambda: optax.adamax(1e-6),
    lambda: optax.lion(0.1),
    lambda: optax.radam(0.1),
    lambda: optax.contrib.schedule_free_adamw(0.1),
    lambda: optax.contrib.ademamix(1e-3),
    lambda: optax.chain(optax.zero_nans(), optax.centralize(), optax.sgd(0.1)),
  ],
)
def test_a_transform_whose_rows_stand_alone_is_accepted_at_any_scale(make):
  tables.lazily(make())


def test_a_transform_tied_to_stack_names_is_still_probed_when_the_names_are_known():
  named = {NAME: True}
  for mask in (named, lambda params: {name: name == NAME for name in params}):
    masked = tables.lazily(optax.masked(optax.clip_by_block_rms(1.0), mask))
    with pytest.raises(ValueError, match="not row-separable"):
      masked.init({NAME: jnp.zeros((V, D))})


def test_optimizers_by_label_move_their_own_stacks_only():
  plan = table_plan.plan_tables(
    [
      FeatureConfig("a", TableConfig("a", 4, D, optimizer="fast")),
      FeatureConfig("b", TableConfig("b", 4, D, optimizer="slow")),
    ]
  )
  values = {s.name: jnp.ones((4, D)) for s in plan.stacks}
  both = tables.by_label({"fast": tables.lazily(optax.sgd(1.0)),
                          "slow": tables.rowwise_adagrad(0.25)}, plan)  # fmt: skip
  state = both.init(values)
  grads = {name: jnp.ones((4, D)) for name in values}
  new, leaves, _ = both.update(grads, state.rows, state.globals, values)
  np.testing.assert_allclose(new["d5_float32_fast"], 0.0)
  np.testing.assert_allclose(new["d5_float32_slow"], 0.75)
  assert [len(leaves[s.name]) for s in plan.stacks] == [0, 1]


def test_an_optax_transform_in_the_place_of_a_row_optimizer_is_told_to_be_wrapped():
  plan = table_plan.plan_tables([FeatureConfig("a", TableConfig("a", 4, D))])
  expected = r"Optimizers.rows: expected a row optimizer, got GradientTransf.*tables.lazily\(tx\)"
  with pytest.raises(TypeError, match=expected):
    tables.by_label(optax.adam(1e-3), plan)
  with pytest.raises(TypeError, match=r"Optimizers.rows\['x'\]: expected a row optimizer"):
    tables.by_label({None: tables.rowwise_adagrad(0.1), "x": optax.sgd(0.1)}, plan)


def test_labels_that_are_equal_as_text_are_refused():
  plan = table_plan.plan_tables([FeatureConfig("a", TableConfig("a", 4, D))])
  both = {None: tables.rowwise_adagrad(0.1), "None": tables.rowwise_adagrad(0.2)}
  with pytest.raises(ValueError, match="Optimizers.rows: label None is there twice"):
    tables.by_label(both, plan)


def test_a_label_without_an_optimizer_is_named():
  plan = table_plan.plan_tables([FeatureConfig("a", TableConfig("a", 4, D, optimizer="ftrl"))])
  with pytest.raises(ValueError, match="table 'a'.*'ftrl'"):
    tables.by_label({"slow": tables.rowwise_adagrad(0.1)}, plan)
  with pytest.raises(ValueError, match="single row optimizer"):
    tables.by_label(tables.rowwise_adagrad(0.1), plan)
