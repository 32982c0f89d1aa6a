"""Logistic regression on one-hot ids and dense values: what a model must beat to be worth its
layers.

It is trained like any model here, on tables one wide (for T labels, T wide), so it sees as many
examples and as large a vocabulary; only interactions are out of its reach. Its rates are the best
of a sweep on the default data (rows 0.1, 0.05, 0.02, 0.01: AUC .728, .733, .734, .732 after 2,000
steps of 2,048).

Read next: jaxrec/models/linear.py.
"""

from __future__ import annotations

import dataclasses

import jax
import optax

from jaxrec import config as config_lib
from jaxrec import tables as tables_lib
from jaxrec.data import pipeline
from jaxrec.data.pipeline.prefetch import prefetch
from jaxrec.data.views import view, wide_features
from jaxrec.models import linear
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import evaluation, state, step


def fit(run: run_lib.Run) -> dict[str, float]:
  """Its test metrics after ``baseline_steps`` batches of the run's data, or as many as the run."""
  dataset = view.original(run.dataset)
  labels = run.spec.labels
  features = as_weights(dataset.spec.features, len(labels))
  model = linear.LogisticRegression(len(labels))
  tx = state.Optimizers(
    dense=optax.adam(1e-2),
    rows=tables_lib.rowwise_adagrad(0.02, eps=1e-8),
  )
  spec = dataclasses.replace(run.spec, features=features)
  current = state.init_state(jax.random.key(run.config.seed), model, spec, tx=tx)
  step_fn = jax.jit(step.make_step(model, tx, label=labels, loss=run.loss()), donate_argnums=0)
  host_batches = pipeline.batches(
    dataset,
    run.config.batch_size,
    num_steps=min(run.config.baseline_steps, run.config.steps),
    seed=run.config.seed,
    plan=current.tables.plan,
    options=pipeline.InputOptions(num_workers=run.config.data.num_workers),
  )
  with prefetch(host_batches, run.config.data.prefetch_depth) as feed:
    for batch in feed:
      current, seen = step_fn(current, batch)
      seen.loss_sum.block_until_ready()
  whole = dataclasses.replace(run, dataset=dataset)
  batches = whole.eval_batches("test", run.config.test_examples, current.tables.plan)
  return evaluation.evaluate(model, current, batches, label=labels)


def as_weights(
  features: tuple[config_lib.FeatureConfig, ...], num_labels: int
) -> tuple[config_lib.FeatureConfig, ...]:
  """``features`` on tables of one number a row and label that start at zero."""
  return tuple(
    dataclasses.replace(
      feature,
      combiner="sum" if feature.combiner == "none" else feature.combiner,
      table=wide_features.weights_of(feature.table, num_labels),
    )
    for feature in features
  )
