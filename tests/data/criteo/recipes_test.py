"""Both recipes equal a literal reference, and the bytes depend on nothing but files and recipe."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.data import criteo
from jaxrec.data.criteo import atomic, blocks, stages
from tests.data.criteo import cases as criteo_cases
from tests.data.criteo import reference as criteo_reference

SIZES = (1500, 900, 1, 1100, 777)


def assert_equals(dataset, expected):
  splits, vocab_sizes = expected
  found = criteo_cases.read_all(dataset)
  assert set(found) == set(splits)
  for split, columns in splits.items():
    for name, values in columns.items():
      np.testing.assert_array_equal(found[split][name], values, err_msg=f"{split} {name}")
  assert list(dataset.meta["vocab_sizes"]) == vocab_sizes
  assert [f.table.vocab_size for f in dataset.spec.features] == vocab_sizes


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("raw")
  criteo_cases.write_days(folder, SIZES)
  return folder


@pytest.fixture(scope="module")
def days(raw):
  return [criteo_reference.read_day(raw / f"day_{day}") for day in range(len(SIZES))]


@pytest.fixture(autouse=True)
def without_sync(monkeypatch):
  monkeypatch.setattr(atomic, "_sync_one", lambda path: None)  # 200 times 3 ms a preparation


@pytest.fixture
def small_shards(monkeypatch):
  """Several shards, and a last block that is short."""
  monkeypatch.setattr(blocks, "SHARD_BLOCKS", 1)
  monkeypatch.setattr(blocks, "SHARD_ROWS", blocks.BLOCK_ROWS)


@pytest.mark.parametrize(
  "settings",
  [{}, {"max_rows": 50}, {"sub_sample_rate": 0.6}, {"max_rows": 7, "sub_sample_rate": 0.2}],
)
def test_dlrm_equals_the_literal_reference(raw, days, tmp_path, small_shards, settings):
  expected = criteo_reference.dlrm(days, **settings)
  fields = {
    "max_rows_per_table": settings.get("max_rows"),
    "sub_sample_rate": settings.get("sub_sample_rate", 0.0),
  }
  dataset = criteo_cases.load(criteo_cases.data_config(raw, tmp_path, "dlrm", **fields))
  assert_equals(dataset, expected)
  assert dataset.num_examples("train") > 1024


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 40])
def test_mlperf_equals_the_literal_reference(raw, days, tmp_path, small_shards, threshold):
  expected = criteo_reference.mlperf(days, frequency_threshold=threshold)
  data = criteo_cases.data_config(raw, tmp_path, "mlperf", frequency_threshold=threshold)
  dataset = criteo_cases.load(data)
  assert_equals(dataset, expected)
  ids = expected[0]["train"]["ids"]
  assert (ids == 1).any() == (threshold > 1) and ids.min() == (1 if threshold > 1 else 2)


def test_mlperf_shifts_each_day_by_its_own_minimum(raw, days, tmp_path):
  minima = [min(min(dense) for _, dense, _ in rows) for rows in days]
  assert len(set(minima)) > 1  # or the reference could not tell one from the other
  dataset = criteo_cases.load(criteo_cases.data_config(raw, tmp_path, "mlperf"))
  assert np.isfinite(dataset.read(np.arange(2000)).dense).all()


def test_mlperf_shuffles_the_training_days_and_dlrm_does_not(raw, days, tmp_path):
  labels = [row[0] for rows in days[:-1] for row in rows]
  for recipe in ("dlrm", "mlperf"):
    dataset = criteo_cases.load(criteo_cases.data_config(raw, tmp_path, recipe))
    found = dataset.read(np.arange(len(labels))).labels["click"].astype(int).tolist()
    assert sorted(found) == sorted(labels)
    assert (found == labels) == (recipe == "dlrm")


def test_the_halves_of_an_odd_last_day_are_test_and_val_in_dlrm_and_val_and_test_in_mlperf(
  raw, tmp_path
):
  for recipe, first, second in (("dlrm", "test", "val"), ("mlperf", "val", "test")):
    dataset = criteo_cases.load(criteo_cases.data_config(raw, tmp_path, recipe))
    assert dataset.num_examples(first) == 389 and dataset.num_examples(second) == 388


@pytest.mark.parametrize("recipe", ["dlrm", "mlperf"])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_kaggles_one_file_is_seven_days(tmp_path, monkeypatch, recipe, is_gzipped):
  monkeypatch.setattr(stages, "_PLACE_BYTES", 30_000)  # so that days begin in the middle
  path = criteo_cases.write_kaggle(tmp_path / "raw", 2003, is_gzipped=is_gzipped)
  rows = criteo_reference.cut_kaggle(criteo_reference.read_day(path))
  assert [len(day) for day in rows] == [287, 286, 286, 286, 286, 286, 286]
  expected = getattr(criteo_reference, recipe)(rows)
  data = criteo_cases.data_config(tmp_path / "raw", tmp_path, recipe, chunk_bytes=10_000)
  assert_equals(criteo_cases.load(data), expected)


def test_gzipped_days_are_read_like_plain_ones(tmp_path):
  prepared = []
  for is_gzipped in (False, True):
    folder = tmp_path / str(is_gzipped)
    criteo_cases.raw_files.write_days(folder, [300, 200], is_gzipped=is_gzipped)
    path = criteo.prepare(criteo_cases.data_config(folder, tmp_path / "out", "mlperf"))
    prepared.append(criteo_cases.prepared_bytes(path))
  assert prepared[0] == prepared[1]


@pytest.mark.parametrize("recipe", ["dlrm", "mlperf"])
def test_the_bytes_are_the_same_whatever_the_chunk_and_the_memory(
  raw, tmp_path, monkeypatch, small_shards, recipe
):
  def prepared(name, **fields):
    data = criteo_cases.data_config(raw, tmp_path / name, recipe, **fields)
    return criteo_cases.prepared_bytes(criteo.prepare(data))

  whole = prepared("whole", chunk_bytes=1 << 24)
  assert len(whole) > 6 and all(whole.values())
  for chunk_bytes in (97, 5_000, 70_001):
    assert prepared(f"chunk {chunk_bytes}", chunk_bytes=chunk_bytes) == whole
  # Counting in tiny blocks, spilling to disk after each, and merging in tiny ranges.
  counter, build = stages.sorted_runs.Counter.__init__, stages.vocabulary.build
  monkeypatch.setattr(
    stages.sorted_runs.Counter,
    "__init__",
    lambda self, columns, scratch: counter(self, columns, scratch, block_rows=64, max_entries=900),
  )
  monkeypatch.setattr(
    stages.vocabulary, "build", lambda *args, **kw: build(*args, **kw, max_entries=70)
  )
  monkeypatch.setattr(stages, "_ENCODED_ROWS", 50)
  assert prepared("little memory") == whole


@pytest.mark.nightly
def test_the_bytes_are_the_same_whatever_the_number_of_workers(tmp_path):
  criteo_cases.write_days(tmp_path / "raw", SIZES)
  prepared = []
  for workers in (1, 3):
    data = criteo_cases.data_config(
      tmp_path / "raw", tmp_path / str(workers), "mlperf", prepare_workers=workers
    )
    prepared.append(criteo_cases.prepared_bytes(criteo.prepare(data)))
  assert prepared[0] == prepared[1]
