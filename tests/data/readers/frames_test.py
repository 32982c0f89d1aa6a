"""Rows as Python objects: a value is kept as it is, spelt as in every form, or refused."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec.data.readers import frames
from jaxrec.features import BadExampleError, column_values

FIRST = 8192  # records of a chunk
MOMENT = datetime.datetime(2024, 1, 31, 5)


def written(values, folder):
  """The column as it is read again, and in how many files it lies."""
  reader = frames.write_records(({"x": value} for value in values), folder)
  rows = [value for batch in reader.batches(["x"]) for value in batch.column(0).to_pylist()]
  return rows, len(reader.paths)


@pytest.mark.parametrize(
  ("first", "later", "num_files"),
  [
    (1, 1.9, 2),
    (None, 1, 2),
    (1.5, 2, 1),
    ([], [1], 2),
    ([1], [1.5, None], 2),
    (np.int8(1), 300, 2),
    (np.float32(0.1), 0.1, 2),
  ],
)
def test_a_stream_whose_column_widens_loses_no_value(tmp_path, first, later, num_files):
  values = [first] * FIRST + [later, first, None]
  assert written(values, tmp_path) == (values, num_files)


@pytest.mark.parametrize(
  ("first", "later"),
  [
    ("a", 1),
    (1, "a"),
    (1, True),
    (True, 1),
    (1.5, 2**60 + 1),
    (2**60 + 1, 1.5),
    (MOMENT.date(), MOMENT),
    (1, 2**70),
  ],
)
def test_a_stream_of_several_types_is_refused_and_its_column_named(tmp_path, first, later):
  message = r"records( \d+ to \d+)?: a value of another type than others in column 'x' \(.+\); make"
  for number in (1, FIRST):
    (folder := tmp_path / str(number)).mkdir()
    with pytest.raises(BadExampleError, match=message):
      written([first] * number + [later], folder)


def test_records_that_are_no_mappings_are_refused(tmp_path):
  message = "records 0 to 1: expected mappings from column to value .*make each record a dict"
  with pytest.raises(BadExampleError, match=message):
    frames.write_records([{"x": 1}, 3], tmp_path)


def test_a_column_that_the_first_records_lack_is_named(tmp_path):
  records = [{"x": 1}] * FIRST + [{"x": 1, "y": 2}]
  with pytest.raises(BadExampleError, match="records 8192 to 8192: column 'y' is not in the first"):
    frames.write_records(records, tmp_path)


VALUES = [
  "7", 8, 8.0, 1.5, 1e22, 2**60 + 1, 2**70, True, np.int64(3), np.float64(2), b"x", MOMENT,
  MOMENT.date(), np.str_("q"), None, float("nan"), pd.NA,
]  # fmt: skip


def test_a_record_among_others_of_other_types_has_the_id_that_it_has_alone():
  together = frames.of_records([{"x": value} for value in VALUES], "predict")
  found = column_values.to_texts(column_values.column_of(together, "x"), "text", "x").to_pylist()
  for value, text in zip(VALUES, found, strict=True):
    alone = column_values.column_of(frames.of_records([{"x": value}], "predict"), "x")
    assert column_values.to_texts(alone, "text", "x").to_pylist() == [text], value
  numbers = frames.of_records([{"x": value} for value in VALUES[:10]], "predict")
  assert column_values.to_numbers(
    column_values.column_of(numbers, "x"), "number", "x"
  ).tolist() == [float(value) for value in VALUES[:10]]


def test_values_of_lists_may_be_of_several_types():
  found = frames.of_records([{"x": ["7", 8]}, {}, {"x": np.array([9.0])}, {"x": ()}], "predict")
  assert found["x"].to_pylist() == [["7", "8"], None, ["9"], []]


@pytest.mark.parametrize(
  ("records", "message"),
  [
    ([{"x": [1]}, {"x": 2}], "predict: column 'x': expected lists in every row or in none"),
    ([{"x": 1j}], "predict: column 'x': .*got values of type complex .*convert the column, or"),
    ([{"x": {"a": 1}}, {"x": 1}], "predict: column 'x': .*got values of type dict"),
    ([{}], "predict: expected records with columns, got empty ones"),
  ],
)
def test_records_that_cannot_be_read_are_named(records, message):
  with pytest.raises(BadExampleError, match=message):
    frames.of_records(records, "predict")


@pytest.mark.parametrize(
  ("frame", "message"),
  [
    (pd.DataFrame([[1, 2]], columns=["x", "x"]), "column 'x' stands there 2 times, .*rename"),
    (pd.DataFrame({"x": [1j]}), "column x with type complex128.*convert it"),
    (pd.DataFrame({"x": pd.arrays.SparseArray([0, 1])}), "Sparse .*x.*astype"),
    (pd.DataFrame({"x": [1, "a"]}), "a column of several types.*column x"),
    (pd.DataFrame({"x": [2**70]}), "a type that cannot be read.*convert it"),
    (pd.Series([1]), "the frame: expected a pandas frame, got Series"),
  ],
)
def test_a_frame_that_cannot_be_read_says_what_to_do(frame, message):
  with pytest.raises(BadExampleError, match=f"^the frame: .*{message.removeprefix('the frame: ')}"):
    frames.of_frame(frame, "the frame")
  assert frames.of_frame(pd.DataFrame({"x": [1]}), "") == pa.table({"x": [1]})
