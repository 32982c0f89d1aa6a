"""Files are read in order, and whatever is wrong with one is named with its line."""

from __future__ import annotations

import dataclasses
import gzip
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError, column_values
from tests.data import tables

GOOD = b"a,b,click\n" + b"".join(b"%d,x%d,%d\n" % (i, i, i % 2) for i in range(100))


def read(path, **options) -> pa.Table:
  reader = reader_lib.open_files(path, **options)
  return pa.Table.from_batches(reader.batches(reader.schema.names), schema=reader.schema)


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv", "x.parquet", "folder/x.parquet"])
def test_every_form_holds_the_same_rows_in_the_same_order(tmp_path, name):
  table = tables.clicks(300).select(["user", "age", "city", "click"])
  path = tables.write(table, tmp_path / name)
  if name.endswith(".tsv"):
    path.write_bytes(path.read_bytes().replace(b",", b"\t"))
  found = read(path.parent if "/" in name else path)
  assert found.column_names == table.column_names
  for column in table.column_names:
    ours, theirs = (
      column_values.to_texts(one[column].combine_chunks(), "number", column).to_pylist()
      for one in (found, table)
    )
    assert ours == theirs


def test_files_of_a_folder_follow_one_another_by_name(tmp_path):
  for name, first in (("b", 50), ("a", 0)):
    pq.write_table(pa.table({"k": np.arange(first, first + 50)}), tmp_path / f"{name}.parquet")
  assert read(tmp_path)["k"].to_pylist() == list(range(100))
  (tmp_path / "readme.md").write_text("not data")
  assert read(tmp_path).num_rows == 100


@pytest.mark.parametrize(
  ("values", "kind"),
  [
    ([b"1", b"", b"3"], "number"),
    ([b"1.5", b"NA", b"3"], "number"),
    ([b" 1", b" ? ", b"3  "], "number"),
    ([b"   ", b"NA ", b"3"], "number"),
    ([b"9999999999999999999", b"1", b"2e5"], "number"),
    ([b"1_000", b"2", b"3"], "text"),
    ([b"true", b"False", b""], "truth"),
    ([b" true", b" ?", b" False"], "truth"),
    ([b"1", b"x", b"y"], "text"),
    ([b"2013-02-01", b"2013/2/2 10:00:00", b""], "time"),
    ([b"2013-02-01", b"2013-02-02T10:00:00.5+01:00", b""], "time"),
    ([b"2013-02-01", b"02.03.2013", b""], "text"),
    ([b"", b"NA", b"?"], "text"),
  ],
)
def test_kinds_follow_from_the_first_rows(tmp_path, values, kind):
  (tmp_path / "x.csv").write_bytes(b"v,k\n" + b"".join(b"%s,0\n" % value for value in values))
  assert reader_lib.open_files(tmp_path / "x.csv").kinds == {"v": kind, "k": "number"}


def test_ids_are_read_as_text_whatever_the_first_rows_hold(tmp_path):
  (tmp_path / "x.csv").write_bytes(b"v,k\n" + b"007,0\n" * 99 + b" zoo ,1\n7,1\n")
  reader = reader_lib.open_files(tmp_path / "x.csv")
  assert reader.kinds["v"] == "number"
  (rows,) = reader.batches(["v"])
  assert rows.column("v").to_pylist()[-3:] == ["007", " zoo ", "7"]
  assert reader.schema.field("v").type == pa.string()


def test_a_fraction_among_whole_numbers_is_kept_and_an_id_is_never_rounded(tmp_path):
  lines = b"".join(b"%d,%d\n" % (k, k) for k in range(25_000)) + b"3.7,3.7\n1e3,1e3\n"
  (tmp_path / "x.csv").write_bytes(b"n,id\n" + lines)
  reader = reader_lib.open_files(tmp_path / "x.csv")
  assert reader.kinds == {"n": "number", "id": "number"}
  rows = pa.Table.from_batches(reader.batches(["n", "id"]))
  numbers = column_values.to_numbers(rows["n"].combine_chunks(), "number", "x")
  assert numbers.tolist()[-3:] == [24_999.0, 3.7, 1000.0]
  texts = column_values.to_texts(rows["id"].combine_chunks(), "number", "x")
  assert texts.to_pylist()[-3:] == ["24999", "3.7", "1000"]


