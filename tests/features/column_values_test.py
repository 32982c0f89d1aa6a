"""A value has one form, whatever it is read from: what training saw, serving finds again."""

from __future__ import annotations

import datetime
import decimal

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxrec.features import BadExampleError, column_values
from jaxrec.features.schema import Column, Schema

MOMENT = datetime.datetime(2024, 1, 31, 23, 5)
MICROSECONDS = 1706742300 * 10**6


def texts(values, kind: str, stored: pa.DataType | None = None) -> list[str | None]:
  return column_values.to_texts(pa.array(values, stored), kind, "column 'x'").to_pylist()


def numbers(values, kind: str, stored: pa.DataType | None = None) -> list[float]:
  return column_values.to_numbers(pa.array(values, stored), kind, "column 'x'").tolist()


# Of each kind: what a value is spelt as, and the forms in which it may come.
SPELLINGS = [
  ("number", "7", [7, 7.0, "7", "7.0", " 7 ", "007", "+7", "7.", "70e-1", decimal.Decimal("7.00")]),
  ("number", "-7", [-7, -7.0, "-7", "-007", "-7.000"]),
  ("number", "0", [0, 0.0, -0.0, "0", "-0", "000", "0.0", False, "false"]),
  ("number", "1", [1, 1.0, "1", True, "true", "True", "TRUE"]),
  ("number", "0.1", [0.1, "0.1", ".1", "0.10", "1e-1"]),
  ("number", "12345678901234567890", ["12345678901234567890", "0012345678901234567890"]),
  ("number", "10000000000", [10**10, 1e10, "1e10"]),
  ("number", "9007199254740991", [2**53 - 1, 2.0**53 - 1, "9007199254740991.0"]),
  # From 2^53 on a float may be another whole number that was rounded, so it is spelt as none.
  ("number", "9007199254740992", [2**53, "9007199254740992"]),
  ("number", "9.007199254740992e+15", [2.0**53, "9007199254740992.0"]),
  ("number", "9.007199254740994e+15", [2.0**53 + 2, "9007199254740994.0"]),
  ("number", "7a", ["7a", " 7a"]),
  ("float32", "0.1", [0.1, "0.1", "0.10", "0.100000001"]),
  ("float32", "16777216", [2**24, "16777217"]),
  ("truth", "true", [True, 1, 1.0, "true", "True", " TRUE", "1"]),
  ("truth", "false", [False, 0, 0.0, "false", "False", "0"]),
  ("truth", "maybe", ["Maybe"]),
  ("text", "007", ["007", " 007"]),
  ("text", "7", ["7", 7, 7.0]),
  ("text", "True", ["True"]),
  ("text", "zoo", ["zoo", "zoo ", "\tzoo"]),
  ("time", "2024-01-31 23:05:00.000000", [MOMENT, "2024-01-31 23:05", "2024-01-31T23:05:00Z"]),
]


@pytest.mark.parametrize(("kind", "spelt", "forms"), SPELLINGS)
def test_all_forms_of_a_value_are_one_text(kind, spelt, forms):
  for form in forms:
    assert texts([form], kind) == [spelt], form


@pytest.mark.parametrize("kind", column_values.KINDS)
def test_what_is_missing_is_missing_in_every_kind(kind):
  found = texts([*column_values.MISSING_TEXTS, " ? ", " ", None], kind)
  assert found == [None] * (len(column_values.MISSING_TEXTS) + 3)
  nothing = numbers([*column_values.MISSING_TEXTS, " ? ", None], kind)
  assert np.isnan(nothing).all()
  if kind != "time":
    assert texts([np.nan, None], kind, pa.float64()) == [None, None]
    assert np.isnan(numbers([np.nan, None], kind, pa.float64())).all()


NUMBERS = [
  ("number", 7.0, [7, 7.0, "7", " +7", "7.0", True + 6, decimal.Decimal("7.00")]),
  ("number", 1.0, [True, "true", "True", 1]),
  ("number", 0.1, [0.1, "0.1"]),
  ("number", 2.0**53, [2**53, 2**53 + 1, "9007199254740993"]),
  ("float32", float(np.float32(0.1)), [0.1, "0.1", np.float32(0.1)]),
  ("time", MICROSECONDS, [MOMENT, "2024-01-31 23:05", "2024/1/31 23:05", "2024-01-31T23:05:00Z"]),
  ("time", 1704164640 * 10**6, ["2024-1-2 03:04", "2024/1/02 03:04", "2024-01-2T03:04:00"]),
  ("time", MICROSECONDS + 123456, ["2024-01-31T23:05:00.123456789", "2024-01-31 23:05:00.123456"]),
]


@pytest.mark.parametrize(("kind", "number", "forms"), NUMBERS)
def test_all_forms_of_a_number_are_one_number(kind, number, forms):
  for form in forms:
    assert numbers([form], kind) == [number], form
  assert not np.signbit(numbers([-0.0], "number")[0])


