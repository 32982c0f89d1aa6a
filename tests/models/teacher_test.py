"""A model learns what the teacher knows (law M6). Long: minutes of training each."""

from __future__ import annotations

import jax
import optax
import pytest

from jaxrec import data, models, tables, training
from jaxrec.data import prefetch

STEPS, BATCH = 1200, 2048


def trained_auc(model, clicks, *, rows=0.05):
  tx = training.Optimizers(dense=optax.adam(1e-3), rows=tables.rowwise_adagrad(rows))
  state = training.init_state(jax.random.key(0), model, clicks.spec, tx=tx)
  step = jax.jit(training.make_step(model, tx), donate_argnums=0)
  with prefetch(clicks.batches(BATCH, num_steps=STEPS), depth=2) as feed:
    for batch in feed:
      state, seen = step(state, batch)
      seen.loss_sum.block_until_ready()
  return training.evaluate(model, state, clicks.batches(BATCH, num_steps=64, split="test"))["auc"]


@pytest.mark.nightly
@pytest.mark.parametrize("teacher", ["dot", "multiplicative"])
def test_dlrm_reaches_95_percent_of_the_teacher_and_dcnv2_keeps_up(teacher):
  clicks = data.synthetic(data.default_features(), num_dense=13, seed=0, teacher=teacher)
  ceiling = clicks.ceiling(64 * BATCH)
  dot = trained_auc(models.DLRM(bottom_mlp=(64, 16), top_mlp=(128, 64, 1)), clicks)
  cross = trained_auc(
    models.DLRMDCNv2(bottom_mlp=(64, 16), top_mlp=(128, 64, 1), cross_rank=32), clicks
  )
  assert dot >= 0.95 * ceiling, (dot, ceiling)
  if teacher == "multiplicative":
    assert cross >= dot - 0.002, (cross, dot)
