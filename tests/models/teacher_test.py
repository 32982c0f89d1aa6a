"""A model learns what the teacher knows (law M6). Long: minutes of training each."""

from __future__ import annotations

import jax
import optax
import pytest

from jaxrec import data, models, tables, training
from jaxrec.data import prefetch

BATCH = 2048


def trained_auc(model, clicks, steps):
  tx = training.Optimizers(dense=optax.adam(1e-3), rows=tables.rowwise_adagrad(0.05))
  state = training.init_state(jax.random.key(0), model, clicks.spec, tx=tx)
  step = jax.jit(training.make_step(model, tx), donate_argnums=0)
  with prefetch(clicks.batches(BATCH, num_steps=steps), depth=2) as feed:
    for batch in feed:
      state, seen = step(state, batch)
      seen.loss_sum.block_until_ready()
  return training.evaluate(model, state, clicks.batches(BATCH, num_steps=64, split="test"))["auc"]


@pytest.mark.nightly
@pytest.mark.parametrize("teacher", ["dot", "multiplicative"])
def test_the_model_that_fits_the_teacher_reaches_95_percent_of_its_auc(teacher, nightly):
  clicks = data.synthetic(data.default_features(), num_dense=13, seed=0, teacher=teacher)
  steps = nightly.trials(1200, sample=500)
  ceiling = clicks.ceiling(64 * BATCH)
  dot = trained_auc(models.DLRM(bottom_mlp=(64, 16), top_mlp=(128, 64, 1)), clicks, steps)
  if teacher == "dot":
    assert dot >= 0.95 * ceiling, (dot, ceiling)
    return
  model = models.DLRMDCNv2(bottom_mlp=(64, 16), top_mlp=(128, 64, 1), cross_rank=32)
  cross = trained_auc(model, clicks, steps)
  assert cross >= dot, (cross, dot, ceiling)
  if nightly.is_full:
    assert cross >= 0.95 * ceiling, (cross, ceiling)
