"""Prepared Criteo data as a source: order, blocks, caps, bags, and runs of train.py on it."""

from __future__ import annotations

import collections
import pickle
import sys

import hypothesis
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from jaxrec import data
from jaxrec.config import ConfigError, overrides, presets
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import criteo, registry
from jaxrec.data.criteo import blocks, multi_hot, source
from jaxrec.data.pipeline import shuffle
from jaxrec.features import BadExampleError
from tests.data.criteo import cases as criteo_cases
from tests.data.criteo import reference as criteo_reference
from tests.runs import run_helpers

SIZES = (2500, 1700, 901)
NUM_TRAIN = 4202  # day 1 has two rows more: the edges


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("criteo")
  criteo_cases.write_days(folder / "raw", SIZES)
  return folder / "raw", folder / "prepared"


@pytest.fixture(scope="module")
def dataset(folders):
  return criteo_cases.load(criteo_cases.data_config(*folders, "mlperf"))


@hypothesis.given(
  st.integers(1, 5000), st.integers(1, 300), st.integers(0, 3), st.integers(0, 2**32 - 1)
)
def test_an_epoch_by_blocks_holds_every_example_once(num_examples, block_rows, epoch, seed):
  found = shuffle.permuted_by_block(
    np.arange(num_examples),
    num_examples=num_examples,
    block_rows=block_rows,
    seed=seed,
    epoch=epoch,
  )
  assert sorted(found.tolist()) == list(range(num_examples))


@hypothesis.given(st.integers(1, 3000), st.integers(1, 100), st.data())
def test_an_example_of_the_order_depends_on_its_place_alone(num_examples, block_rows, drawn):
  whole = shuffle.permuted_by_block(
    np.arange(num_examples), num_examples=num_examples, block_rows=block_rows, seed=5
  )
  some = np.array(drawn.draw(st.lists(st.integers(0, num_examples - 1), max_size=50)), np.int64)
  part = shuffle.permuted_by_block(some, num_examples=num_examples, block_rows=block_rows, seed=5)
  np.testing.assert_array_equal(part, whole[some])


