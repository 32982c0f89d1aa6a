"""A first schema: kinds guessed from types, names and values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.config.experiment import DataConfig
from jaxrec.data import registry
from jaxrec.data.prepared import infer_schema
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError
from jaxrec.features import schema as schema_lib
from tests.data import tables

NUM_ROWS = 200
RNG = np.random.default_rng(0)
COLUMNS = {
  "price": (RNG.random(NUM_ROWS), "numeric"),
  "count": (RNG.integers(0, 1000, NUM_ROWS), "numeric"),
  "rating": (RNG.integers(0, 5, NUM_ROWS), "categorical"),
  "user_id": (RNG.integers(0, 10**9, NUM_ROWS), "categorical"),
  "Item": (RNG.integers(0, 10**9, NUM_ROWS), "categorical"),
  "budget": (RNG.integers(0, 10**9, NUM_ROWS), "numeric"),
  "city": (RNG.choice(["a", "b"], NUM_ROWS), "categorical"),
  "is_new": (RNG.random(NUM_ROWS) < 0.5, "categorical"),
  "genres": (["x|y", "z", "", "x"] * 50, "list"),
  "clicked": ([[1, 2], [], [3]] * 66 + [[1], [1]], "list"),
  "item_history": ([[1, 2], [], [3]] * 66 + [[1], [1]], "sequence"),
  "when": (np.arange(NUM_ROWS).astype("datetime64[s]"), "numeric"),
  "constant": (["same"] * NUM_ROWS, "has one value only"),
  "nothing": (pa.nulls(NUM_ROWS), "empty"),
  "comment": ([f"a long text about the article {k} and {k * 7}" for k in range(NUM_ROWS)], "free"),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_columns_kind_is_guessed(name):
  values, kind = COLUMNS[name]
  table = pa.table({name: values, "x": RNG.random(NUM_ROWS), "click": [0, 1] * (NUM_ROWS // 2)})
  guess = infer_schema.infer(reader_lib.ArrowTable(table), DataConfig(labels=("click",)))
  if name in guess.left_out:
    assert guess.left_out[name].startswith(kind)
  else:
    assert guess.schema.columns[name].kind == kind
  assert list(guess.schema.labels) == ["click"] and "click" not in guess.schema.columns


def test_roles_are_no_features_except_the_group():
  config = DataConfig(labels=("click",), weight="weight", group="user", time="ts")
  guess = infer_schema.infer(reader_lib.ArrowTable(tables.clicks()), config)
  assert set(guess.schema.columns) == {
    "user", "age", "price", "city", "item", "tags", "history", "agent", "like"
  }  # fmt: skip
  assert (guess.schema.weight, guess.schema.groups, guess.schema.time) == (
    "weight",
    ("user",),
    "ts",
  )


def test_options_reach_the_columns():
  config = DataConfig(labels=("click",), min_count=3, num_buckets=9)
  guess = infer_schema.infer(reader_lib.ArrowTable(tables.clicks()), config)
  assert guess.schema.columns["city"].min_count == 3
  assert guess.schema.columns["price"].buckets == 9


def test_a_label_may_say_which_value_counts_as_1():
  table = pa.table({"income": ["rich", "poor"], "a=b": [0, 1], "x": [0.5, 1.5]})
  for labels, expected in (
    (("income=rich",), {"income": "rich"}),
    (("a=b",), {"a=b": None}),
    (("a=b=1", "income=poor=er"), {"a": "b=1", "income": "poor=er"}),
  ):
    table_now = table.append_column("a", pa.array([1, 2])) if "a" in expected else table
    guess = infer_schema.infer(reader_lib.ArrowTable(table_now), DataConfig(labels=labels))
    assert guess.schema.labels == expected
    assert not set(guess.schema.columns) & set(expected)


def test_a_text_among_ids_is_a_value_wherever_it_stands(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  path = tmp_path / "x.csv"
  rows = [f"{k % 500},{k % 97},{k % 2}" for k in range(1000)]
  rows[3] = "walk-in,5,1"
  path.write_text("\n".join(["user_id,n,click", *rows]) + "\n")
  guess = infer_schema.infer(reader_lib.open_files(path), DataConfig(labels=("click",)))
  assert guess.schema.columns["user_id"].kind == "categorical"
  rows[3] = "3,five,1"  # but among numbers it is a mistake
  path.write_text("\n".join(["user_id,n,click", *rows]) + "\n")
  with pytest.raises(
    BadExampleError, match="x.csv, line 5: column 'n': expected a number, got 'five'"
  ):
    registry.load(DataConfig("table", str(path), labels=("click",)), embedding_dim=4)


def test_text_files_and_tables_are_guessed_alike(tmp_path):
  rng = np.random.default_rng(0)
  table = pa.table({
    "stars": rng.integers(1, 6, 2000),
    "hour": rng.integers(0, 24, 2000),
    "amount": rng.integers(0, 5000, 2000),
    "user_id": [f"1844674407370955{1000 + k % 9}" for k in range(2000)],
    "item": pa.array([None if k % 7 == 0 else float(k % 300) for k in range(2000)]),
    "order": rng.permutation(2000),
    "order_id": [f"o{k}" for k in rng.permutation(2000)],
    "price": rng.random(2000).round(2),
    "is_new": rng.random(2000) < 0.5,
    "day": np.arange(2000).astype("datetime64[D]"),
    "click": rng.integers(0, 2, 2000),
  })  # fmt: skip
  path = tables.write(table, tmp_path / "x.csv")
  config = DataConfig(labels=("click",))
  kinds = {}
  for name, reader in (
    ("csv", reader_lib.open_files(path)),
    ("table", reader_lib.ArrowTable(table)),
  ):
    guess = infer_schema.infer(reader, config)
    kinds[name] = {n: c.kind for n, c in guess.schema.columns.items()}
    assert guess.left_out == {"order_id": "no value occurs twice, so nothing can be learned of one"}
  ids = dict.fromkeys(("stars", "hour", "user_id", "item", "is_new"), "categorical")
  numbers = dict.fromkeys(("amount", "order", "price", "day"), "numeric")
  assert kinds["csv"] == kinds["table"] == {**ids, **numbers}


@pytest.mark.parametrize(
  "values",
  [
    pa.array([{"id": 1}, {"id": 2}] * 50),
    pa.array([[[1]], [[2]]] * 50),
    pa.array([[("a", 1)], [("b", 2)]] * 50, pa.map_(pa.string(), pa.int64())),
    pa.array([b"a", b"b"] * 50),
    pa.array(["a", "b"] * 50).cast(pa.string_view()),
    pa.array([(1, 2, 3), (1, 2, 4)] * 50, pa.month_day_nano_interval()),
  ],
)
def test_a_type_that_is_not_read_is_left_out(values):
  table = pa.table({"x": values, "y": [0.5, 1.5] * 50, "click": [0, 1] * 50})
  guess = infer_schema.infer(reader_lib.ArrowTable(table), DataConfig(labels=("click",)))
  assert guess.left_out["x"].startswith("of a type that is not read (")


def test_a_column_that_does_not_exist_is_named_with_its_neighbour():
  config = DataConfig(labels=("clik",))
  with pytest.raises(BadExampleError, match="no column 'clik'; did you mean 'click'"):
    infer_schema.infer(reader_lib.ArrowTable(tables.clicks()), config)


def test_a_table_with_nothing_to_learn_from_is_refused():
  table = pa.table({"click": [0, 1], "c": ["x", "x"]})
  with pytest.raises(ConfigError, match="no column is left to learn from"):
    infer_schema.infer(reader_lib.ArrowTable(table), DataConfig(labels=("click",)))


def test_a_schema_reads_back_from_its_file():
  for schema in (
    tables.SCHEMA,
    infer_schema.infer(
      reader_lib.ArrowTable(tables.clicks()), DataConfig(labels=("click",))
    ).schema,
  ):
    text = schema_lib.to_json(schema)
    assert schema_lib.from_json(text) == dataclasses.replace(
      schema, labels=dict(schema.labels), columns=dict(schema.columns)
    )
    assert len(schema.describe().splitlines()) >= len(schema.columns)


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (
      ('"kind": "numeric"', '"kind": "number"'),
      "column 'age': kind 'number'; did you mean 'numeric'",
    ),
    (('"buckets": 8', '"bucket": 8'), "feature 'age', key 'bucket'; did you mean 'buckets'"),
    (
      ('"buckets": 8', '"buckets": -1'),
      "column 'age': buckets must be a whole number >= 0, got -1",
    ),
    (
      ('"buckets": 8', '"buckets": "8"'),
      "column 'age': buckets must be a whole number >= 0, got '8'",
    ),
    (('"labels": {', '"labels": {}, "x": {'), r"edited.json: key 'x'; Known"),
    (('"click": null', '"age": null'), "column 'age' is a label or the weight, and a feature too"),
    (('"oov_buckets": 2', '"oov_buckets": 0'), "column 'city': oov_buckets must be a whole number"),
    (("{", "{,"), "edited.json: is not JSON"),
    (('"combiner": "mean"', '"combiner": "none"'), "column 'tags': combiner must be one of"),
    (
      ('"table": "items"', '"table": "items", "min_count": 7'),
      "columns 'item' and 'history' share",
    ),
    (('"log"', '"ln"'), "column 'price': dense 'ln'; Known: cdf, log"),
    (
      ('"max_length": 4', '"max_length": 4, "separator": ""'),
      "column 'tags': separator must be a text that stands between the values, got ''",
    ),
  ],
)
def test_a_bad_edit_is_named(edit, message):
  text = schema_lib.to_json(tables.SCHEMA)
  assert edit[0] in text
  with pytest.raises(ConfigError, match=message):
    schema_lib.from_json(text.replace(*edit, 1), where="edited.json")
