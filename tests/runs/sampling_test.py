"""Trained on a tenth of the negatives, a model still predicts the rates of all the data."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxrec import config, data, models, tables, training
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.pipeline import counter_rng
from jaxrec.runs import terminal
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.setup import run as run_lib

RATE = 0.1
SIZE = 120_000  # unsampled training examples
BATCH = 512


@dataclasses.dataclass(frozen=True)
class Log:
  """A finite part of the synthetic log, with a second label that goes with the first.

  ``keep_rate`` keeps so many of the training negatives, the examples whose labels are all 0, chosen
  by a hash of the row.
  """

  source: Any
  keep_rate: float = 1.0
  labels: tuple[str, ...] = ("click",)

  @functools.cached_property
  def spec(self):
    return dataclasses.replace(self.source.spec, labels=self.labels)

  @functools.cached_property
  def kept(self):
    rows = np.arange(SIZE)
    labels = self._read(rows, "train").labels
    is_positive = np.any([labels[name] == 1 for name in self.labels], axis=0)
    draws = counter_rng.uniform(counter_rng.stream_key("kept"), rows)
    return rows[is_positive | (draws < self.keep_rate)]

  def num_examples(self, split):
    return len(self.kept) if split == "train" else 120_000

  def read(self, indices, split="train"):
    return self._read(self.kept[indices] if split == "train" else indices, split)

  def _read(self, indices, split):
    batch = self.source.read(indices, split)
    click = batch.labels["click"]
    draws = counter_rng.uniform(counter_rng.stream_key("like", split), indices)
    like = (draws < np.where(click == 1, 0.3, 0.1)).astype(np.float32)
    return batch.replace(
      labels={name: {"click": click, "like": like}[name] for name in self.labels}
    )


@functools.cache
def source():
  """A log that a small model learns well in a few hundred steps."""
  features = [config.FeatureConfig("item", config.TableConfig("item", 20, 4))]
  return data.synthetic(features, num_dense=4, seed=0)


@functools.cache
def trained(labels, keep_rate, corrected=True):
  """Figures on unsampled data of a model trained on sampled data."""
  log = Log(source(), keep_rate, labels)
  settings = experiment_lib.ExperimentConfig(
    data=experiment_lib.DataConfig(negative_keep_rate=keep_rate if corrected else 1.0)
  )
  model = models.DLRM(bottom_mlp=(16, 4), top_mlp=(16, len(labels)))
  tx = training.Optimizers(
    dense=optax.adam(optax.cosine_decay_schedule(1e-2, 800)), rows=tables.rowwise_adagrad(0.05)
  )
  run = run_lib.Run(
    settings, workdir_lib.Workdir("unused"), terminal.silent(), log, model, tx, ceiling=None
  )
  state, step = run.initial_state(), jax.jit(run.step_fn(), donate_argnums=0)
  window = run.empty_window()
  for batch in pipeline.batches(log, BATCH, num_steps=800):
    state, seen = step(state, batch)
    window = window.merge(seen)
  figures = training.evaluate(model, state, pipeline.batches(log, 8000, split="test"), label=labels)
  return log, figures, window.compute(labels)


def test_a_tenth_of_the_negatives_yields_calibrated_predictions_of_all_the_data():
  log, figures, window = trained(("click",), RATE)
  assert log.num_examples("train") < 0.6 * SIZE
  assert 0.98 <= figures["calibration"] <= 1.02, figures
  assert window["calibration"] == pytest.approx(1, abs=0.03)  # of the sample, in its own terms


def test_without_the_correction_predictions_are_far_too_high():
  _, figures, _ = trained(("click",), RATE, corrected=False)
  assert figures["calibration"] > 1.3


def test_the_correction_costs_little_against_all_the_data():
  _, sampled, _ = trained(("click",), RATE)
  _, whole, _ = trained(("click",), 1.0)
  assert sampled["auc"] == pytest.approx(whole["auc"], abs=0.01)
  assert sampled["logloss"] == pytest.approx(whole["logloss"], rel=0.01)


def test_each_of_several_labels_is_calibrated_though_all_decide_what_is_kept():
  _, figures, window = trained(("click", "like"), RATE)
  assert 0.98 <= figures["calibration"] <= 1.02, figures
  assert 0.98 <= figures["like/calibration"] <= 1.02, figures
  assert window["calibration"] == pytest.approx(1, abs=0.03)
  assert window["like/calibration"] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
def test_the_offset_undoes_the_odds_of_the_sample(rate):
  """Bayes' rule in float64: true odds p / (1 - p) are p / (r (1 - p)) among what is kept."""
  p = np.array([0.001, 0.2, 0.9])
  among_kept = p / (p + rate * (1 - p))
  loss = run_lib.Run.loss(
    run_lib.Run(
      experiment_lib.ExperimentConfig(data=experiment_lib.DataConfig(negative_keep_rate=rate)),
      None, None, Log(source()), None, None, None,
    )
  )  # fmt: skip
  logits = np.log(p) - np.log1p(-p)
  expected = np.log(among_kept) - np.log1p(-among_kept)
  np.testing.assert_allclose(loss.trained_logits(logits), expected, rtol=1e-12)