def test_moments_of_every_precision_are_microseconds():
  for unit in ("s", "ms", "us", "ns"):
    for zone in (None, "UTC"):
      stored = pa.timestamp(unit, zone)
      assert column_values.kind_of(stored) == "time"
      assert numbers([MOMENT], "time", stored) == [MICROSECONDS]
  odd = pa.array([1_000_000_123], pa.timestamp("ns"))  # no whole number of microseconds
  assert column_values.to_numbers(odd, "time", "x").tolist() == [1_000_000]
  assert numbers([datetime.date(1970, 1, 2)], "time", pa.date32()) == [86_400e6]
  for stored in (pa.time32("s"), pa.time64("ns"), pa.duration("ms")):
    value = datetime.timedelta(seconds=90) if "duration" in str(stored) else datetime.time(0, 1, 30)
    assert column_values.kind_of(stored) == "time" and numbers([value], "time", stored) == [90e6]


@pytest.mark.parametrize(
  ("stored", "kind"),
  [
    (pa.uint8(), "number"),
    (pa.float64(), "number"),
    (pa.decimal128(5, 2), "number"),
    (pa.float32(), "float32"),
    (pa.float16(), "float32"),
    (pa.bool_(), "truth"),
    (pa.large_string(), "text"),
    (pa.binary(), "text"),
    (pa.dictionary(pa.int8(), pa.int64()), "number"),
    (pa.list_(pa.float32(), 3), "float32"),
    (pa.large_list(pa.string()), "text"),
  ],
)
def test_a_kind_follows_from_how_a_column_is_stored(stored, kind):
  assert column_values.kind_of(stored) == kind


LISTS = [
  pa.array([[1, 2], [], None, [3, None]]),
  pa.array([[1.0, 2.0], [], None, [3.0, np.nan]], pa.large_list(pa.float64())),
  pa.array(["1|2", "", None, "3|"]),
  pa.array([" 1 |2", " ", "?", "|03|NA"]),
  pa.array(["1|2", "", None, "3|"]).dictionary_encode(),
]


@pytest.mark.parametrize("values", LISTS)
def test_all_forms_of_a_list_are_one_list(values):
  found = column_values.to_lists(values, "number", "x", "|")
  assert found.to_pylist() == [["1", "2"], [], [], ["3"]]
  assert column_values.to_lists(values.slice(1), "number", "x", "|").to_pylist() == [[], [], ["3"]]


def test_lists_of_a_fixed_size_are_lists():
  values = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int32(), 2))
  assert column_values.to_lists(values, "number", "x", "|").to_pylist() == [["1", "2"], [], ["3"]]


@hypothesis.given(st.lists(st.none() | st.integers(-(2**53) + 1, 2**53 - 1), min_size=1))
def test_a_column_of_whole_numbers_is_the_same_from_every_source(values):
  expected = [None if value is None else str(value) for value in values]
  frame = pd.DataFrame({"x": pd.array(values, dtype="Float64")})  # as pandas has it with a gap
  from_frame = pa.Table.from_pandas(frame)["x"].combine_chunks()
  lines = [None if value is None else f" {value} " for value in values]
  for found in (pa.array(values, pa.int64()), from_frame, pa.array(lines, pa.string())):
    assert column_values.to_texts(found, "number", "x").to_pylist() == expected
    again = column_values.to_numbers(found, "number", "x")
    np.testing.assert_array_equal(again, [np.nan if v is None else float(v) for v in values])


@hypothesis.given(
  st.lists(st.none() | st.floats(allow_infinity=False), min_size=1), st.sampled_from([32, 64])
)
def test_a_column_of_numbers_is_the_same_from_every_source(values, bits):
  kind = "number" if bits == 64 else "float32"
  dtype = np.float64 if bits == 64 else np.float32
  with np.errstate(over="ignore"):
    exact = np.array([np.nan if v is None else v for v in values]).astype(dtype)
  hypothesis.assume(not np.isinf(exact).any())
  stored = pa.array(exact, from_pandas=True)
  assert column_values.kind_of(stored.type) == kind
  forms = [stored, pa.array(exact.astype(np.float64)), stored.cast(pa.string())]
  forms.append(pa.array([None if np.isnan(v) else repr(float(v)) for v in exact], pa.string()))
  as_texts = [column_values.to_texts(form, kind, "x").to_pylist() for form in forms]
  as_numbers = [column_values.to_numbers(form, kind, "x") for form in forms]
  assert as_texts == [as_texts[0]] * len(forms)
  for found in as_numbers:
    np.testing.assert_array_equal(found, as_numbers[0])
    assert not np.signbit(found[found == 0]).any()
  back = [np.nan if text is None else dtype(text) for text in as_texts[0]]
  np.testing.assert_array_equal(np.array(back, dtype), exact + dtype(0))


