"""A vocabulary is a function of values and counts; every value has a row, seen or not."""

from __future__ import annotations

import collections
import hashlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from jaxrec.features import hashing, vocabulary

TEXTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdef"), st.text(max_size=4)), max_size=40)


def counts_of(values, chunk=10**9):
  found = list(collections.Counter(v for v in values if v is not None).items())
  return [
    (pa.array([v for v, _ in part], pa.string()), np.array([n for _, n in part], np.int64))
    for k in range(0, len(found), chunk)
    for part in [found[k : k + chunk]]
  ]


@hypothesis.given(
  TEXTS, st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4)), st.integers(1, 5)
)
@hypothesis.settings(max_examples=60)
def test_the_most_frequent_values_come_first_whatever_the_chunks(values, min_count, size, chunk):
  found = vocabulary.fit(counts_of(values, chunk), min_count=min_count, max_size=size)
  counted = collections.Counter(v for v in values if v is not None)
  wanted = sorted(
    (v for v, n in counted.items() if n >= min_count), key=lambda v: (-counted[v], v.encode())
  )
  assert found.values.to_pylist() == wanted[:size]


@hypothesis.given(TEXTS, TEXTS, st.integers(1, 4))
def test_seen_unseen_and_missing_values_each_have_their_rows(seen, asked, oov_buckets):
  found = vocabulary.fit(counts_of(seen), oov_buckets=oov_buckets)
  known = found.values.to_pylist()
  rows = found.rows(pa.array(asked, pa.string()))
  assert rows.dtype == np.int32
  for value, row in zip(asked, rows.tolist(), strict=True):
    if value is None:
      assert row == vocabulary.MISSING
    elif value in known:
      assert row == 1 + oov_buckets + known.index(value)
    else:
      key = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
      assert row == 1 + hashing.hash_ids(np.array([key], np.uint64), oov_buckets)[0]
  one_by_one = [found.rows(pa.array([value], pa.string()))[0] for value in asked]
  assert rows.tolist() == one_by_one
  assert len(found.names()) == found.num_rows


def test_hashed_rows_need_no_fit_and_keep_row_0_for_what_is_missing():
  hashed = vocabulary.HashedRows(1000, salt=3)
  rows = hashed.rows(pa.array(["a", None, "b", "a"]))
  assert rows[1] == 0 and rows[0] == rows[3] != rows[2]
  assert (rows[[0, 2]] >= 1).all() and (rows < hashed.num_rows).all()
  assert vocabulary.HashedRows(1000, salt=4).rows(pa.array(["a"]))[0] != rows[0]
  many = hashed.rows(pa.array(list(map(str, range(100_000)))))
  assert np.bincount(many, minlength=1001)[1:].min() > 50


def test_the_rows_of_a_hash_are_the_same_for_ever():
  rows = vocabulary.HashedRows(1_000_000, salt=7).rows(pa.array(["user-1", "Zoë", ""]))
  assert rows.tolist() == [GOLDEN[text] for text in ("user-1", "Zoë", "")]


GOLDEN = {"user-1": 548583, "Zoë": 821157, "": 652624}  # tables in use depend on them


def test_dictionary_arrays_and_chunks_are_read_as_their_values():
  found = vocabulary.Vocabulary(pa.array(["x", "y"]))
  plain = pa.array(["y", None, "x", "z"])
  for form in (plain.dictionary_encode(), pa.chunked_array([plain[:1], plain[1:]])):
    assert found.rows(form).tolist() == found.rows(plain).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize("counts", [[], counts_of([None])])
def test_a_column_that_is_missing_everywhere_has_an_empty_vocabulary(counts):
  found = vocabulary.fit(counts)
  assert found.num_rows == 2
  assert found.rows(pa.array(["a", None])).tolist() == [1, 0]
