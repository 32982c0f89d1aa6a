"""The known data sets, read from the shared folder: sizes, shares and splits as published."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.config import ConfigError
from jaxrec.config.experiment import DataConfig
from jaxrec.data import registry
from jaxrec.data.datasets import online_retail
from jaxrec.data.events import event_log
from jaxrec.data.readers import reader as reader_lib

EXPECTED = {
  # dataset: rows, test rows, share of positives, features, dense
  "adult": (48_842, 16_281, 0.2393, 13, 5),
  "census_income": (99_762, None, 0.0620, 40, 7),
  "movietweetings": (141_695, 28_339, 0.50, 6, 3),
  "vehicle_coupon": (12_684, None, 0.5684, 24, 0),
  "online_retail": (None, None, 0.5, 4, 0),
}


@pytest.fixture
def load(shared_data, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))

  def load(name, **fields):
    config = DataConfig(name, str(shared_data), **{"test_fraction": 0.2, **fields})
    return registry.load(config, embedding_dim=8)

  return load


@pytest.mark.parametrize("name", EXPECTED)
def test_a_known_data_set_has_its_published_size_and_share(load, name):
  found = load(name)
  rows, num_test, share, num_features, num_dense = EXPECTED[name]
  counts = [found.num_examples(split) for split in ("train", "val", "test")]
  if rows is not None:
    assert sum(counts) == rows
  if num_test is not None:
    assert counts[2] == num_test
  else:
    assert counts[2] / sum(counts) == pytest.approx(0.2, abs=0.01)
  assert counts[1] / (counts[0] + counts[1]) == pytest.approx(0.1, abs=0.01)
  assert (len(found.spec.features), found.spec.num_dense) == (num_features, num_dense)
  labels = np.concatenate([
    found.read(np.arange(n), split).labels[found.spec.labels[0]]
    for split, n in zip(("train", "val", "test"), counts, strict=True)
  ])  # fmt: skip
  assert labels.mean() == pytest.approx(share, abs=0.005)


def test_a_folder_without_the_file_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r"dataset adult: .*adult_48842\.csv\.gz: no such file"):
    registry.load(DataConfig("adult", str(tmp_path)), embedding_dim=8)
  with pytest.raises(ConfigError, match="--data_dir names the folder that holds"):
    registry.load(DataConfig("adult"), embedding_dim=8)


def test_no_history_holds_the_present_or_the_future(shared_data):
  import pyarrow.parquet as pq

  events = pq.read_table(shared_data / online_retail.FILE)
  config = DataConfig("online_retail")
  reader = event_log.examples(reader_lib.ArrowTable(events), online_retail.roles(config))
  made, (log,) = reader.table.to_pydict(), reader.logs.values()
  assert 2 * 250_000 < len(made["ts"]) < 2 * 397_924
  users = np.array(made["user"])
  moments: dict[tuple[int, int], set[str]] = {}
  past: dict[int, list[tuple[int, str]]] = {}
  first_sold: dict[str, int] = {}
  for row in events.to_pylist():
    moments.setdefault((row["user"], row["ts"]), set()).add(row["item"])
    past.setdefault(row["user"], []).append((row["ts"], row["item"]))
    first_sold[row["item"]] = min(row["ts"], first_sold.get(row["item"], row["ts"]))
  rng = np.random.default_rng(0)
  for k in rng.integers(0, len(users), 400).tolist():
    user, ts = int(made["user"][k]), made["ts"][k]
    before = [item for when, item in past[user] if when < ts]
    span = made["history"][k]
    assert log[span["begin"] : span["end"]].to_pylist() == before
    assert len(before) >= config.events.min_history
    assert (made["item"][k] in moments[user, ts]) == bool(made["bought"][k])
    assert made["bought"][k] or first_sold[made["item"][k]] < ts