SCHEMA = Schema(
  {"y": None},
  {
    "n": Column("numeric"),
    "when": Column("numeric"),
    "c": Column("categorical"),
    "tags": Column("list", max_length=2),
    "past": Column("sequence", max_length=2),
  },
)
ROWS = {
  "n": ["1", "2", "3"],
  "when": ["2024-01-01"] * 3,
  "c": ["a", "b", "c"],
  "tags": ["a", "b|c", ""],
  "past": ["a|b|c", "b", ""],
}
KINDS = {"n": "number", "when": "time", "c": "text", "tags": "text", "past": "text"}
LENGTHS = {"tags": 2, "past": 2}


def features(rows) -> dict[str, pa.Array]:
  return column_values.features(pa.table(rows), SCHEMA, KINDS, LENGTHS)


def test_features_are_numbers_texts_and_lists():
  found = features({**ROWS, "more": [1, 2, 3]})
  assert found["n"].to_pylist() == [1.0, 2.0, 3.0] and found["c"].to_pylist() == ["a", "b", "c"]
  assert found["past"].to_pylist() == [["b", "c"], ["b"], []]  # the latest two
  nothing = features({name: pa.nulls(3) for name in ROWS})
  assert nothing["n"].null_count == nothing["c"].null_count == 3
  assert nothing["tags"].to_pylist() == [[], [], []]


@pytest.mark.parametrize(
  ("change", "bad_rows", "message"),
  [
    ({"n": ["1", "x", "y"]}, [1, 2], "row 1: column 'n': expected a number, got 'x'; mend"),
    ({"n": [1.0, np.inf, -np.inf]}, [1, 2], "row 1: .*expected a finite number, got inf"),
    ({"n": [1.0, -np.inf, 2.0]}, [1], "row 1: .*expected a finite number, got -inf"),
    ({"n": ["1", "1e999", "2"]}, [1], "row 1: column 'n': expected a finite number, got inf"),
    ({"when": ["2024-01-01", "now", "?"]}, [1], "row 1: column 'when': expected a moment such as"),
    ({"c": [b"a", b"\xff", b"\xff"]}, [1, 2], "row 1: column 'c': expected text or a whole num"),
    ({"tags": [[b"a"], [b"a", b"\xff"], []]}, [1], "row 1: column 'tags': expected text or a"),
    ({"tags": ["a|b|c", "a|?|b", "a|b||c"]}, [0, 2], "row 0: .*a list of 3 values, but max_leng"),
  ],
)
def test_rows_that_cannot_be_used_are_all_found_and_the_first_is_named(change, bad_rows, message):
  with pytest.raises(column_values.BadRowsError, match=message) as caught:
    features({**ROWS, **change})
  assert np.flatnonzero(caught.value.is_bad).tolist() == bad_rows
  batch = pa.RecordBatch.from_pydict({**ROWS, **change})
  use = lambda rows, _: column_values.features(rows, SCHEMA, KINDS, LENGTHS)  # noqa: E731
  found, refused = column_values.of_good_rows(batch, use)
  assert sorted(refused) == bad_rows and len(found["n"]) == 3 - len(bad_rows)
  assert all("column" in reason for reason in refused.values())
  (column,) = change
  for place, reason in refused.items():  # each with its own value
    got = change[column][place]
    is_list = isinstance(got, list) or "|" in str(got)
    assert is_list or f"got {got!r}" in reason or f"got {float(got)!r}" in reason


def test_rows_bad_in_several_columns_are_counted_once():
  rows = {**ROWS, "n": ["x", "2", "3"], "when": ["then", "now", "2024-01-01"]}
  batch = pa.RecordBatch.from_pydict(rows)
  found, refused = column_values.of_good_rows(
    batch, lambda rows, _: column_values.features(rows, SCHEMA, KINDS, LENGTHS)
  )
  assert sorted(refused) == [0, 1] and "'n'" in refused[0] and "'when'" in refused[1]
  assert found["c"].to_pylist() == ["c"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"n": [{"a": 1}] * 3}, "column 'n': expected a number, got values of type struct"),
    ({"n": [MOMENT] * 3}, "column 'n': expected numbers, got values of type timestamp"),
    ({"when": [1, 2, 3]}, "column 'when': expected a moment such as .* got values of type int64"),
    ({"c": [[1]] * 3}, "column 'c': expected text or whole numbers, got values of type list"),
    ({"tags": [1, 2, 3]}, "column 'tags': expected lists, or text separated by '.', got values"),
  ],
)
def test_a_type_that_cannot_be_read_is_refused(change, message):
  with pytest.raises(BadExampleError, match=message) as caught:
    features({**ROWS, **change})
  assert not isinstance(caught.value, column_values.BadRowsError)