BAD = {
  "too few": (
    GOOD + b"7,x\n",
    r"x\.csv, line 102: Expected Number of Columns: 3 Found: 2 in '7,x'",
  ),
  "too many": (GOOD + b"7,x,1,9\n8,x,0\n", r"line 102: Expected Number of Columns: 3 Found: 4"),
  "not UTF-8": (GOOD + b"7,\xff\xfe,1\n", r"line 102: Invalid unicode"),
  "open quote": (GOOD + b'7,"x,1\n8,y,1\n', r"x\.csv, line 102: .*quote"),
  "a name twice": (b"a,a,click\n1,2,0\n", r"x\.csv, line 1: column 'a' twice"),
  "no name": (b"a,,click\n1,2,0\n", r"x\.csv, line 1: a column without a name"),
  "a header not UTF-8": (b"\xff\xfea,b\n1,2\n", r"x\.csv, line 1: is not UTF-8 text"),
  "an empty first line": (b"\n1,2\n", r"x\.csv, line 1: expected column names, got an empty line"),
  "empty": (b"", r"x\.csv: is empty"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_text_file_is_named_with_its_line(tmp_path, fault):
  content, message = BAD[fault]
  (tmp_path / "x.csv").write_bytes(content)
  with pytest.raises(BadExampleError, match=message):
    read(tmp_path / "x.csv")


@pytest.mark.parametrize("fault", ["too few", "too many", "not UTF-8"])
def test_bad_rows_can_be_left_out_and_are_counted(tmp_path, fault):
  (tmp_path / "x.csv").write_bytes(BAD[fault][0] + b"9,z,1\n")
  reader = reader_lib.open_files(tmp_path / "x.csv", skip_bad_rows=True)
  rows = pa.Table.from_batches(reader.batches(["a", "b"]))
  good = 102 if fault == "too many" else 101
  assert rows.num_rows == good and rows["a"].to_pylist()[-1] == "9"
  assert len(reader.bad_rows) == 1
  assert reader.bad_rows[0].startswith(f"{tmp_path / 'x.csv'}, line 102: ")


@pytest.mark.parametrize("name", ["x.csv.gz", "x.parquet"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_a_file_cut_off_is_refused(tmp_path, name, share):
  path = tables.write(tables.clicks(3000), tmp_path / name)
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  with pytest.raises(BadExampleError, match=rf"{name}: .*(cut off|cannot be read)"):
    read(path)


def test_what_is_no_gzip_no_parquet_no_folder_is_named(tmp_path):
  (tmp_path / "x.csv.gz").write_bytes(GOOD)
  with pytest.raises(BadExampleError, match=r"x\.csv\.gz: cannot be read: Not a gzipped file"):
    read(tmp_path / "x.csv.gz")
  (tmp_path / "y.parquet").write_bytes(b"PAR1" + b"x" * 100)
  with pytest.raises(BadExampleError, match=r"y\.parquet: is damaged, cut off or no Parquet file"):
    read(tmp_path / "y.parquet")
  with pytest.raises(BadExampleError, match="holds files of several forms"):
    read(tmp_path)
  with pytest.raises(BadExampleError, match="nowhere: no such file or folder; check --data_dir"):
    read(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(BadExampleError, match="empty: nothing to read; expected a file"):
    read(tmp_path / "empty")


def test_files_of_other_columns_are_not_read_as_one_table(tmp_path):
  for form in ("csv", "parquet"):
    folder = tmp_path / form
    tables.write(pa.table({"a": [1], "click": [0]}), folder / f"1.{form}")
    tables.write(pa.table({"click": [1], "a": [1]}), folder / f"2.{form}")
    with pytest.raises(BadExampleError, match=rf"2\.{form}: .* need the same columns"):
      read(folder)


@pytest.mark.parametrize("line", ["7,x", "7,x,1"])
def test_a_wrong_checksum_names_the_file_where_its_lines_are_counted(tmp_path, line):
  spoiled = bytearray(gzip.compress(GOOD + line.encode()))
  spoiled[-8] ^= 1
  path = tmp_path / "x.csv.gz"
  path.write_bytes(spoiled)
  reader = reader_lib.open_files(path)
  message = "x.csv.gz: cannot be read: .*; is it damaged or cut off"
  with pytest.raises(BadExampleError, match=message):
    for _ in reader.batches(list(reader.kinds)):
      pass
    reader.places([100])


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=3)), max_size=4),
  st.booleans(),
  st.booleans(),
)
@hypothesis.settings(max_examples=60)
def test_a_spoiled_file_is_read_or_refused_and_nothing_else(tmp_path_factory, edits, skip, is_gzip):
  data = gzip.compress(GOOD) if is_gzip else GOOD
  for place, new in edits:
    place %= len(data)
    data = data[:place] + new + data[place + 1 :]
  path = tmp_path_factory.mktemp("fuzz") / ("x.csv.gz" if is_gzip else "x.csv")
  path.write_bytes(data)
  try:
    found = read(path, skip_bad_rows=skip)
  except BadExampleError as error:
    assert path.name in str(error)
  else:
    assert found.num_rows <= 120


@hypothesis.given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4))
@hypothesis.settings(max_examples=40)
def test_a_spoiled_parquet_file_is_read_or_refused_and_nothing_else(tmp_path_factory, place, new):
  path = tmp_path_factory.mktemp("fuzz") / "x.parquet"
  tables.write(tables.clicks(50), path)
  data = path.read_bytes()
  place %= len(data)
  path.write_bytes(data[:place] + new + data[place + 1 :])
  try:
    assert read(path).num_rows <= 50
  except BadExampleError as error:
    assert "x.parquet" in str(error)


