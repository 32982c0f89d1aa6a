"""The shipped configs reach their bars on real data, as the README says they do."""

from __future__ import annotations

import dataclasses

import pytest

from jaxrec import configs
from jaxrec.training import loop

BARS = {
  "adult": 0.918,
  "census_income": 0.949,
  "movietweetings": 0.780,
  "vehicle_coupon": 0.80,
  "adult_wide_deep": 0.925,
  "census_income_wide_deep": 0.951,
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", BARS)
def test_a_shipped_config_beats_its_baseline(name, shared_data, nightly, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  config, seeds = configs.get(name), range(nightly.trials(3, sample=1))
  found = aucs(config, seeds, shared_data, tmp_path / "whole")
  assert sum(found) / len(found) >= BARS[name], found
  if config.model.name == "wide_deep":  # the deep part alone would pass the bar too
    deep = dataclasses.replace(config, model=dataclasses.replace(config.model, name="deep"))
    alone = aucs(deep, seeds, shared_data, tmp_path / "deep")
    assert sum(found) > sum(alone), (found, alone)


def aucs(config, seeds, shared_data, folder):
  """AUC on the test rows, of each seed."""
  data = dataclasses.replace(config.data, data_dir=str(shared_data))
  config = dataclasses.replace(config, data=data, baseline_steps=0)
  return [
    loop.run(dataclasses.replace(config, seed=seed), str(folder / str(seed)))["auc"]
    for seed in seeds
  ]
