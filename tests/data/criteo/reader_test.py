"""Raw files are read the same whatever the chunk, and bad input is named by file and line."""

from __future__ import annotations

import gzip
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxrec.config import ConfigError
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import criteo, registry
from jaxrec.data.criteo import fields, reader, schema
from jaxrec.features import BadExampleError
from tests.data.criteo import cases as criteo_cases
from tests.data.criteo import reference as criteo_reference


def line(label="1", dense=("",) * 13, ids=("",) * 26):
  return "\t".join([label, *dense, *ids])


GOOD = [
  line("0", [str(value) for value in range(-3, 10)], [f"{value:08x}" for value in range(26)]),
  line("1", ["2147483647", "-2147483648", "", "-0", "0000000007", "99999999"] + ["100000000"] * 7),
  line("1", ids=["ffffffff", "FFFFFFFF", "80000000", "abcdef09", "ABCDEF90"] + [""] * 21),
  line("0"),
]  # fmt: skip


def read(path, **options):
  return fields.concatenate([block.rows for block in reader.read_blocks(path, **options)])


def assert_reads(path, lines, **options):
  path.with_suffix(".good").write_text("\n".join(lines))
  rows = read(path, **options)
  expected = criteo_reference.read_day(path.with_suffix(".good"))
  assert rows.labels.tolist() == [label for label, _, _ in expected]
  assert rows.dense.tolist() == [dense for _, dense, _ in expected]
  assert rows.ids.tolist() == [ids for _, _, ids in expected]


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("chunk_bytes", [1, 39, 64, 300, 10_000])
def test_rows_are_the_same_whatever_the_chunk_and_with_or_without_a_last_newline(
  tmp_path, chunk_bytes, ending
):
  path = tmp_path / "day_0"
  path.write_text("\n".join(GOOD * 3) + ending)
  assert_reads(path, GOOD * 3, chunk_bytes=chunk_bytes)


def test_every_width_and_sign_of_a_number_is_read(tmp_path):
  numbers = [str(sign * value) for width in range(1, 11) for sign in (1, -1)
             for value in (10 ** (width - 1), min(10**width - 1, schema.INT32.max))]  # fmt: skip
  lines = [line("0", [*(numbers[k:] + numbers)[:13]]) for k in range(len(numbers))]
  path = tmp_path / "day_0"
  path.write_text("\n".join(lines))
  assert_reads(path, lines)


