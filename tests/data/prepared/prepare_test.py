"""A table is prepared once, whole or not at all, and to the same bytes however it is read."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.data import pipeline
from jaxrec.data.prepared import fit_transforms, prepared_table, splits
from jaxrec.data.prepared import prepare as prepare_lib
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError, transforms, transforms_io
from jaxrec.features.schema import Column, Schema
from tests.data import tables
from tests.features import transforms_test

SPLITTER = splits.ByTime("ts", "number", 120.0, 140.0)


def plan_of(table: pa.Table, **fields) -> prepare_lib.Plan:
  return prepare_lib.Plan(reader_lib.ArrowTable(table), tables.SCHEMA, SPLITTER, **fields)


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def table() -> pa.Table:
  return tables.clicks()


@pytest.fixture(scope="module")
def prepared(table, tmp_path_factory) -> pathlib.Path:
  return prepare_lib.prepare(plan_of(table), tmp_path_factory.mktemp("prepared") / "whole")


@pytest.mark.parametrize("chunk_rows", [1, 13, 64, 10_000])
def test_the_bytes_do_not_depend_on_the_chunks(table, prepared, tmp_path, monkeypatch, chunk_rows):
  monkeypatch.setattr(files, "CHUNK_ROWS", chunk_rows)
  monkeypatch.setattr(fit_transforms, "_CHUNK_VALUES", max(2, chunk_rows // 7))
  again = prepare_lib.prepare(plan_of(table), tmp_path / "again")
  assert bytes_of(again) == bytes_of(prepared)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.csv.gz"])
def test_the_bytes_do_not_depend_on_the_form_of_the_file(table, prepared, tmp_path, name):
  reader = reader_lib.open_files(tables.write(table, tmp_path / name))
  plan = dataclasses.replace(plan_of(table), reader=reader)
  ours, theirs = bytes_of(prepare_lib.prepare(plan, tmp_path / "t")), bytes_of(prepared)
  fitted, expected = json.loads(ours.pop("fitted.json")), json.loads(theirs.pop("fitted.json"))
  assert ours == theirs
  if name != "x.parquet":  # where lists are text
    assert (fitted["kinds"].pop("history"), expected["kinds"].pop("history")) == ("text", "number")
    del fitted["digests"]["fitted.json"], expected["digests"]["fitted.json"]
  assert fitted == expected


def test_every_row_is_stored_as_the_transforms_encode_it(table, prepared):
  data = prepared_table.StoredTable(prepared, 8)
  users = list(data.group_names("user"))
  fitted = transforms_io.load(prepared)
  times = table["ts"].to_numpy()
  wanted = {
    "train": np.flatnonzero(times <= 120),
    "val": np.flatnonzero((times > 120) & (times <= 140)),
    "test": np.flatnonzero(times > 140),
  }
  order = np.random.default_rng(0)
  for split, rows in wanted.items():
    assert data.num_examples(split) == len(rows) > 50
    places = order.permutation(len(rows))
    batch = data.read(places, split)
    chosen = table.take(pa.array(rows[places]))
    expected = transforms.to_batch(
      fitted,
      fitted.encode(chosen),
      labels={
        "click": chosen["click"].to_numpy().astype(np.float32),
        "like": np.array([v == "yes" for v in chosen["like"].to_pylist()], np.float32),
      },
      weights=chosen["weight"].to_numpy().astype(np.float32),
      groups={
        "user": np.array([users.index(str(u)) for u in chosen["user"].to_pylist()], np.int32)
      },
    )
    import jax

    assert jax.tree.structure(batch) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(batch), jax.tree.leaves(expected), strict=True):
      assert ours.dtype == theirs.dtype
      np.testing.assert_array_equal(ours, theirs)
  assert data.group_names("user")[batch.groups["user"][0]] == str(chosen["user"][0].as_py())


def test_batches_are_the_same_from_threads_and_from_worker_processes(prepared):
  data = prepared_table.StoredTable(prepared, 8)
  here = list(data.batches(32, num_steps=4, seed=3))
  there = list(data.batches(32, num_steps=4, seed=3, options=pipeline.InputOptions(num_workers=2)))
  for ours, theirs in zip(here, there, strict=True):
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    np.testing.assert_array_equal(ours.ids["city"].values, theirs.ids["city"].values)


def test_transforms_are_fitted_on_training_rows_alone(table, prepared):
  held_out, cities = table["ts"].to_numpy() > 120, table["city"].to_pylist()
  spoiled = table.set_column(
    table.schema.get_field_index("city"), "city",
    pa.array(["unseen" if out else v for v, out in zip(cities, held_out, strict=True)]),
  )  # fmt: skip
  folder = prepare_lib.prepare(plan_of(spoiled), prepared.parent / "spoiled")
  ours, theirs = transforms_io.load(folder), transforms_io.load(prepared)
  assert ours.rows["city"].values.to_pylist() == theirs.rows["city"].values.to_pylist()


def test_fitted_transforms_can_be_used_again_on_other_rows(table, prepared, tmp_path):
  fitted = transforms_io.load(prepared)
  new = tables.clicks(80, seed=4)
  plan = dataclasses.replace(plan_of(new, fitted=fitted), splitter=splits.AllTest())
  folder = prepare_lib.prepare(plan, tmp_path / "new")
  assert transforms_io.digest(transforms_io.load(folder)) == transforms_io.digest(fitted)
  data = prepared_table.StoredTable(folder, 8)
  assert data.num_examples("test") == 80 and data.num_examples("train") == 0
  batch = data.read(np.arange(80), "test")
  transforms_test.same_bits(
    transforms.Encoded(
      np.stack([batch.ids[n].values for n in ("age_buckets", "city", "item", "agent")], 1),
      batch.dense,
      {},
    ),
    fitted.encode(new)._replace(bags={}),
  )


def test_negatives_are_kept_by_a_hash_of_their_row_and_positives_always(table, tmp_path):
  counts = {}
  labels = table["click"].to_numpy() | (np.array(table["like"].to_pylist()) == "yes")
  in_train = table["ts"].to_numpy() <= 120
  for rate in (1.0, 0.5, 0.2):
    folder = prepare_lib.prepare(plan_of(table, negative_keep_rate=rate), tmp_path / str(rate))
    rows = np.fromfile(folder / "rows_train.i64", np.int64)
    counts[rate] = set(rows.tolist())
    assert counts[rate] >= set(np.flatnonzero(in_train & (labels == 1)).tolist())
    for split in ("val", "test"):
      other = np.fromfile(folder / f"rows_{split}.i64", np.int64)
      assert len(other) == np.fromfile(tmp_path / "1.0" / f"rows_{split}.i64", np.int64).size
  negatives = np.flatnonzero(in_train & (labels == 0))
  assert counts[1.0] == set(np.flatnonzero(in_train).tolist())
  assert counts[0.2] < counts[0.5] < counts[1.0]
  assert abs(len(counts[0.5] & set(negatives.tolist())) / len(negatives) - 0.5) < 0.12


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    (
      "click",
      2,
      r"the table, row 77: label 'click': expected 0 or 1, got 2 \(1 bad ones among 500 rows\)",
    ),
    ("click", -1, "row 77: .* got -1 .* is this an unlabeled test file"),
    ("click", None, "the table, row 77: label 'click': expected 0 or 1, got None"),
    ("like", None, "the table, row 77: label 'like': expected a value, got None"),
    ("weight", -0.5, "the table, row 77: weight 'weight': expected a number >= 0, got -0.5"),
    ("weight", None, "the table, row 77: weight 'weight': expected a number >= 0, got nan"),
    ("ts", None, "the table, row 77: time 'ts': is missing; fill it in"),
    ("price", np.inf, "the table, row 77: column 'price': expected a finite number, got inf"),
    ("tags", "a|b|c|d|e", "the table, row 77: column 'tags': a list of 5 values, but max_length"),
  ],
)
def test_a_bad_row_is_named_and_leaves_nothing_behind(table, tmp_path, column, value, message):
  values = table[column].to_pylist()
  values[77] = value
  place = table.schema.get_field_index(column)
  bad = table.set_column(place, column, pa.array(values, table.schema.types[place]))
  with pytest.raises(BadExampleError, match=message):
    prepare_lib.prepare(plan_of(bad), tmp_path / "t")
  assert list(tmp_path.iterdir()) == []


def test_a_label_of_texts_asks_which_one_counts(table, tmp_path):
  schema = dataclasses.replace(tables.SCHEMA, labels={"like": None})
  with pytest.raises(
    BadExampleError,
    match=r"row 0: label 'like': expected 0 or 1, got '(yes|no)'; if.*say which one counts as 1",
  ):
    prepare_lib.prepare(dataclasses.replace(plan_of(table), schema=schema), tmp_path / "t")


def test_a_table_without_rows_or_without_training_rows_is_refused(table, tmp_path):
  with pytest.raises(
    BadExampleError, match="the table: holds no rows to learn from; expected at least one"
  ):
    prepare_lib.prepare(plan_of(table.slice(0, 0)), tmp_path / "t")
  late = dataclasses.replace(plan_of(table), splitter=splits.ByTime("ts", "number", -2.0, -1.0))
  with pytest.raises(BadExampleError, match="no row is left to train on"):
    prepare_lib.prepare(late, tmp_path / "t")
  assert list(tmp_path.iterdir()) == []


def _prepare_and_die(path: str, cache: str, event: str, count: int) -> None:
  """Prepares the file at ``path`` in a process that kills itself at its count-th such event."""
  import sys

  os.environ["JAXREC_CACHE"] = cache
  seen = 0

  def hook(name: str, args: tuple) -> None:
    nonlocal seen
    if name == event and cache in str(args[0] if args else ""):
      seen += 1
      if seen == count:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  prepare_lib.prepare(prepare_lib.Plan(reader_lib.open_files(path), tables.SCHEMA, SPLITTER))


@pytest.mark.nightly
def test_a_preparation_that_is_killed_anywhere_leaves_nothing_that_counts(
  table, prepared, tmp_path, monkeypatch
):
  path = tables.write(table, tmp_path / "x.parquet")
  cache = tmp_path / "cache"
  monkeypatch.setenv("JAXREC_CACHE", str(cache))
  plan = prepare_lib.Plan(reader_lib.open_files(path), tables.SCHEMA, SPLITTER)
  target = cache / "tables" / plan.key()
  context = multiprocessing.get_context("spawn")
  died = 0
  for event, count in (("os.mkdir", 2), ("open", 1), ("open", 6), ("open", 12), ("os.rename", 1)):
    child = context.Process(target=_prepare_and_die, args=(str(path), str(cache), event, count))
    child.start()
    child.join(60)
    died += child.exitcode == -signal.SIGKILL
    assert not target.exists()
  assert died == 5
  assert bytes_of(prepare_lib.prepare(plan)) == bytes_of(prepared)


def test_what_is_prepared_is_found_again_until_anything_changes(table, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  path = tables.write(table, tmp_path / "x.parquet")

  def prepare(**fields):
    reader = reader_lib.open_files(path)
    plan = prepare_lib.Plan(reader, tables.SCHEMA, SPLITTER)
    return prepare_lib.prepare(dataclasses.replace(plan, **fields))

  first = prepare()
  stamp = (first / "meta.json").stat().st_mtime_ns
  assert prepare() == first and (first / "meta.json").stat().st_mtime_ns == stamp
  columns = {**tables.SCHEMA.columns, "age": Column("numeric", buckets=9)}
  others = [
    prepare(splitter=splits.ByChance(0, 0.1, 0.1)),
    prepare(schema=dataclasses.replace(tables.SCHEMA, columns=columns)),
    prepare(negative_keep_rate=0.5),
    prepare(negative_keep_rate=0.5, seed=1),
    prepare(skip_bad_rows=True),
    prepare(fitted=transforms_io.load(first)),
  ]
  kept = [np.fromfile(folder / "rows_train.i64", np.int64).tolist() for folder in others[2:4]]
  assert kept[0] != kept[1]  # another seed, other negatives
  tables.write(tables.clicks(501), path)
  assert len({first, *others, prepare()}) == 8


def test_a_full_disk_is_named(table, tmp_path, monkeypatch):
  def full(self, name, array):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(prepare_lib._Files, "append", full)
  with pytest.raises(
    BadExampleError, match="cannot prepare the table in .*: No space left on device"
  ):
    prepare_lib.prepare(plan_of(table), tmp_path / "t")
  assert list(tmp_path.iterdir()) == []


def test_columns_without_ids_or_without_numbers_are_fine(tmp_path):
  table = pa.table({"x": [0.5, 1.5] * 20, "c": ["a", "b"] * 20, "click": [0, 1] * 20})
  only_dense = Schema({"click": None}, {"x": Column("numeric", buckets=0)})
  only_ids = Schema({"click": None}, {"c": Column("categorical")})
  for k, schema in enumerate((only_dense, only_ids)):
    plan = prepare_lib.Plan(reader_lib.ArrowTable(table), schema, splits.ByChance(0, 0.1, 0.1))
    data = prepared_table.StoredTable(prepare_lib.prepare(plan, tmp_path / str(k)), 4)
    batch = data.read(np.arange(5))
    assert batch.dense.shape == (5, 1 - k) and len(batch.ids) == k
