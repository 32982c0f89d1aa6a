"""An interest that shows only more than 50 steps back: who finds it (T6).

A user's history holds 15 of 100 groups of items more often than by chance, but for the last 50
steps, and the candidate is of one of these groups or not. Items of a group have vectors near to
each other and are not the same, as items described by their content are. No user is seen twice.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.redrawn import RedrawnSearch
from jaxrec import models, tables, training
from jaxrec.config import FeatureConfig, TableConfig
from jaxrec.features import Batch, BatchSpec, IdBags
from jaxrec.inputs import row_plan

D, GROUPS, PER_GROUP, LENGTH, RECENT = 16, 100, 20, 1024, 50
ITEMS, INTERESTS, SIZE, STEPS = GROUPS * PER_GROUP, 15, 128, 600
TOP = (32, 1)


def batch_of(rng) -> Batch:
  """Half of the candidates are of a group of interest; one label in twenty is turned over."""
  groups = np.argsort(rng.random((SIZE, GROUPS)), axis=1)
  is_of_interest = rng.random((SIZE, LENGTH)) < 0.3
  is_of_interest[:, -RECENT:] = False
  chosen = np.take_along_axis(groups, rng.integers(0, INTERESTS, (SIZE, LENGTH)), axis=1)
  history = np.where(
    is_of_interest, item_of(rng, chosen), rng.integers(0, ITEMS, (SIZE, LENGTH))
  ).astype(np.int32)
  labels = rng.integers(0, 2, SIZE)
  candidates = item_of(rng, groups[np.arange(SIZE), np.where(labels, 0, INTERESTS)])
  labels ^= rng.random(SIZE) < 0.05
  return Batch(
    dense=np.zeros((SIZE, 0), np.float32),
    ids={
      "item": IdBags(candidates.astype(np.int32)),
      "history": IdBags(history.reshape(-1), np.arange(SIZE + 1, dtype=np.int32) * LENGTH),
    },
    labels={"click": labels.astype(np.float32)},
    weights=np.ones(SIZE, np.float32),
    groups={},
    rows=None,
  )


def item_of(rng, groups):
  return groups * PER_GROUP + rng.integers(0, PER_GROUP, groups.shape)


def content_vectors(rng):
  """Cosines of 0.86 within a group, of 0 between two."""
  centres = np.repeat(rng.normal(size=(GROUPS, D)), PER_GROUP, axis=0)
  return jnp.asarray(centres + 0.4 * rng.normal(size=(ITEMS, D)), jnp.float32)


def auc_of(model: nn.Module, seed: int) -> float:
  item = TableConfig("item", ITEMS, D)
  history = FeatureConfig("history", item, combiner="none", ids_per_bag=LENGTH)
  spec = BatchSpec((FeatureConfig("item", item), history), num_dense=0, labels=("click",))
  tx = training.Optimizers(dense=optax.adam(2e-3), rows=tables.rowwise_adagrad(0.1))
  state = training.init_state(jax.random.key(seed), model, spec, tx=tx)
  vectors = content_vectors(np.random.default_rng([seed, 1]))
  first = tables.with_table(state.tables, "item", vectors)
  state = dataclasses.replace(state, tables=first)
  step = jax.jit(training.make_step(model, tx), donate_argnums=0)

  def batches(stream, number):
    rng = np.random.default_rng([seed, stream])
    for _ in range(number):
      yield row_plan.plan_rows(batch_of(rng), first.plan)

  for batch in batches(2, STEPS):
    state, _ = step(state, batch)
  return training.evaluate(model, state, batches(3, 40))["auc"]


@pytest.mark.nightly
def test_eta_hears_what_lies_far_back_and_a_redrawn_hash_hears_less(nightly):
  seeds = range(nightly.trials(3, sample=1))
  eta = models.ETA(TOP)
  few_bits = models.ETA(TOP, num_bits=D)
  cases = {
    "din": models.DIN(TOP, short_length=RECENT),
    "full": models.FullAttention(TOP),
    "eta": eta,
    "few_bits": few_bits,
    "redrawn": few_bits.clone(search=RedrawnSearch(48, D)),
  }
  aucs = {name: np.array([auc_of(model, seed) for seed in seeds]) for name, model in cases.items()}
  means = {name: found.mean() for name, found in aucs.items()}
  assert means["din"] < 0.55, aucs  # the latest steps say nothing
  assert means["eta"] >= means["din"] + 0.05, aucs
  assert means["eta"] >= means["full"] - 0.01, aucs
  assert (aucs["few_bits"] > aucs["redrawn"] + 0.005).all(), aucs
