"""A table is prepared once, whole or not at all, and to the same bytes however it is read."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec.data import (
  files,
  fitting,
  pipeline,
  preparing,
  reading,
  splits,
  stored,
)
from jaxrec.features import BadExampleError, transforms, transforms_file
from jaxrec.features.schema import Column, Schema
from jaxrec.training import fitted, progress, workdir
from tests.data import tables
from tests.features import transforms_test

SPLITTER = splits.ByTime("ts", "number", 120.0, 140.0)


def plan_of(table: pa.Table, **fields) -> preparing.Plan:
  return preparing.Plan(reading.ArrowTable(table), tables.SCHEMA, SPLITTER, **fields)


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def table() -> pa.Table:
  return tables.clicks()


@pytest.fixture(scope="module")
def prepared(table, tmp_path_factory) -> pathlib.Path:
  return preparing.prepare(plan_of(table), tmp_path_factory.mktemp("prepared") / "whole")


@pytest.mark.parametrize("chunk_rows", [1, 13, 64, 10_000])
def test_the_bytes_do_not_depend_on_the_chunks(table, prepared, tmp_path, monkeypatch, chunk_rows):
  monkeypatch.setattr(files, "CHUNK_ROWS", chunk_rows)
  monkeypatch.setattr(fitting, "_CHUNK_VALUES", max(2, chunk_rows // 7))
  again = preparing.prepare(plan_of(table), tmp_path / "again")
  assert bytes_of(again) == bytes_of(prepared)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.csv.gz"])
def test_the_bytes_do_not_depend_on_the_form_of_the_file(table, prepared, tmp_path, name):
  reader = reading.open_files(tables.write(table, tmp_path / name))
  plan = dataclasses.replace(plan_of(table), reader=reader)
  ours, theirs = bytes_of(preparing.prepare(plan, tmp_path / "t")), bytes_of(prepared)
  fitted, expected = json.loads(ours.pop("fitted.json")), json.loads(theirs.pop("fitted.json"))
  assert ours == theirs
  if name != "x.parquet":  # where lists are text
    assert (fitted["kinds"].pop("history"), expected["kinds"].pop("history")) == ("text", "number")
    del fitted["digests"]["fitted.json"], expected["digests"]["fitted.json"]
  assert fitted == expected


def test_every_row_is_stored_as_the_transforms_encode_it(table, prepared):
  data = stored.StoredTable(prepared, 8)
  users = list(data.group_names("user"))
  fitted = transforms_file.load(prepared)
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
  data = stored.StoredTable(prepared, 8)
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
  folder = preparing.prepare(plan_of(spoiled), prepared.parent / "spoiled")
  ours, theirs = transforms_file.load(folder), transforms_file.load(prepared)
  assert ours.rows["city"].values.to_pylist() == theirs.rows["city"].values.to_pylist()


def test_fitted_transforms_can_be_used_again_on_other_rows(table, prepared, tmp_path):
  fitted = transforms_file.load(prepared)
  new = tables.clicks(80, seed=4)
  plan = dataclasses.replace(plan_of(new, fitted=fitted), splitter=splits.AllTest())
  folder = preparing.prepare(plan, tmp_path / "new")
  assert transforms_file.digest(transforms_file.load(folder)) == transforms_file.digest(fitted)
  data = stored.StoredTable(folder, 8)
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
    folder = preparing.prepare(plan_of(table, negative_keep_rate=rate), tmp_path / str(rate))
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
    preparing.prepare(plan_of(bad), tmp_path / "t")
  assert list(tmp_path.iterdir()) == []


def test_a_label_of_texts_asks_which_one_counts(table, tmp_path):
  schema = dataclasses.replace(tables.SCHEMA, labels={"like": None})
  with pytest.raises(
    BadExampleError,
    match=r"row 0: label 'like': expected 0 or 1, got '(yes|no)'; if.*say which one counts as 1",
  ):
    preparing.prepare(dataclasses.replace(plan_of(table), schema=schema), tmp_path / "t")


def test_a_table_without_rows_or_without_training_rows_is_refused(table, tmp_path):
  with pytest.raises(
    BadExampleError, match="the table: holds no rows to learn from; expected at least one"
  ):
    preparing.prepare(plan_of(table.slice(0, 0)), tmp_path / "t")
  late = dataclasses.replace(plan_of(table), splitter=splits.ByTime("ts", "number", -2.0, -1.0))
  with pytest.raises(BadExampleError, match="no row is left to train on"):
    preparing.prepare(late, tmp_path / "t")
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
  preparing.prepare(preparing.Plan(reading.open_files(path), tables.SCHEMA, SPLITTER))


def test_a_preparation_that_is_killed_anywhere_leaves_nothing_that_counts(
  table, prepared, tmp_path, monkeypatch
):
  path = tables.write(table, tmp_path / "x.parquet")
  cache = tmp_path / "cache"
  monkeypatch.setenv("JAXREC_CACHE", str(cache))
  plan = preparing.Plan(reading.open_files(path), tables.SCHEMA, SPLITTER)
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
  assert bytes_of(preparing.prepare(plan)) == bytes_of(prepared)


def test_what_is_prepared_is_found_again_until_anything_changes(table, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  path = tables.write(table, tmp_path / "x.parquet")

  def prepare(**fields):
    reader = reading.open_files(path)
    plan = preparing.Plan(reader, tables.SCHEMA, SPLITTER)
    return preparing.prepare(dataclasses.replace(plan, **fields))

  first = prepare()
  stamp = (first / "meta.json").stat().st_mtime_ns
  assert prepare() == first and (first / "meta.json").stat().st_mtime_ns == stamp
  columns = {**tables.SCHEMA.columns, "age": Column("numeric", buckets=9)}
  others = [
    prepare(splitter=splits.ByChance(0, 0.1, 0.1)),
    prepare(schema=dataclasses.replace(tables.SCHEMA, columns=columns)),
    prepare(negative_keep_rate=0.5),
  ]
  tables.write(tables.clicks(501), path)
  assert len({first, *others, prepare()}) == 5


def test_a_full_disk_is_named(table, tmp_path, monkeypatch):
  def full(self, name, array):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(preparing._Files, "append", full)
  with pytest.raises(
    BadExampleError, match="cannot prepare the table in .*: No space left on device"
  ):
    preparing.prepare(plan_of(table), tmp_path / "t")
  assert list(tmp_path.iterdir()) == []


def test_columns_without_ids_or_without_numbers_are_fine(tmp_path):
  table = pa.table({"x": [0.5, 1.5] * 20, "c": ["a", "b"] * 20, "click": [0, 1] * 20})
  only_dense = Schema({"click": None}, {"x": Column("numeric", buckets=0)})
  only_ids = Schema({"click": None}, {"c": Column("categorical")})
  for k, schema in enumerate((only_dense, only_ids)):
    plan = preparing.Plan(reading.ArrowTable(table), schema, splits.ByChance(0, 0.1, 0.1))
    data = stored.StoredTable(preparing.prepare(plan, tmp_path / str(k)), 4)
    batch = data.read(np.arange(5))
    assert batch.dense.shape == (5, 1 - k) and len(batch.ids) == k


MESSY = {  # columns of a text file: what stands there, and its kind
  "flag": ["True", "false", " true", "?", "False"],
  "code": ["007", "7", " 7", "NA", "12"],
  "real": ["0.5", "7.0", "7", "", "1e1"],
  "word": [" zoo", "zoo", "None", "Zoo", "007"],
  "day": ["2024-01-31", "2024/2/1", "", "2024-02-02 10:00", "2024-02-02"],
  "price": ["1", " 2.5", "?", "+3", "1e2"],
  "tags": ["a|b", " a |?", "", "b", "NA"],
}
MESSY_SCHEMA = Schema(
  {"click": None},
  {
    **{name: Column("categorical") for name in ("flag", "code", "real", "word", "day")},
    "price": Column("numeric"),
    "tags": Column("list"),
  },
)


@pytest.mark.parametrize("dtypes", ["pandas", "text"])
def test_rows_of_a_text_file_are_served_from_frames_with_the_same_bits(tmp_path, dtypes):
  lines = [",".join([*MESSY, "click"])]
  for k in range(200):
    lines.append(",".join([*(values[k % 5 if k < 5 else (k * 7 + len(name)) % 5]
                             for name, values in MESSY.items()), str(k % 2)]))  # fmt: skip
  path = tmp_path / "x.csv"
  path.write_text("\n".join(lines) + "\n")
  reader = reading.open_files(path)
  assert reader.kinds == {
    "flag": "truth", "code": "number", "real": "number", "word": "text", "day": "time",
    "price": "number", "tags": "text", "click": "number",
  }  # fmt: skip
  plan = preparing.Plan(reader, MESSY_SCHEMA, splits.ByChance(0, 0.0))
  data = stored.StoredTable(preparing.prepare(plan, tmp_path / "t"), 4)
  batch = data.read(np.arange(200))
  frame = pd.read_csv(
    path, dtype=str if dtypes == "text" else None, keep_default_na=dtypes != "text"
  )
  if dtypes == "pandas":
    frame["flag"] = frame["flag"].str.strip().map({"True": True, "true": True, "False": False,
                                                   "false": False})  # fmt: skip
    frame["day"] = pd.to_datetime(frame["day"].str.replace("/", "-"), format="mixed")
    assert frame["code"].dtype == np.float64 and frame["real"].dtype == np.float64
  served = data.transforms.batch(pa.Table.from_pandas(frame))
  np.testing.assert_array_equal(served.dense, batch.dense)
  assert served.ids.keys() == batch.ids.keys()
  for name, bags in batch.ids.items():
    np.testing.assert_array_equal(served.ids[name].values, bags.values)
  distinct = {name: len(np.unique(batch.ids[name].values)) for name in batch.ids}
  assert distinct == {
    "flag": 3, "code": 3, "real": 4, "word": 4, "day": 5, "price_buckets": 5, "tags": 3
  }  # fmt: skip


def test_numbers_of_32_bits_are_served_from_64_with_the_same_bits(tmp_path):
  values = np.random.default_rng(0).random(2000).round(2)
  table = pa.table({"x": values.astype(np.float32), "click": [0, 1] * 1000})
  schema = Schema({"click": None}, {"x": Column("numeric", buckets=50)})
  plan = preparing.Plan(reading.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  data = stored.StoredTable(preparing.prepare(plan, tmp_path / "t"), 4)
  batch, served = data.read(np.arange(2000)), data.transforms.batch(pa.table({"x": values}))
  np.testing.assert_array_equal(served.ids["x_buckets"].values, batch.ids["x_buckets"].values)
  np.testing.assert_array_equal(served.dense, batch.dense)
  fitted = dataclasses.replace(data.transforms, kinds={"x": "number"})
  other = fitted.batch(pa.table({"x": values})).ids["x_buckets"].values
  assert (other != batch.ids["x_buckets"].values).any()  # it would matter


def test_bad_rows_are_left_out_and_said_to_be_with_their_lines(table, tmp_path):
  path = tables.write(table.drop_columns(["history"]), tmp_path / "x.csv")
  lines = path.read_text().splitlines()
  at = dict(zip(lines[0].replace('"', "").split(","), range(20), strict=False))

  def spoil(line: int, column: str, value: str) -> None:
    cells = lines[line - 1].split(",")
    cells[at[column]] = value
    lines[line - 1] = ",".join(cells)

  spoil(10, "click", "2")
  spoil(20, "weight", "-1")
  spoil(30, "price", "inf")
  spoil(40, "ts", "")
  spoil(50, "tags", "a|b|c|d|e")
  spoil(60, "like", "?")
  spoil(70, "age", "young")
  lines[79] = "1,2"
  path.write_text("\n".join(lines) + "\n")
  columns = {n: c for n, c in tables.SCHEMA.columns.items() if n != "history"}
  schema = dataclasses.replace(tables.SCHEMA, columns=columns)

  def prepare(folder: str, *, skip: bool):
    reader = reading.open_files(path, skip_bad_rows=skip)
    splitter = splits.by_time(reader, "ts", val_fraction=0.1, test_fraction=0.1, skip_bad_rows=skip)
    plan = preparing.Plan(reader, schema, splitter, skip_bad_rows=skip)
    return preparing.prepare(plan, tmp_path / folder)

  data = stored.StoredTable(prepare("skipped", skip=True), 4)
  found = {int(re.search(r"x\.csv, line (\d+): ", text)[1]): text for text in data.meta["bad_rows"]}
  assert sorted(found) == [10, 20, 30, 40, 50, 60, 70, 80]
  for line, what in ((10, "label 'click'"), (20, "weight"), (30, "'price'"), (40, "time 'ts'"),
                     (50, "'tags'"), (60, "label 'like'"), (70, "age")):  # fmt: skip
    assert what in found[line]
  assert data.meta["num_rows"] == 500 - 8
  assert sum(data.num_examples(split) for split in splits.NAMES) == 492
  kept = [number - 2 for number in range(2, 502) if number not in found]
  batches = [data.read(np.arange(data.num_examples(split)), split) for split in splits.NAMES]
  ages = np.concatenate([batch.weights for batch in batches])
  np.testing.assert_array_equal(
    np.sort(ages), np.sort(table["weight"].to_numpy()[kept].astype(np.float32))
  )
  whole = [line for number, line in enumerate(lines, 1) if number != 80]
  path.write_text("\n".join(whole) + "\n")
  with pytest.raises(BadExampleError, match=r"x\.csv, line 40: time 'ts': is missing"):
    prepare("refused", skip=False)  # as the split by time comes first
  mended = [line for number, line in enumerate(whole, 1) if number != 40]
  path.write_text("\n".join(mended) + "\n")
  with pytest.raises(
    BadExampleError, match=r"x\.csv, line 10: label 'click': expected 0 or 1, got '2'"
  ):
    prepare("refused", skip=False)
  assert not (tmp_path / "refused").exists()


def test_a_table_of_bad_rows_alone_is_refused(table, tmp_path):
  place = table.schema.get_field_index("click")
  bad = table.set_column(place, "click", pa.array([-1] * 500))
  with pytest.raises(
    BadExampleError, match="holds no rows to learn from; all 500 are bad, the fir"
  ):
    preparing.prepare(plan_of(bad, skip_bad_rows=True), tmp_path / "t")


def test_groups_of_other_rows_have_numbers_of_their_own(prepared, tmp_path):
  new = tables.clicks(200, seed=4)
  place = new.schema.get_field_index("user")
  new = new.set_column(place, "user", pa.array(np.arange(200) % 50 + 1000))  # none seen in training
  fitted = transforms_file.load(prepared)
  plan = dataclasses.replace(plan_of(new, fitted=fitted), splitter=splits.AllTest())
  folder = preparing.prepare(plan, tmp_path / "new")
  data = stored.StoredTable(prepared, 8, test_folder=folder)
  batch = data.read(np.arange(200), "test")
  assert len(np.unique(batch.groups["user"])) == 50
  names = data.group_names("user")
  assert [names[k] for k in batch.groups["user"]] == [str(u) for u in new["user"].to_pylist()]


def test_names_that_differ_in_case_or_are_like_those_of_the_spool_are_columns_like_others(tmp_path):
  rng = np.random.default_rng(0)
  table = pa.table({
    "Price": rng.random(400) * 1000 + 1000,
    "price": rng.random(400),
    "City": rng.choice(["p", "q"], 400),
    "city": rng.choice(["x", "y", "z"], 400),
    "split": rng.choice(["a", "b"], 400),
    "feature_0": rng.choice(["c", "d"], 400),
    "label_0": rng.integers(0, 2, 400),
    "": rng.choice(["e", "f"], 400),
  })  # fmt: skip
  ids = ("City", "city", "split", "feature_0", "")
  schema = Schema(
    {"label_0": None},
    {**{n: Column("numeric", buckets=0) for n in ("Price", "price")},
     **{n: Column("categorical") for n in ids}},
    groups=("City", "city"),
  )  # fmt: skip
  plan = preparing.Plan(reading.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  fitted = transforms_file.load(preparing.prepare(plan, tmp_path / "t"))
  found = {name: sorted(rows.values.to_pylist()) for name, rows in fitted.rows.items()}
  assert found == {
    "City": ["p", "q"], "city": ["x", "y", "z"], "split": ["a", "b"], "feature_0": ["c", "d"],
    "": ["e", "f"],
  }  # fmt: skip
  for name in ("Price", "price"):
    (step,) = fitted.steps[name]
    assert step.quantiles.knots[-1] == max(table[name].to_pylist())


@pytest.mark.parametrize(
  ("positive", "labels", "message"),
  [
    (
      None,
      [0] * 100,
      "the table: label 'click' is 0 in all 100 rows that train, so there is nothing",
    ),
    (None, [1] * 100, "the table: label 'click' is 1 in all 100 rows"),
    (
      "Yes",
      ["yes", "no"] * 50,
      r"is 0 in all 100 rows that train \(1 is what says 'Yes'; there is 'yes', 'no'\)",
    ),
  ],
)
def test_a_label_that_never_changes_is_refused(tmp_path, positive, labels, message):
  table = pa.table({"c": ["a", "b"] * 50, "click": labels})
  schema = Schema({"click": positive}, {"c": Column("categorical")})
  plan = preparing.Plan(reading.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  with pytest.raises(BadExampleError, match=message):
    preparing.prepare(plan, tmp_path / "t")
  folder = preparing.prepare(dataclasses.replace(plan_other(plan), splitter=splits.AllTest()),
                             tmp_path / "test")  # fmt: skip
  assert stored.StoredTable(folder, 4).num_examples("test") == 100


def plan_other(plan: preparing.Plan) -> preparing.Plan:
  """``plan`` with transforms of another table, as a table that is evaluated."""
  other = pa.table({"c": ["a", "b"] * 5, "click": [0, 1] * 5})
  schema = Schema({"click": None}, plan.schema.columns)
  one = preparing.Plan(reading.ArrowTable(other), schema, splits.ByChance(0, 0.0))
  return dataclasses.replace(plan, fitted=transforms_file.load(preparing.prepare(one)))


def test_bad_rows_beyond_those_described_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(preparing, "_MOST_DESCRIBED", 5)
  table = pa.table({"c": ["a", "b"] * 50, "click": [0, 1] * 30 + [7] * 40})
  schema = Schema({"click": None}, {"c": Column("categorical")})
  plan = preparing.Plan(
    reading.ArrowTable(table), schema, splits.ByChance(0, 0.0), skip_bad_rows=True
  )
  data = stored.StoredTable(preparing.prepare(plan, tmp_path / "t"), 4)
  assert len(data.bad_rows) == 5 and "; 40 bad rows left out" in data.describe()
  run = workdir.Workdir(tmp_path)
  fitted.keep(data, run, progress.silent())
  listed = (tmp_path / "bad_rows.txt").read_text().splitlines()
  assert listed == [*data.bad_rows, "... and 35 more"]