def test_seeds_and_epochs_have_orders_of_their_own_and_rows_of_a_block_are_shuffled():
  def rows(**options):
    places = np.arange(40_000)
    return shuffle.permuted_by_block(places, num_examples=40_000, block_rows=100, **options)

  orders = {rows(seed=seed, epoch=epoch).tobytes() for seed in range(2) for epoch in range(2)}
  assert len(orders) == 4
  found = rows()
  assert (np.diff(found) == 1).mean() < 0.01  # hardly any two neighbours stay together
  first = np.unique(found[:1600] // 100)
  assert len(first) <= 17  # 16 blocks, and a part of one more where the short block moved them
  assert len(np.unique(found[:100] // 100)) > 10  # and a batch has rows of nearly all of them
  corner = [rows(seed=seed)[0] // 100 for seed in range(60)]
  assert len(set(corner)) > 40  # any block may be the first


def test_the_short_last_block_stands_anywhere():
  where = set()
  for seed in range(60):
    found = shuffle.permuted_by_block(
      np.arange(16 * 20 * 10 + 7), num_examples=16 * 20 * 10 + 7, block_rows=20, seed=seed
    )
    where.add(int(np.flatnonzero(found >= 3200).mean()) // 320)
  assert len(where) > 7


def test_batches_hold_every_example_once_an_epoch_and_resume_anywhere(dataset):
  assert dataset.num_examples("train") == NUM_TRAIN == 2 * 11 * 191
  stream = list(dataset.batches(191, num_steps=44))
  whole = dataset.read(np.arange(NUM_TRAIN)).dense
  epoch = [np.concatenate([batch.dense for batch in stream[:22]]), whole]
  np.testing.assert_array_equal(*(np.sort(dense.view(np.uint32) @ WEIGHTS) for dense in epoch))
  assert not np.array_equal(stream[0].dense, stream[22].dense)
  resumed = list(dataset.batches(191, num_steps=12, start=32 * 191))
  for a, b in zip(stream[32:], resumed, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


WEIGHTS = np.random.default_rng(0).integers(1, 2**63, 13).astype(np.uint64)


def test_worker_processes_read_the_same_batches(dataset):
  options = data.InputOptions(num_workers=2)
  workers = list(dataset.batches(500, num_steps=3, options=options))
  for a, b in zip(dataset.batches(500, num_steps=3), workers, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_reads_each_block_about_once_an_epoch(dataset, monkeypatch):
  monkeypatch.setattr(source, "_CACHED_BLOCKS", 3)
  fresh = pickle.loads(pickle.dumps(dataset))
  reads = collections.Counter()
  opened = blocks.open_split

  class Counted:
    def __init__(self, folder, split):
      self._blocks = opened(folder, split)

    def __getitem__(self, number):
      reads[number] += 1
      return self._blocks[number]

  monkeypatch.setattr(blocks, "open_split", Counted)
  monkeypatch.setattr(shuffle, "_WINDOW_BLOCKS", 2)
  options = data.InputOptions(num_threads=1)
  for _ in fresh.batches(191, num_steps=22, options=options):
    pass
  assert sum(reads.values()) <= 2 * len(reads) and len(reads) == 5


def test_tfds_reads_the_folder_without_tensorflow(dataset):
  found = tfds.builder_from_directory(dataset.folder)
  assert {name: info.num_examples for name, info in found.info.splits.items()} == {
    "train": 5, "val": 1, "test": 1,
  }  # fmt: skip
  block = found.as_data_source("train")[1]
  batch = dataset.read(np.arange(1024, 2048))
  np.testing.assert_array_equal(block["dense"], batch.dense)
  np.testing.assert_array_equal(block["ids"][:, 4], batch.ids["C5"].values)
  np.testing.assert_array_equal(block["click"], batch.labels["click"])
  assert "tensorflow" not in sys.modules


def test_read_refuses_what_is_not_there(dataset):
  for indices in ([-1], [NUM_TRAIN]):
    with pytest.raises(ValueError, match=f"'train' has examples 0..{NUM_TRAIN - 1}"):
      dataset.read(np.array(indices))
  with pytest.raises(ValueError, match=r"split 'tset': expected one of \['test', 'train', 'val'\]"):
    dataset.num_examples("tset")


def test_a_capped_table_takes_ids_modulo_its_rows(folders, dataset):
  caps = tuple(range(5, 31))
  capped = criteo_cases.load(
    criteo_cases.data_config(*folders, "mlperf", vocab_sizes=caps, max_rows_per_table=17)
  )
  assert capped.folder == dataset.folder
  batch, whole = (d.read(np.arange(3000)) for d in (capped, dataset))
  for number, feature in enumerate(capped.spec.features):
    rows = min(caps[number], 17, dataset.meta["vocab_sizes"][number])
    assert feature.table.vocab_size == rows
    np.testing.assert_array_equal(
      batch.ids[feature.name].values, whole.ids[feature.name].values % rows
    )


@pytest.mark.parametrize("kind", ["uniform", "pareto"])
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 23])
def test_multi_hot_tables_equal_numpys_whatever_the_chunk(tmp_path, kind, chunk_bytes):
  vocab_sizes, lengths = [500, 7, 1200, 1, 90], [3, 1, 12, 2, 1]
  expected = criteo_reference.multi_hot(vocab_sizes, lengths, kind)
  multi_hot.write_tables(
    tmp_path / "tables", vocab_sizes, lengths, kind=kind, chunk_bytes=chunk_bytes
  )
  assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
    "0.npy",
    "2.npy",
    "3.npy",
  ]
  for number in (0, 2, 3):
    table = tmp_path / "tables" / f"{number}.npy"
    ids = np.arange(vocab_sizes[number], dtype=np.int32)
    bags = multi_hot.look_up(table, ids)
    assert bags.dtype == np.int32
    np.testing.assert_array_equal(bags, expected[number])


def test_pareto_draws_beyond_int32_are_among_those_compared():
  drawn = np.random.RandomState(0).pareto(a=0.25, size=2000)
  assert (drawn >= 2**31).any()


def test_drawing_40_million_bags_holds_a_chunk_in_memory(monkeypatch):
  largest = 0

  class Table:
    def __len__(self):
      return 40_000_000

    def __getitem__(self, part):
      return np.empty((min(part.stop, 40_000_000) - part.start, 99), np.int32)

  class Random:
    def randint(self, low, high, size):
      nonlocal largest
      largest = max(largest, 8 * size[0] * size[1])
      return np.broadcast_to(np.int64(0), size)

  monkeypatch.setattr(multi_hot, "range", lambda *args: range(0, 10**6, args[2]), raising=False)
  multi_hot._fill(Table(), Random(), "uniform", multi_hot._CHUNK_BYTES // (8 * 99))
  assert 0 < largest <= multi_hot._CHUNK_BYTES


def test_bags_are_the_lines_of_an_example_s_ids(folders, dataset):
  lengths = (3, 2, 1) * 8 + (1, 5)
  config = criteo_cases.data_config(*folders, "mlperf", ids_per_bag=lengths, multi_hot="uniform")
  bagged = criteo_cases.load(config)
  sizes = [feature.table.vocab_size for feature in bagged.spec.features]
  tables = criteo_reference.multi_hot(sizes, lengths, "uniform")
  indices = np.array([5, 0, 4000])
  batch, single = bagged.read(indices), dataset.read(indices)
  for number, name in enumerate(criteo_cases.NAMES):
    expected = tables[number][single.ids[name].values].tolist()
    assert batch.ids[name].to_lists() == expected
    assert len(expected[0]) == lengths[number]
  assert next(bagged.batches(64, num_steps=1)).rows is not None
  assert len(pickle.dumps(bagged)) < 20_000  # files, not what is in them


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"ids_per_bag": (2,) * 26}, "Criteo has one id a feature.*data.criteo.multi_hot=uniform"),
    ({"multi_hot": "uniform"}, "how long the bags are must be given too, in data.ids_per_bag"),
    (
      {"vocab_sizes": (5,)},
      "data.vocab_sizes: expected one value for each of the 26 features",
    ),
  ],
)
def test_a_setting_that_does_not_fit_is_named(folders, fields, message):
  with pytest.raises(ConfigError, match=message):
    criteo_cases.load(criteo_cases.data_config(*folders, **fields))


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("data.criteo.recipe=mlprf", "data.criteo.recipe: 'mlprf'; did you mean 'mlperf'"),
    ("data.criteo.multi_hot=zipf", "data.criteo.multi_hot: 'zipf'; Known: none, pareto, uniform"),
    ("data.criteo.sub_sample_rate=1", r"data.criteo.sub_sample_rate: must lie in \[0, 1\), got 1"),
    ("data.criteo.chunk_bytes=0", r"data.criteo.chunk_bytes: must lie in \[1, 2\^31\), got 0"),
  ],
)
def test_a_bad_field_is_named(override, message):
  with pytest.raises(ConfigError, match=message):
    overrides.with_overrides(experiment_lib.ExperimentConfig(), [override])
  with pytest.raises(ConfigError, match="only the recipe dlrm drops negatives"):
    experiment_lib.CriteoConfig(recipe="mlperf", sub_sample_rate=0.5)


