"""Fitted transforms give the same bits on any chunk, and say what they cannot convert."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.data.prepared import prepare, splits
from jaxrec.data.readers import reader
from jaxrec.features import BadExampleError, transforms, transforms_io
from tests.data import tables


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> transforms.Transforms:
  splitter = splits.ByTime("ts", "number", 120.0, 140.0)
  plan = prepare.Plan(reader.ArrowTable(tables.clicks()), tables.SCHEMA, splitter)
  return transforms_io.load(prepare.prepare(plan, tmp_path_factory.mktemp("table") / "t"))


def same_bits(a: transforms.Encoded, b: transforms.Encoded) -> None:
  assert a.ids.dtype == b.ids.dtype == np.int32 and a.dense.dtype == b.dense.dtype == np.float32
  np.testing.assert_array_equal(a.ids, b.ids)
  np.testing.assert_array_equal(a.dense.view(np.uint32), b.dense.view(np.uint32))
  assert a.bags.keys() == b.bags.keys()
  for name, (values, lengths) in a.bags.items():
    np.testing.assert_array_equal(values, b.bags[name][0])
    np.testing.assert_array_equal(lengths, b.bags[name][1])


def joined(parts: list[transforms.Encoded]) -> transforms.Encoded:
  return transforms.Encoded(
    np.concatenate([p.ids for p in parts]),
    np.concatenate([p.dense for p in parts]),
    {
      name: tuple(np.concatenate([p.bags[name][k] for p in parts]) for k in range(2))
      for name in parts[0].bags
    },
  )


@pytest.mark.parametrize("chunk", [1, 7, 499])
def test_any_chunk_of_new_rows_has_the_bits_of_the_whole(fitted, chunk):
  new = tables.clicks(500, seed=9)  # other rows: unseen values, missing values, NaN, ties
  parts = [fitted.encode(new.slice(k, chunk)) for k in range(0, 500, chunk)]
  same_bits(joined(parts), fitted.encode(new))


def test_the_kind_of_container_does_not_matter(fitted):
  new = tables.clicks(100, seed=3)
  whole = fitted.encode(new)
  same_bits(fitted.encode(new.combine_chunks().to_batches()[0]), whole)
  frame = new.to_pandas()
  assert frame["item"].dtype == np.int64
  same_bits(fitted.encode(pa.Table.from_pandas(frame)), whole)
  frame["item"] = frame["item"].astype(str)  # 7 and "7"
  frame["city"] = frame["city"].astype("category")
  same_bits(fitted.encode(pa.Table.from_pandas(frame)), whole)
  frame["item"] = frame["item"].astype(float)  # and 7.0
  same_bits(fitted.encode(pa.Table.from_pandas(frame)), whole)


def test_features_are_as_large_as_what_was_fitted(fitted):
  features = {feature.name: feature for feature in fitted.features(16)}
  assert list(features) == ["age_buckets", "city", "item", "tags", "history", "agent"]
  assert features["item"].table == features["history"].table
  train = tables.clicks().filter(pa.compute.less_equal(tables.clicks()["ts"], 120))
  items = set(train["item"].to_pylist()) | {v for x in train["history"].to_pylist() if x for v in x}
  assert features["item"].table.vocab_size == 2 + len(items)
  cities = train["city"].drop_null().value_counts().to_pylist()
  assert features["city"].table.vocab_size == 3 + sum(c["counts"] >= 2 for c in cities)
  assert features["agent"].table.vocab_size == 51
  assert (features["tags"].ids_per_bag, features["history"].ids_per_bag) == (4, 3)
  assert fitted.dense_names == ("age", "price")


def test_rows_of_ids_are_what_they_were_fitted_to_be(fitted):
  new = tables.clicks(200, seed=5)
  names = fitted.rows["items"].names()
  ids = fitted.encode(new).ids[:, 2]
  for item, row in zip(new["item"].to_pylist(), ids.tolist(), strict=True):
    assert names[row] == (str(item) if str(item) in names else "(other)")


def test_a_sequence_keeps_its_latest_and_a_list_refuses_to_drop(fitted):
  rows = tables.clicks(2, seed=1)
  history = pa.array([[1, 2, None, 3, 4], None], pa.list_(pa.int64()))
  long = rows.set_column(rows.schema.get_field_index("history"), "history", history)
  values, lengths = fitted.encode(long).bags["history"]
  names = fitted.rows["items"].names()
  assert [names[v] for v in values] == ["2", "3", "4"] and lengths.tolist() == [3, 0]
  wide = rows.set_column(rows.schema.get_field_index("tags"), "tags", pa.array(["a|b|c|d|e", ""]))
  with pytest.raises(BadExampleError, match=r"row 0: column 'tags': a list of 5 values, but max"):
    fitted.encode(wide)


def test_a_batch_to_predict_from_needs_no_labels(fitted):
  batch = fitted.batch(tables.clicks(50, seed=2).drop_columns(["click", "like", "weight", "user"]))
  assert batch.labels == {} and (batch.weights == 1).all()
  assert batch.ids["tags"].row_splits is not None and batch.ids["city"].row_splits is None
  assert batch.ids["tags"].capacity == 50 * 4


@pytest.mark.parametrize(
  ("column", "values", "message"),
  [
    ("city", None, "column 'city' is missing, and the model learns from it; columns there: "),
    ("age", ["young", "3"], "row 0: column 'age': expected a number, got 'young'; mend the value"),
    ("age", [1.0, np.inf], "row 1: column 'age': expected a finite number, got inf"),
    (
      "tags",
      [1, 2],
      "column 'tags': expected lists, or text separated by '|', got values of type int64",
    ),
    (
      "city",
      [{"a": 1}, {"a": 2}],
      "column 'city': expected text or whole numbers, got values of type struct",
    ),
  ],
)
def test_what_cannot_be_converted_is_named(fitted, column, values, message):
  rows = tables.clicks(2)
  place = rows.schema.get_field_index(column)
  rows = rows.remove_column(place) if values is None else rows.set_column(
    place, column, pa.array(values)
  )  # fmt: skip
  with pytest.raises(BadExampleError, match=message.replace("|", r"\|")):
    fitted.encode(rows)


def test_what_was_saved_reads_back_to_the_same_bits(fitted, tmp_path):
  transforms_io.save(fitted, tmp_path)
  again = transforms_io.load(tmp_path)
  new = tables.clicks(300, seed=8)
  same_bits(again.encode(new), fitted.encode(new))
  assert again.schema == fitted.schema and again.features(8) == fitted.features(8)
  assert transforms_io.digest(again) == transforms_io.digest(fitted)
  other = dataclasses.replace(fitted, max_lengths={**fitted.max_lengths, "tags": 5})
  assert transforms_io.digest(other) != transforms_io.digest(fitted)


@pytest.mark.parametrize("name", transforms_io.FILES)
@pytest.mark.parametrize("spoil", ["missing", "cut off", "other"])
def test_damaged_files_of_transforms_are_named(fitted, tmp_path, name, spoil):
  transforms_io.save(fitted, tmp_path)
  path = tmp_path / name
  if spoil == "missing":
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if spoil == "cut off" else b"[]")
  with pytest.raises(ConfigError, match=str(tmp_path)):
    transforms_io.load(tmp_path)
