"""Rows as they come: served as they were read, left out and said to be, or refused by name."""

# ruff: noqa: F811 (fixtures of another module)

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec.data.prepared import prepare as prepare_lib
from jaxrec.data.prepared import prepared_table, splits
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError, transforms_io
from jaxrec.features.schema import Column, Schema
from jaxrec.runs import saved_transforms as fitted
from jaxrec.runs import terminal, workdir
from tests.data import tables
from tests.data.prepared.prepare_test import plan_of, prepared, table  # noqa: F401

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
  reader = reader_lib.open_files(path)
  assert reader.kinds == {
    "flag": "truth", "code": "number", "real": "number", "word": "text", "day": "time",
    "price": "number", "tags": "text", "click": "number",
  }  # fmt: skip
  plan = prepare_lib.Plan(reader, MESSY_SCHEMA, splits.ByChance(0, 0.0))
  data = prepared_table.StoredTable(prepare_lib.prepare(plan, tmp_path / "t"), 4)
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
  plan = prepare_lib.Plan(reader_lib.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  data = prepared_table.StoredTable(prepare_lib.prepare(plan, tmp_path / "t"), 4)
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
    reader = reader_lib.open_files(path, skip_bad_rows=skip)
    splitter = splits.by_time(reader, "ts", val_fraction=0.1, test_fraction=0.1, skip_bad_rows=skip)
    plan = prepare_lib.Plan(reader, schema, splitter, skip_bad_rows=skip)
    return prepare_lib.prepare(plan, tmp_path / folder)

  data = prepared_table.StoredTable(prepare("skipped", skip=True), 4)
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
    prepare_lib.prepare(plan_of(bad, skip_bad_rows=True), tmp_path / "t")


def test_groups_of_other_rows_have_numbers_of_their_own(prepared, tmp_path):
  new = tables.clicks(200, seed=4)
  place = new.schema.get_field_index("user")
  new = new.set_column(place, "user", pa.array(np.arange(200) % 50 + 1000))  # none seen in training
  fitted = transforms_io.load(prepared)
  plan = dataclasses.replace(plan_of(new, fitted=fitted), splitter=splits.AllTest())
  folder = prepare_lib.prepare(plan, tmp_path / "new")
  data = prepared_table.StoredTable(prepared, 8, test_folder=folder)
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
  plan = prepare_lib.Plan(reader_lib.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  fitted = transforms_io.load(prepare_lib.prepare(plan, tmp_path / "t"))
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
  plan = prepare_lib.Plan(reader_lib.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  with pytest.raises(BadExampleError, match=message):
    prepare_lib.prepare(plan, tmp_path / "t")
  folder = prepare_lib.prepare(dataclasses.replace(plan_other(plan), splitter=splits.AllTest()),
                             tmp_path / "test")  # fmt: skip
  assert prepared_table.StoredTable(folder, 4).num_examples("test") == 100


def plan_other(plan: prepare_lib.Plan) -> prepare_lib.Plan:
  """``plan`` with transforms of another table, as a table that is evaluated."""
  other = pa.table({"c": ["a", "b"] * 5, "click": [0, 1] * 5})
  schema = Schema({"click": None}, plan.schema.columns)
  one = prepare_lib.Plan(reader_lib.ArrowTable(other), schema, splits.ByChance(0, 0.0))
  return dataclasses.replace(plan, fitted=transforms_io.load(prepare_lib.prepare(one)))


def test_bad_rows_beyond_those_described_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_lib, "_MOST_DESCRIBED", 5)
  table = pa.table({"c": ["a", "b"] * 50, "click": [0, 1] * 30 + [7] * 40})
  schema = Schema({"click": None}, {"c": Column("categorical")})
  plan = prepare_lib.Plan(
    reader_lib.ArrowTable(table), schema, splits.ByChance(0, 0.0), skip_bad_rows=True
  )
  data = prepared_table.StoredTable(prepare_lib.prepare(plan, tmp_path / "t"), 4)
  assert len(data.bad_rows) == 5 and "; 40 bad rows left out" in data.describe()
  run = workdir.Workdir(tmp_path)
  fitted.keep(data, run, terminal.silent())
  listed = (tmp_path / "bad_rows.txt").read_text().splitlines()
  assert listed == [*data.bad_rows, "... and 35 more"]


def test_the_first_bad_rows_are_described_of_whichever_column(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare_lib, "_MOST_DESCRIBED", 3)
  monkeypatch.setattr(files, "CHUNK_ROWS", 16)
  labels, prices = [0, 1] * 20, [f"{k}" for k in range(40)]
  prices[3] = prices[21] = "inf"
  labels[9] = labels[30] = 7
  path = tmp_path / "x.csv"
  rows = [f"{price},{label}" for price, label in zip(prices, labels, strict=True)]
  path.write_text("\n".join(["price,click", *rows, "1,2,3", "4", "5", "6", "7"]) + "\n")
  schema = Schema({"click": None}, {"price": Column("numeric")})
  plan = prepare_lib.Plan(
    reader_lib.open_files(path, skip_bad_rows=True),
    schema,
    splits.ByChance(0, 0.0),
    skip_bad_rows=True,
  )
  data = prepared_table.StoredTable(prepare_lib.prepare(plan, tmp_path / "t"), 4)
  lines = [int(re.search(r"x\.csv, line (\d+): ", text)[1]) for text in data.bad_rows]
  assert lines == [42, 43, 44, 5, 11, 23]  # three that cannot be cut into values, and three others
  assert data.num_bad_rows == 5 + 4