ROWS = st.lists(
  st.tuples(st.sampled_from(["a", "b,c", 'say "d"', "two\nlines", "e\r\nf", ""]), st.booleans()),
  min_size=1,
  max_size=30,
)


@hypothesis.given(st.lists(ROWS, min_size=1, max_size=3), st.booleans(), st.sampled_from("\n\r"))
@hypothesis.settings(max_examples=60)
def test_rows_are_found_again_on_their_lines(tmp_path_factory, parts, is_gzip, ending):
  folder = tmp_path_factory.mktemp("places")
  ending = "\r\n" if ending == "\r" else "\n"
  expected, number = [], 0
  for k, part in enumerate(parts):
    path = folder / (f"{k}.csv.gz" if is_gzip else f"{k}.csv")
    text, line = f"text,number{ending}", 2
    for value, is_followed_by_nothing in part:
      quoted = '"' + value.replace('"', '""') + '"'
      text += f"{quoted},{number}{ending}"
      expected.append(f"{path}, line {line}")
      line += 1 + value.count("\n")
      number += 1
      if is_followed_by_nothing:
        text, line = text + ending, line + 1
    path.write_bytes(gzip.compress(text.encode()) if is_gzip else text.encode())
  reader = reader_lib.open_files(folder)
  rows = pa.Table.from_batches(reader.batches(["number"]))
  assert rows["number"].to_pylist() == list(map(str, range(number)))
  assert reader.places(range(number)) == expected
  assert reader.places([number - 1]) == expected[-1:]


def test_rows_and_faults_after_lines_that_were_left_out_are_found_on_their_lines(tmp_path):
  path = tmp_path / "x.csv"
  several = b'1,"two\nlines",0\n\n'  # a record of two lines, and an empty line
  path.write_bytes(GOOD + several + b"7,x\n8,x,1\n" + several + b"foo,x\n9,z,1\n")
  reader = reader_lib.open_files(path, skip_bad_rows=True)
  rows = pa.Table.from_batches(reader.batches(["a", "b"]))
  assert rows["a"].to_pylist()[-4:] == ["1", "8", "1", "9"]
  assert reader.places(range(100, 104)) == [f"{path}, line {n}" for n in (102, 106, 107, 111)]
  expected = "Expected Number of Columns: 3 Found: 2"
  assert reader.bad_rows == [f"{path}, line {n}: {expected}" for n in (105, 110)]
  with pytest.raises(BadExampleError, match="x.csv, line 105: Expected Number of Columns: 3 Found"):
    read(path)


@pytest.mark.parametrize("at", [3_000, 150_000])
@pytest.mark.parametrize("fault", [b"1,x\n", b"1,x,1,2\n", b"1,\xff,1\n", b'"1,x,1\n'])
def test_a_bad_line_far_down_is_named_like_one_at_the_top(tmp_path, at, fault):
  path = tmp_path / "x.csv"
  path.write_bytes(b"a,b,click\n" + b"1,x,0\n" * at + fault + b"2,y,1\n" * 50)
  with pytest.raises(BadExampleError, match=rf"x\.csv, line {at + 2}: .*; mend the line, or leave"):
    read(path)


def test_a_quote_that_is_not_closed_is_refused_even_where_bad_rows_are_skipped(tmp_path):
  path = tmp_path / "x.csv"
  path.write_bytes(GOOD + b'"7,x,1\n' + b"8,x,1\n" * 20)
  with pytest.raises(
    BadExampleError, match="line 102: a quote that is not closed .* takes 20 more"
  ):
    read(path, skip_bad_rows=True)
  path.write_bytes(GOOD + b'7,"x"y,1\n' + b"8,x,1\n" * 20)  # on one line it can be left out
  assert read(path, skip_bad_rows=True).num_rows == 120
  path.write_bytes(GOOD + b'7,"x\ny"\n' + b"8,x,1\n" * 20)
  reader = reader_lib.open_files(path, skip_bad_rows=True)
  assert sum(rows.num_rows for rows in reader.batches(["a"])) == 120
  assert [line for lines in reader.bad_lines.values() for line in lines] == [102, 103]