def test_a_prepared_folder_can_be_given_in_place_of_the_raw_one(folders, dataset, tmp_path):
  config = criteo_cases.data_config(dataset.folder, tmp_path, "mlperf")
  again = criteo_cases.load(config)
  assert again.folder == dataset.folder and not list(tmp_path.iterdir())
  with pytest.raises(
    ConfigError, match="was prepared with mlperf, not dlrm; use --set data.criteo"
  ):
    criteo_cases.load(criteo_cases.data_config(dataset.folder, tmp_path, "dlrm"))


def test_the_cache_is_where_the_environment_says(folders, monkeypatch, tmp_path):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  raw, _ = folders
  config = experiment_lib.DataConfig(dataset="criteo", data_dir=str(raw))
  assert criteo.prepare(config).parent == tmp_path / "cache"
  assert not list(raw.glob("*criteo*"))


@pytest.mark.parametrize("name", ["kaggle", "terabyte", "mlperf_v1", "mlperf_dcnv2"])
def test_the_shipped_presets_load_criteo(folders, name):
  raw, prepared = folders
  given = [f"data.data_dir={raw}", f"data.criteo.prepared_dir={prepared}", "data.dataset=criteo"]
  config = overrides.with_overrides(presets.get(name), given)
  loaded = registry.load(config.data, embedding_dim=config.model.embedding_dim)
  rows = [feature.table.vocab_size for feature in loaded.spec.features]
  assert rows == [
    min(cap, size)
    for cap, size in zip(config.data.vocab_sizes, loaded.meta["vocab_sizes"], strict=True)
  ]
  expected = {"kaggle": "dlrm", "terabyte": "dlrm", "mlperf_v1": "dlrm", "mlperf_dcnv2": "mlperf"}
  recipe = loaded.meta["recipe"]
  assert recipe["name"] == expected[name]
  assert recipe["max_rows"] == {"terabyte": 10_000_000, "mlperf_v1": 40_000_000}.get(name, 0)
  assert recipe["sub_sample_rate"] == (0.875 if name == "terabyte" else 0)
  bags = [feature.ids_per_bag for feature in loaded.spec.features]
  assert sum(bags) == (214 if name == "mlperf_dcnv2" else 26)
  assert loaded.read(np.arange(3)).ids["C1"].capacity == 3 * bags[0]


