"""Files, frames, Arrow tables and records become one and the same data set."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec import data
from jaxrec.config import ConfigError
from jaxrec.config.experiment import DataConfig
from jaxrec.data import registry
from jaxrec.data.prepared import from_table as table
from jaxrec.features import BadExampleError
from jaxrec.features import schema as schema_lib
from tests.data import tables

OPTIONS = {"weight": "weight", "group": "user", "time": "ts", "test_fraction": 0.2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


def same(ours: data.StoredTable, theirs: data.StoredTable) -> None:
  assert ours.spec == theirs.spec
  for split in ("train", "val", "test"):
    indices = np.arange(theirs.num_examples(split))
    assert ours.num_examples(split) == len(indices) > 10
    a, b = ours.read(indices, split), theirs.read(indices, split)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_way_in_gives_the_same_data_set(tmp_path):
  clicks = tables.clicks()
  arrow = data.from_arrow(clicks, label="click", schema=tables_schema(), **OPTIONS)
  frame = clicks.to_pandas()
  same(data.from_pandas(frame, label="click", schema=tables_schema(), **OPTIONS), arrow)
  records = (dict(row) for row in clicks.to_pylist())
  same(data.from_iterator(records, label="click", schema=tables_schema(), **OPTIONS), arrow)
  schema_path = tmp_path / "schema.json"
  schema_path.write_text(schema_lib.to_json(tables_schema()))
  for name in ("x.parquet", "x.csv.gz"):
    config = DataConfig(
      "table", str(tables.write(clicks, tmp_path / name)), schema=str(schema_path), **OPTIONS
    )
    same(registry.load(config, embedding_dim=16), arrow)


def tables_schema() -> schema_lib.Schema:
  return dataclasses.replace(tables.SCHEMA, labels={"click": None})


def test_a_schema_is_inferred_and_several_labels_are_learned():
  clicks = tables.clicks().drop_columns(["like"]).append_column("like", pa.array([0, 1] * 250))
  found = data.from_arrow(clicks, label=["click", "like"], group="user")
  assert found.spec.labels == ("click", "like")
  assert set(found.read(np.arange(3)).labels) == {"click", "like"}
  assert "price" in found.spec.dense_names and found.spec.groups == ("user",)


def test_labels_of_words_are_learned_from_frames_and_files(tmp_path):
  frame = pd.DataFrame({"x": np.arange(100.0), "income": ["rich", " poor"] * 50})
  found = data.from_pandas(frame, label={"income": "rich"}, val_fraction=0.0)
  frame.to_csv(tmp_path / "x.csv", index=False)
  config = DataConfig(
    "table", str(tmp_path / "x.csv"), labels=("income=rich",), val_fraction=0.0, test_fraction=0.0
  )
  for data_set in (found, registry.load(config, embedding_dim=4)):
    assert data_set.spec.labels == ("income",)
    labels = data_set.read(np.arange(data_set.num_examples("train"))).labels["income"]
    assert 0.4 < labels.mean() < 0.6
  with pytest.raises(BadExampleError, match=r"the table, row 0: label 'income'.*income=rich"):
    data.from_pandas(frame, label="income")


@pytest.mark.parametrize(
  ("name", "words", "one"),
  [
    ("inc=ome", ["rich", "poor"], "rich"),
    ("y", ["New York, NY", "a=b"], "New York, NY"),
    ("y", ["New York, NY", "a=b"], "a=b"),
    ("y", [3, 4], np.int64(3)),
    ("y", [True, False], True),
  ],
)
def test_a_label_of_any_name_and_word_is_learned_in_python(name, words, one):
  table = pa.table({"x": np.arange(100.0), name: words * 50})
  found = data.from_arrow(table, label={name: one}, val_fraction=0.0, test_fraction=0.0)
  labels = found.read(np.arange(100)).labels
  assert labels[name].tolist() == [float(word == one) for word in words] * 50
  with pytest.raises(BadExampleError, match="no column 'a=b'"):
    data.from_arrow(table, label={"a=b": "c"})


def test_records_whose_fractions_come_late_are_kept_as_they_are():
  values = [k % 50 for k in range(9000)] + [k + 0.5 for k in range(1000)]
  records = ({"x": x, "click": k % 2} for k, x in enumerate(values))
  schema = schema_lib.Schema({"click": None}, {"x": schema_lib.Column("numeric", dense=("log",))})
  found = data.from_iterator(
    records, label="click", schema=schema, val_fraction=0.0, test_fraction=0.0
  )
  dense = found.read(np.arange(10_000)).dense[:, 0]
  np.testing.assert_allclose(dense, np.log1p(np.array(values)), rtol=1e-6)


def test_a_frame_of_categories_dates_and_missing_values_is_read():
  frame = pd.DataFrame(
    {
      "c": pd.Categorical(["a", "b", None, "a"] * 25),
      "when": pd.date_range("2024-01-01", periods=100, freq="h"),
      "n": [1.5, None, 2.5, 3.5] * 25,
      "click": [True, False] * 50,
    },
    index=range(100, 200),
  )
  found = data.from_pandas(frame, label="click", time="when")
  assert [feature.name for feature in found.spec.features] == ["c", "n_buckets"]
  assert found.read(np.arange(4)).ids["c"].values.tolist()[2] == 0


def test_test_files_of_their_own_are_the_test_split(tmp_path):
  tables.write(tables.clicks(), tmp_path / "train.csv")
  new = tables.clicks(77, seed=5)
  tables.write(new, tmp_path / "test.csv")
  config = DataConfig(
    "table", str(tmp_path / "train.csv"), labels=("click",), test_dir=str(tmp_path / "test.csv")
  )
  found = registry.load(config, embedding_dim=4)
  assert found.num_examples("test") == 77
  assert found.num_examples("train") + found.num_examples("val") == 500
  batch = found.read(np.arange(77), "test")
  assert batch.labels["click"].tolist() == new["click"].to_pylist()
  gone = tables.write(new.drop_columns(["age"]), tmp_path / "gone.csv")
  with pytest.raises(BadExampleError, match=r"gone\.csv: no column 'age'"):
    registry.load(dataclasses.replace(config, test_dir=str(gone)), embedding_dim=4)


def test_new_files_are_read_with_the_transforms_of_an_earlier_run(tmp_path):
  first = tables.write(tables.clicks(), tmp_path / "first.parquet")
  config = DataConfig("table", str(first), labels=("click",), group="user")
  trained = registry.load(config, embedding_dim=4)
  later = tables.write(tables.clicks(60, seed=6), tmp_path / "later.parquet")
  config = dataclasses.replace(config, data_dir=str(later))
  found = table.load(config, 4, fitted=trained.transforms)
  assert found.spec == trained.spec and found.num_examples("test") == 60


def test_rows_that_all_test_need_no_time(tmp_path):
  first = tables.write(tables.clicks(), tmp_path / "first.parquet")
  new = tables.clicks(60, seed=6)
  later = tables.write(new.drop_columns(["ts"]), tmp_path / "later.parquet")
  config = DataConfig("table", str(first), labels=("click",), time="ts", test_dir=str(later))
  trained = registry.load(config, embedding_dim=4)
  config = dataclasses.replace(config, data_dir=str(later), test_dir=None)
  fitted = table.load(config, 4, fitted=trained.transforms)
  for found in (trained, fitted):
    assert found.read(np.arange(60), "test").labels["click"].tolist() == new["click"].to_pylist()
  with pytest.raises(BadExampleError, match="no column 'ts'"):
    registry.load(config, embedding_dim=4)


def test_malformed_rows_are_counted_and_shown(tmp_path):
  path = tables.write(tables.clicks(), tmp_path / "x.csv")
  path.write_bytes(path.read_bytes() + b"1,2,3\n")
  config = DataConfig("table", str(path), labels=("click",))
  with pytest.raises(BadExampleError, match=r"x\.csv, line 502: Expected Number of Columns: 12"):
    registry.load(config, embedding_dim=4)
  found = registry.load(dataclasses.replace(config, on_bad_row="skip"), embedding_dim=4)
  assert "1 bad rows left out" in found.describe()
  assert found.meta["bad_rows"][0].startswith(f"{path}, line 502")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, "--data_dir names the file or folder to read"),
    ({"data_dir": "x.csv"}, "name the column to learn: --label=click"),
    ({"data_dir": "no.csv", "labels": ("click",)}, r"no\.csv: no such file or folder"),
    ({"data_dir": "HERE", "schema": "no.json"}, r"--schema=no\.json: cannot be read"),
    ({"data_dir": "HERE", "labels": ("clck",)}, "no column 'clck'; did you mean 'click'"),
    ({"data_dir": "HERE", "labels": ("click",), "time": "tz"}, "no column 'tz'; Known: age, agent"),
  ],
)
def test_what_is_missing_is_named(tmp_path, fields, message):
  here = tables.write(tables.clicks(), tmp_path / "x.parquet")
  fields = {k: str(here) if v == "HERE" else v for k, v in fields.items()}
  with pytest.raises((ConfigError, BadExampleError), match=message):
    registry.load(DataConfig("table", **fields), embedding_dim=4)


def test_what_is_left_out_is_known_and_a_cap_on_rows_is_kept():
  table = tables.clicks().append_column("same", pa.array(["x"] * 500))
  found = data.from_arrow(table, label="click", max_rows_per_table=5)
  assert found.is_inferred and found.meta["left_out"] == {"same": "has one value only"}
  sizes = {f.name: f.table.vocab_size for f in found.spec.features}
  assert sizes["city"] == 5 + 2 and sizes["item"] == 5 + 2


def test_a_frame_that_cannot_be_read_is_named():
  frame = pd.DataFrame({"x": [1, 2], "click": [0, 1]})
  twice = pd.DataFrame([[1, 2, 0]], columns=["x", "x", "click"])
  with pytest.raises(BadExampleError, match="the frame: a column of several types, or of a type"):
    data.from_pandas(frame.assign(d=[{"a": 1}, 3]), label="click")
  with pytest.raises(BadExampleError, match="the frame: column 'x' stands there 2 times"):
    data.from_pandas(twice, label="click")
  table = pa.table([[1, 2], [1, 2], [0, 1]], names=["x", "x", "click"])
  with pytest.raises(BadExampleError, match="the table: column 'x' stands there 2 times"):
    data.from_arrow(table, label="click")


def test_records_may_miss_columns_that_others_have():
  records = [
    {"x": k, "click": k % 2, **({"c": "a" if k % 3 else "b"} if k % 5 else {})} for k in range(99)
  ]
  found = data.from_iterator(records, label="click")
  assert "c" in [feature.name for feature in found.spec.features]


def test_records_of_other_types_and_unknown_options_are_named():
  def records():
    for k in range(10_000):
      yield {"x": k if k < 9000 else "text", "click": k % 2}

  with pytest.raises(BadExampleError, match=r"records 8192 to 9999: a value of another type"):
    data.from_iterator(records(), label="click")
  with pytest.raises(BadExampleError, match="expected at least one, got none"):
    data.from_iterator([], label="click")
  with pytest.raises(ConfigError, match="no option 'grup'; did you mean 'group'"):
    data.from_arrow(tables.clicks(), label="click", grup="user")
  with pytest.raises(BadExampleError, match="a column of several types"):
    data.from_pandas(pd.DataFrame({"x": [1, "a", 2.5], "click": [0, 1, 0]}), label="click")
