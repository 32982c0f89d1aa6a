"""Penalties and clipping as a config asks for them, against the formulas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import models, tables
from jaxrec.config.experiment import OptimizerConfig
from jaxrec.data import pipeline
from jaxrec.runs.setup import optimizers
from jaxrec.training import losses, state, step
from tests.data import tiny_clicks


def problem(config):
  source = tiny_clicks.TinyClicks(seed=0)
  model = models.DLRMDCNv2(bottom_mlp=(8, 4), top_mlp=(8, 1), cross_rank=2)
  tx = optimizers.build(config)
  current = state.init_state(jax.random.key(0), model, source.spec, tx=tx)
  (batch,) = pipeline.batches(source, 64, num_steps=1)
  transform = optimizers.row_transform(config)
  return current, jax.jit(step.make_step(model, tx, row_transform=transform)), batch


PLAIN = OptimizerConfig("sgd", "sgd", learning_rate=0.5, table_learning_rate=0.25)


def moved(config):
  """How much one step of plain gradient descent moves each parameter, and each table."""
  current, step_fn, batch = problem(config)
  after, _ = step_fn(current, batch)
  change = jax.tree.map(
    lambda new, old: np.asarray(new, np.float64) - np.asarray(old, np.float64),
    (after.params, after.tables.values),
    (current.params, current.tables.values),
  )
  return current, change, batch


def test_the_penalty_on_layers_pulls_kernels_and_no_bias():
  current, (before, _), _ = moved(PLAIN)
  _, (after, rows), _ = moved(dataclasses.replace(PLAIN, l2_dense=0.1))
  kinds = set()
  for path, value in jax.tree_util.tree_leaves_with_path(current.params):
    name = path[-1].key
    pull = 0.5 * 0.1 * np.asarray(value, np.float64) if name != "bias" else 0.0
    extra = _at(after, path) - _at(before, path)
    np.testing.assert_allclose(extra, -pull * np.ones_like(extra), atol=2e-7)
    kinds.add(name)
  assert kinds == {"kernel", "v_kernel", "w_kernel", "bias"}


def test_the_penalty_on_layers_reaches_a_kernel_of_one_axis():
  mask = optimizers._is_kernel({"params": {"bias": jnp.zeros(()), "kernel": jnp.zeros(3)}})
  assert mask == {"params": {"bias": False, "kernel": True}}


def test_the_penalty_is_part_of_the_gradient_that_the_optimizer_sees():
  """Adagrad's first step is the rate times the sign of gradient and penalty together."""
  config = dataclasses.replace(PLAIN, dense="adagrad", l2_dense=100.0)
  current, (change, _), _ = moved(config)
  kernel = np.asarray(current.params["params"]["top"]["layer_0"]["kernel"])
  step_taken = change["params"]["top"]["layer_0"]["kernel"]
  clear = np.abs(kernel) > 0.1  # where 100 times the weight outweighs any gradient of the loss
  np.testing.assert_allclose(step_taken[clear], -0.5 * np.sign(kernel[clear]), rtol=1e-4)


def test_the_penalty_on_rows_pulls_touched_rows_once_and_no_others():
  current, (_, before), batch = moved(PLAIN)
  _, (_, after), _ = moved(dataclasses.replace(PLAIN, l2_rows=0.2))
  for name, values in current.tables.values.items():
    plan = batch.rows[name]
    touched = np.zeros(len(values), bool)
    touched[plan.rows[: plan.num_rows]] = True
    assert 0 < touched.sum() < len(touched)
    pull = np.where(touched[:, None], 0.25 * 0.2 * np.asarray(values, np.float64), 0)
    np.testing.assert_allclose(after[name] - before[name], -pull, atol=1e-7)
    np.testing.assert_array_equal(after[name][~touched], 0)


def test_the_penalty_on_rows_is_the_gradient_of_half_the_sum_of_squares():
  current, _, batch = problem(PLAIN)
  transform = optimizers.row_transform(dataclasses.replace(PLAIN, l2_rows=0.2))
  zeros = {
    name: tables.RowGradients(
      jnp.asarray(plan.rows), jnp.zeros((len(plan.rows), 4)), jnp.asarray(plan.num_rows)
    )
    for name, plan in batch.rows.items()
  }
  for name, g in transform(zeros, current.tables).items():
    rows = tables.read_rows(current.tables, {name: g.ids})[name]
    gradient = jax.grad(lambda rows: 0.2 / 2 * jnp.sum(rows**2))(rows)
    np.testing.assert_allclose(g.rows, gradient, rtol=1e-6)


def test_the_clip_comes_after_the_penalty():
  config = dataclasses.replace(PLAIN, l2_rows=50.0, clip_norm=0.01)
  _, (_, change), _ = moved(config)
  norm = np.sqrt(sum((values**2).sum() for values in change.values()))
  assert norm == pytest.approx(0.25 * 0.01, rel=1e-3)


def test_without_penalties_nothing_is_added_to_the_step():
  current, _, batch = problem(PLAIN)
  assert len(jax.tree.leaves(current.opt_state)) == 0
  row_grads = {"s": object()}
  assert optimizers.row_transform(PLAIN)(row_grads, current.tables) is row_grads
  assert losses.ClickLoss().trained_logits(batch.dense) is batch.dense


def _at(tree, path):
  for key in path:
    tree = tree[key.key]
  return tree
