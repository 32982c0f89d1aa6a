"""The law of sharding: every layout on every mesh trains as one device does."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from jaxrec import sharding, tables, training
from tests.sharding import cases

STEPS = 20
SIZE = 32  # examples a batch

# Each set gives the tables of one program layouts of their own, so few programs meet all layouts.
SETS = {
  "rows": ("row_wise", "table_wise", "replicated"),
  "columns": ("column_wise", "grid", "table_row_wise"),
  "both": ("rows_and_columns", "row_wise", "table_wise"),
}
KINDS = ("single", "bags")


def covering_set():
  """Every set with every mesh; every optimizer and kind of bag with every set and every mesh."""
  optimizers = list(cases.OPTIMIZERS)
  for i, (mesh, names) in enumerate(itertools.product(cases.MESHES, SETS)):
    yield names, mesh, KINDS[(i + i // 6) % 2], optimizers[(i + i // 3) % 3]


def test_the_covering_set_has_every_pair():
  of_all, of_some = (
    {frozenset(pair) for case in cases_ for pair in itertools.combinations(enumerate(case), 2)}
    for cases_ in (whole_product(), covering_set())
  )
  assert of_some == of_all


def whole_product():
  return itertools.product(SETS, cases.MESHES, KINDS, cases.OPTIMIZERS)


def rules(names, mesh):
  pairs = zip(cases.VOCABULARY, SETS[names], strict=True)
  return tuple((table, cases.LAYOUTS[layout](mesh)) for table, layout in pairs)


@functools.cache
def single_device(kind, optimizer):
  inputs, tx = cases.features(kind), cases.optimizers(optimizer)
  found = [cases.split(one, inputs, None) for one in batches(kind)]
  state, seen = cases.train(cases.fresh(inputs, tx), tx, found)
  return cases.by_table(state), jax.device_get(state.params), [float(s.loss_sum) for s in seen]


@functools.cache
def batches(kind):
  inputs = cases.features(kind)
  kinds = itertools.cycle(["skewed", "distinct", "equal", "skewed", "borders"])
  return [cases.examples(inputs, SIZE, seed, next(kinds)) for seed in range(STEPS)]


def check_law(names, mesh_name, kind, optimizer, **options):
  mesh = cases.MESHES[mesh_name]
  inputs, tx = cases.features(kind), cases.optimizers(optimizer)
  where = cases.placement(inputs, mesh, rules(names, mesh), **options)
  start = cases.by_table(cases.fresh(inputs, tx, where))
  jax.tree.map(np.testing.assert_array_equal, start, cases.by_table(cases.fresh(inputs, tx)))
  found = [cases.split(one, inputs, where) for one in batches(kind)]
  state, seen = cases.train(cases.fresh(inputs, tx, where), tx, found)
  values, params, losses = single_device(kind, optimizer)
  ours = cases.by_table(state)
  cases.check_close(ours, values)
  ours_dense, theirs_dense = (
    {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    for tree in (state.params, params)
  )
  cases.check_close(ours_dense, theirs_dense)
  np.testing.assert_allclose([float(s.loss_sum) for s in seen], losses, rtol=1e-5)
  for name, before in start.items():  # untouched rows keep their bits
    is_still = (values[name] == before).reshape(len(before), -1).all(axis=1)
    np.testing.assert_array_equal(ours[name][is_still], before[is_still])
    assert not is_still.all()
  return ours, seen, where


@pytest.mark.parametrize(("names", "mesh", "kind", "optimizer"), list(covering_set()))
def test_layouts_train_as_one_device(names, mesh, kind, optimizer):
  check_law(names, mesh, kind, optimizer)


@pytest.mark.nightly
@pytest.mark.parametrize("case", range(len(list(whole_product()))))
def test_every_layout_with_everything(case, nightly):
  chosen = list(whole_product())
  np.random.default_rng(nightly.seed).shuffle(chosen)
  if case >= nightly.trials(len(chosen), sample=6):
    pytest.skip("a sample")
  check_law(*chosen[case])


def by_hand(tx):
  """The README's step, with a clipped gradient."""

  @jax.jit
  @sharding.over_devices
  def step(state, batch):
    def loss_fn(params, embeddings):
      logits = cases.Scorer().apply(params, batch.dense, embeddings)
      return training.binary_cross_entropy(logits, batch.labels["click"], batch.weights)

    loss, grads, row_grads = tables.value_and_row_grad(loss_fn)(state.params, state.tables, batch)
    row_grads = tables.clip_by_global_norm(row_grads, 0.01)
    return training.apply_gradients(state, grads, row_grads, tx=tx), loss

  return step


def test_a_step_by_hand_has_the_loss_and_gradients_of_the_whole_batch():
  inputs, tx = cases.features("bags"), cases.optimizers("sgd")
  where = cases.placement(inputs, {"data": 4}, rules("both", {"data": 4}))
  step, states, losses = by_hand(tx), [], []
  for place in (None, where):
    state, seen = cases.fresh(inputs, tx, place), []
    for one in batches("bags")[:5]:
      weights = one.weights.copy()
      weights[: SIZE // 4] = 0.0  # one device has nothing but padding; the others not the same
      one = dataclasses.replace(one, weights=weights)
      state, loss = step(state, cases.split(one, inputs, place))
      seen.append(float(loss))
    states.append(cases.by_table(state))
    losses.append(seen)
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  cases.check_close(states[1], states[0])


def test_devices_drop_units_of_their_own():
  inputs, tx = cases.features(), cases.optimizers("sgd")
  where = cases.placement(inputs, {"data": 8})

  def drawn(state, batch):
    key = tables.own_key(state.rng, state.tables.placement.axes)
    return jax.random.uniform(key, batch.weights.shape)

  batch = cases.split(batches("single")[0], inputs, where)
  found = np.asarray(jax.jit(sharding.each_example(drawn))(cases.fresh(inputs, tx, where), batch))
  assert len(np.unique(found)) == SIZE