def test_line_ends_of_old_machines_and_long_values_are_read_or_named(tmp_path):
  (tmp_path / "x.csv").write_bytes(GOOD.replace(b"\n", b"\r"))
  with pytest.raises(BadExampleError, match="line 1: cannot be read as column names"):
    read(tmp_path / "x.csv")
  path = tmp_path / "long.csv"
  path.write_bytes(GOOD + b"7," + b"x" * 200_000 + b",1\n8,y,1\n")
  reader = reader_lib.open_files(path)
  assert sum(rows.num_rows for rows in reader.batches(["b"])) == 102
  assert reader.places([101]) == [f"{path}, line 103"]


def test_files_without_a_line_of_names_are_read_from_their_first_line(tmp_path):
  path = tmp_path / "x.csv"
  path.write_bytes(b"1,x\n2,y\n7\n3,z\n")
  reader = reader_lib.open_files(path, column_names=("a", "b"), skip_bad_rows=True)
  rows = pa.Table.from_batches(reader.batches(["a", "b"]))
  assert rows.to_pydict() == {"a": ["1", "2", "3"], "b": ["x", "y", "z"]}
  assert reader.places(range(3)) == [f"{path}, line {n}" for n in (1, 2, 4)]
  expected = "Expected Number of Columns: 2 Found: 1"
  assert reader.bad_rows == [f"{path}, line 3: {expected}"]
  with pytest.raises(BadExampleError, match=f"x.csv, line 3: {expected}"):
    read(path, column_names=("a", "b"))


def test_a_file_that_is_read_in_another_way_is_another_table(tmp_path):
  (tmp_path / "x.csv").write_bytes(GOOD)
  reader = reader_lib.open_files(tmp_path / "x.csv")
  again = reader_lib.open_files(tmp_path / "x.csv")
  assert again.identity() == reader.identity()
  others = [
    dataclasses.replace(reader, **change)
    for change in (
      {"separator": ";"},
      {"kinds": {**reader.kinds, "b": "number"}},
      {"kinds": dict(reversed(reader.kinds.items()))},
      {"has_header": False},
      {"skip_bad_rows": True},
    )
  ]
  assert len({json.dumps(one.identity()) for one in (reader, *others)}) == 1 + len(others)


def test_names_may_differ_in_case_alone(tmp_path):
  (tmp_path / "x.csv").write_bytes(b'City,city,"c ""0"""\na,b,c\nd,e,f\n')
  found = read(tmp_path / "x.csv")
  assert found.to_pydict() == {"City": ["a", "d"], "city": ["b", "e"], 'c "0"': ["c", "f"]}
  (rows,) = reader_lib.open_files(tmp_path / "x.csv").batches(["city"])
  assert rows.to_pydict() == {"city": ["b", "e"]}


def test_rows_of_parquet_files_are_found_again_in_their_file(tmp_path):
  for name, size in (("a", 3), ("b", 2), ("c", 4)):
    pq.write_table(pa.table({"k": np.arange(size)}), tmp_path / f"{name}.parquet")
  reader = reader_lib.open_files(tmp_path)
  assert reader.places([0, 2, 3, 4, 5, 8]) == [
    f"{tmp_path}/{place}"
    for place in ("a.parquet, row 0", "a.parquet, row 2", "b.parquet, row 0", "b.parquet, row 1",
                  "c.parquet, row 0", "c.parquet, row 3")
  ]  # fmt: skip


def test_files_may_hold_wider_and_narrower_numbers_but_not_other_things(tmp_path):
  pq.write_table(pa.table({"k": pa.array([1, 2], pa.int32())}), tmp_path / "a.parquet")
  pq.write_table(pa.table({"k": pa.array([2**40], pa.int64())}), tmp_path / "b.parquet")
  pq.write_table(pa.table({"k": pa.array([None, None], pa.null())}), tmp_path / "c.parquet")
  found = read(tmp_path)
  assert found["k"].to_pylist() == [1, 2, 2**40, None, None]
  assert found.schema.field("k").type == pa.int64()
  pq.write_table(pa.table({"k": ["text"]}), tmp_path / "d.parquet")
  with pytest.raises(
    BadExampleError, match=r"d\.parquet: a column is of another type than in .*a\."
  ):
    read(tmp_path)