BAD = {
  "label empty": (line(""), r"label: expected 0 or 1 \(is this an unlabeled test file\?\), got ''"),
  "label -1": (line("-1"), "label: expected 0 or 1 .*got '-1'"),
  "label 2": (line("2"), "label: expected 0 or 1 .*got '2'"),
  "header": (line("label"), "label: expected 0 or 1 .*got 'label'"),
  "39 columns": (line()[2:], r"expected 40 columns, got 39: is this an unlabeled test file"),
  "41 columns": (line() + "\t", "expected 40 tab-separated columns, got 41"),
  "empty line": ("", "expected 40 tab-separated columns, got 1"),
  "spaces": (line().replace("\t", " "), "expected 40 tab-separated columns, got 1"),
  "a float": (line(dense=["1.5"] + [""] * 12), "I1: expected an integer or nothing, got '1.5'"),
  "a plus": (line(dense=[""] * 12 + ["+5"]), r"I13: expected an integer or nothing, got '\+5'"),
  "a blank": (line(dense=["", " 5"] + [""] * 11), "I2: expected an integer or nothing, got ' 5'"),
  "hexadecimal": (line(dense=["0x1F"] + [""] * 12), "I1: expected an integer.*'0x1F'"),
  "a sign alone": (line(dense=["-"] + [""] * 12), "I1: expected an integer or nothing, got '-'"),
  "inner sign": (line(dense=["1-2"] + [""] * 12), "I1: expected an integer or nothing, got '1-2'"),
  "beyond int32": (
    line(dense=["2147483648"] + [""] * 12), "I1: expected an integer of 32 bits, got '2147483648'"
  ),
  "below int32": (line(dense=["-2147483649"] + [""] * 12), "I1: expected an integer of 32 bits"),
  "eleven digits": (line(dense=["00000000001"] + [""] * 12), "I1: expected an integer or nothing"),
  "not hex": (line(ids=["0000000g"] + [""] * 25), "C1: expected 8 hexadecimal digits .*'0000000g'"),
  "7 digits": (line(ids=[""] * 25 + ["1234567"]), "C26: expected 8 hexadecimal digits .*'1234567'"),
  "9 digits": (line(ids=["123456789"] + [""] * 25), "C1: expected 8 hexadecimal digits"),
  "a return": (line(ids=[""] * 25 + ["12345678"]) + "\r", r"C26: expected 8 hex.*'12345678\\r'"),
  "a NUL": (line(ids=["1234\x005678"[:8]] + [""] * 25), r"C1: expected 8 hexadecimal digits"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_ends_the_reading_with_file_line_and_reason(tmp_path, text, message):
  path = tmp_path / "day_0"
  path.write_text("\n".join([*GOOD * 5, text, *GOOD]) + "\n")
  for chunk_bytes in (50, 1 << 20):
    with pytest.raises(BadExampleError, match=message) as caught:
      read(path, chunk_bytes=chunk_bytes)
    assert str(caught.value).startswith(f"{path}, line {5 * len(GOOD) + 1}: ")


@pytest.mark.parametrize("character", [chr(code) for code in [*range(9), *range(11, 128)]])
def test_of_all_characters_only_digits_are_digits(tmp_path, character):
  path = tmp_path / "day_0"
  for name, text in (
    ("hex", line(ids=[f"0a{character}00000"] + [""] * 25)),
    ("decimal", line(dense=[f"1{character}2"] + [""] * 12)),
    ("long", line(dense=[f"1{character}12345678"] + [""] * 12)),
  ):
    path.write_text(text)
    if character in ("0123456789abcdefABCDEF" if name == "hex" else "0123456789"):
      assert_reads(path, [text])
    else:
      with pytest.raises(BadExampleError, match="line 1: [IC]1: expected"):
        read(path)


def test_text_that_is_not_utf8_is_named(tmp_path):
  path = tmp_path / "day_0"
  path.write_bytes(line(ids=["1234567\xff"] + [""] * 25).encode("latin-1") + b"\n")
  with pytest.raises(BadExampleError, match=r"line 1: C1: expected 8 hex.*'1234567\\\\xff'"):
    read(path)


def test_bad_rows_are_skipped_and_counted(tmp_path):
  path = tmp_path / "day_0"
  path.write_text("\n".join([*GOOD, "bad", *GOOD, line("-1"), GOOD[0]]))
  kept = [*GOOD, *GOOD, GOOD[0]]
  for chunk_bytes in (7, 200, 1 << 20):
    assert_reads(path, kept, chunk_bytes=chunk_bytes, on_bad_row="skip")
    blocks = list(reader.read_blocks(path, chunk_bytes=chunk_bytes, on_bad_row="skip"))
    assert sum(block.num_bad for block in blocks) == 2
    assert next(b.first_bad for b in blocks if b.num_bad).startswith(f"line {len(GOOD) + 1}: ")


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_line_without_end_is_no_text_file(tmp_path, on_bad_row):
  path = tmp_path / "day_0"
  path.write_bytes(GOOD[0].encode() + b"\n" + b"x" * 200_000)
  for chunk_bytes in (1000, 1 << 20):
    with pytest.raises(BadExampleError, match="line 2: is longer than 65536 bytes"):
      read(path, chunk_bytes=chunk_bytes, on_bad_row=on_bad_row)


def test_an_empty_file_is_named(tmp_path):
  for name, content in (("day_0", b""), ("day_0.gz", gzip.compress(b""))):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadExampleError, match=f"{name}: is empty"):
      read(tmp_path / name)


def test_a_truncated_or_damaged_gzip_is_named_with_how_far_it_went(tmp_path):
  whole = gzip.compress("\n".join(GOOD * 400).encode(), 1)
  path = tmp_path / "day_0.gz"
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(BadExampleError, match="the gzip stream is truncated or damaged") as caught:
    read(path, chunk_bytes=1000)
  assert re.search(r"day_0.gz, after line [1-9]\d*: ", str(caught.value))
  damaged = bytearray(whole)
  damaged[-6] ^= 1  # the checksum
  path.write_bytes(damaged)
  with pytest.raises(BadExampleError, match="truncated or damaged"):
    read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(ConfigError, match=r"cannot read .*day_7: No such file"):
    read(tmp_path / "day_7")


FIELD = st.one_of(
  st.just(""),
  st.integers(-(2**33), 2**33).map(str),
  st.integers(0, 2**32 - 1).map("{:08x}".format),
  st.text(st.sampled_from("0123456789abcdefABCDEFgG-+ .x\r\x00é:/@`"), max_size=12),
)


@hypothesis.given(
  st.lists(
    st.one_of(
      st.sampled_from(GOOD),
      st.lists(FIELD, min_size=38, max_size=42).map("\t".join),
      st.tuples(st.sampled_from(GOOD), st.integers(0, 39), FIELD).map(
        lambda t: "\t".join([*t[0].split("\t")[: t[1]], t[2], *t[0].split("\t")[t[1] + 1 :]])
      ),
      st.text(max_size=20),
    ),
    max_size=12,
  ),
  st.integers(1, 500),
)
def test_any_text_is_read_as_one_line_at_a_time_would_be(tmp_path_factory, lines, chunk_bytes):
  path = tmp_path_factory.mktemp("fuzz") / "day_0"
  text = "\n".join(lines).encode()
  path.write_bytes(text)
  given = text.removesuffix(b"\n").split(b"\n")  # a text may hold newlines of its own
  good = [item for item in given if fields.problem(item) is None]
  if not text:
    return
  rows = read(path, chunk_bytes=chunk_bytes, on_bad_row="skip")
  path.with_suffix(".good").write_bytes(b"\n".join(good))
  expected = criteo_reference.read_day(path.with_suffix(".good"))
  assert rows.labels.tolist() == [label for label, _, _ in expected]
  assert rows.dense.tolist() == [dense for _, dense, _ in expected]
  assert rows.ids.tolist() == [ids for _, _, ids in expected]
  if len(good) < len(given):
    with pytest.raises(BadExampleError, match=r"day_0, line \d+: "):
      read(path, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ([], r"expected train.txt \(Kaggle\) or day_0, day_1, .*; it is empty"),
    (["test.txt"], "expected train.txt .*; found test.txt"),
    (["day_0"], "at least two.*; found day_0"),
    (["day_0", "day_2"], "; day_1 is missing"),
    (["day_1", "day_2"], "; day_0 is missing"),
    (["day_0", "day_0.gz", "day_1"], "holds both day_0 and day_0.gz"),
    (["train.txt", "day_0", "day_1"], "holds both train.txt and day_0"),
  ],
)
def test_a_folder_without_the_raw_files_is_named(tmp_path, names, message):
  for name in names:
    (tmp_path / name).write_text("")
  with pytest.raises(ConfigError, match=message):
    schema.find_files(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(ConfigError, match="there is no folder .*absent"):
    schema.find_files(str(tmp_path / "absent"))
  with pytest.raises(ConfigError, match="needs the folder of the raw files: --data_dir=FOLDER"):
    registry.load(experiment_lib.DataConfig(dataset="criteo"), embedding_dim=4)


def test_terabytes_days_are_in_the_order_of_their_numbers(tmp_path):
  for day in range(12):
    (tmp_path / f"day_{day}").write_text("")
  found = schema.find_files(str(tmp_path))
  assert [path.name for path in found.paths] == [f"day_{day}" for day in range(12)]


def test_nothing_half_written_stays_after_bad_input(tmp_path):
  criteo_cases.write_days(tmp_path / "raw", [50, 50])
  with open(tmp_path / "raw" / "day_1", "a") as file:
    file.write("\nbad\n")
  with pytest.raises(BadExampleError, match="day_1, line 53: expected 40 tab-separated columns"):
    criteo.prepare(criteo_cases.data_config(tmp_path / "raw", tmp_path / "out"))
  assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize("is_kaggle", [False, True])
def test_skipped_rows_are_reported_and_the_rest_is_as_if_they_had_not_been(tmp_path, is_kaggle):
  for folder, bad in (("clean", ""), ("spoilt", "bad\n")):
    (tmp_path / folder).mkdir()
    names = ["train.txt"] if is_kaggle else ["day_0", "day_1"]
    for name in names:
      good = [f"{text}\n" for text in GOOD * 6]
      (tmp_path / folder / name).write_text("".join([*good[:4], bad, *good[4:], bad]))
  lines = []
  spoilt = criteo_cases.data_config(tmp_path / "spoilt", tmp_path / "out", on_bad_row="skip")
  dataset = criteo_cases.load(spoilt, report=lines.append)
  num_bad = 2 if is_kaggle else 4
  assert lines[-1].startswith(f"criteo: skipped {num_bad} bad rows; the first: ")
  assert f"{names[0]}, line 5: expected 40" in lines[-1]
  assert f"{num_bad} bad rows skipped" in dataset.describe()
  clean = criteo_cases.load(criteo_cases.data_config(tmp_path / "clean", tmp_path / "out"))
  for split, columns in criteo_cases.read_all(clean).items():
    for name, values in columns.items():
      np.testing.assert_array_equal(criteo_cases.read_all(dataset)[split][name], values)


def test_a_file_of_bad_rows_alone_is_refused(tmp_path):
  for day in range(2):
    (tmp_path / f"day_{day}").write_text("\n".join([line("-1")] * 3))
  data = criteo_cases.data_config(tmp_path, tmp_path / "out", on_bad_row="skip")
  with pytest.raises(BadExampleError, match=r"day_0: .*no row to keep \(3 bad ones; line 1: label"):
    criteo.prepare(data)


def test_a_last_day_of_one_row_is_refused(tmp_path):
  for day, lines in enumerate((GOOD, GOOD[:1])):
    (tmp_path / f"day_{day}").write_text("\n".join(lines))
  with pytest.raises(BadExampleError, match="day_1: the last day has one row to keep"):
    criteo.prepare(criteo_cases.data_config(tmp_path, tmp_path / "out"))


def test_a_file_that_changes_between_the_passes_is_noticed(tmp_path, monkeypatch):
  criteo_cases.write_days(tmp_path / "raw", [50, 50])
  data = criteo_cases.data_config(tmp_path / "raw", tmp_path / "out")

  def change(report_line):
    if "encode" in report_line:
      with open(tmp_path / "raw" / "day_0", "a") as file:
        file.write(line() + "\n")

  with pytest.raises(BadExampleError, match="day_0: has changed since its ids were counted"):
    criteo.prepare(data, report=change)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  criteo_cases.write_days(tmp_path / "raw", [5, 5])
  (tmp_path / "file").write_text("")
  data = criteo_cases.data_config(tmp_path / "raw", tmp_path / "file")
  with pytest.raises(ConfigError, match="data.criteo.prepared_dir: cannot write to .*file"):
    criteo.prepare(data)