def tiny(folders, *more):
  raw, prepared = folders
  return [
    "--config=kaggle", "--dataset=criteo", f"--data_dir={raw}", "--steps=4", "--batch_size=64",
    f"--set=data.criteo.prepared_dir={prepared}", "--set=model.bottom_mlp=8,4",
    "--set=model.top_mlp=8,1", "--set=model.embedding_dim=4", "--set=eval_every=4",
    "--set=baseline_steps=0", *more,
  ]  # fmt: skip


@pytest.mark.nightly  # it compiles a step of 26 features
def test_train_py_trains_a_preset_on_raw_files(folders, tmp_path):
  run = run_helpers.run(tiny(folders, f"--workdir={tmp_path}/run"), tmp_path)
  assert run.code == 0, run.stderr
  assert run.result["dataset"] == "criteo" and 0 < run.result["auc"] < 1
  assert "[2/3] criteo: recipe dlrm, 4,202 train, 451 test, 450 val" in run.stderr


def test_train_py_names_a_bad_row_and_makes_no_folder(folders, tmp_path):
  raw = tmp_path / "raw"
  criteo_cases.write_days(raw, (30, 30))
  (raw / "day_0").write_text((raw / "day_0").read_text() + "-1" + "\t" * 39 + "\n")
  run = run_helpers.run(tiny((raw, tmp_path / "out"), f"--workdir={tmp_path}/run"), tmp_path / "io")
  assert run.code == 1
  assert run.stderr.splitlines()[-1].startswith(f"error: {raw}/day_0, line 31: label: expected 0")
  assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_an_unlabeled_test_file_is_refused(tmp_path):
  criteo_cases.write_days(tmp_path / "raw", (30, 30))
  path = tmp_path / "raw" / "day_1"
  path.write_text("".join(text[2:] + "\n" for text in path.read_text().splitlines()))
  with pytest.raises(BadExampleError, match="day_1, line 1: .*is this an unlabeled test file"):
    criteo_cases.load(criteo_cases.data_config(tmp_path / "raw", tmp_path / "out"))
