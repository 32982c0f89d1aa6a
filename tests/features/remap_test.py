"""Rows follow their keys from one vocabulary to another (law W6)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.data import preparing, reading, splits
from jaxrec.features import crosses, remap, transforms, transforms_file, vocabulary
from jaxrec.features.schema import Column, Cross, Schema

COLUMNS = {
  "city": Column("categorical", min_count=2, oov_buckets=2),
  "item": Column("categorical"),
  "age": Column("numeric", buckets=8),
  "history": Column("list", table="item"),
  "agent": Column("categorical", encoding="hash", num_hash_buckets=20),
}
CROSSES = {
  "city*item": Cross(("city", "item"), min_count=2),
  "age*city": Cross(("age", "city")),
  "agent*city": Cross(("agent", "city")),
}
SCHEMA = Schema({"click": None}, COLUMNS, crosses=CROSSES)


def clicks(seed: int, first: int) -> pa.Table:
  """Rows whose values move on as ``first`` grows: some are new, some are gone."""
  rng = np.random.default_rng(seed)
  size = 600
  return pa.table({
    "city": [f"city {k}" for k in first + rng.integers(0, 12, size)],
    "item": first * 3 + rng.integers(0, 30, size),
    "age": first + rng.integers(0, 40, size).astype(float),
    "history": [[int(first * 3 + k)] for k in rng.integers(0, 30, size)],
    "agent": [f"agent {k}" for k in rng.integers(0, 200, size)],
    "click": rng.integers(0, 2, size),
  })  # fmt: skip


def fit(table: pa.Table, folder, schema: Schema = SCHEMA) -> transforms.Transforms:
  plan = preparing.Plan(reading.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  return transforms_file.load(preparing.prepare(plan, folder))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[transforms.Transforms, transforms.Transforms]:
  folder = tmp_path_factory.mktemp("remap")
  return fit(clicks(0, 0), folder / "old"), fit(clicks(1, 5), folder / "new")


def test_values_are_followed_by_their_text(both):
  old, new = both
  found = remap.old_rows(old, new)
  for table in ("city", "item"):
    ours, theirs = new.rows[table].names(), old.rows[table].names()
    assert len(found[table]) == len(ours)
    for name, row in zip(ours, found[table].tolist(), strict=True):
      assert row == (theirs.index(name) if name in theirs else remap.NEW)
    assert 0 < np.count_nonzero(found[table] == remap.NEW) < len(ours)
  np.testing.assert_array_equal(found["agent"], np.arange(21))


def test_buckets_are_followed_by_their_place(both):
  old, new = both
  found = remap.old_rows(old, new)["age_buckets"]
  assert found[0] == 0 and len(found) == new.quantiles["age"].num_rows
  for value in np.arange(0.0, 50.0):
    row = new.quantiles["age"].buckets(np.array([value]))[0]
    lower = new.quantiles["age"].boundaries[row - 2] if row > 1 else None
    if lower is not None:
      assert found[row] == old.quantiles["age"].buckets(np.array([lower]))[0]
  assert (np.diff(found) >= 0).all()
  same = remap.old_rows(old, old)
  for rows in same.values():
    np.testing.assert_array_equal(rows, np.arange(len(rows)))


def test_combinations_are_followed_by_the_values_they_combine(both):
  old, new = both
  found = remap.old_rows(old, new)
  for name in CROSSES:
    columns = CROSSES[name].columns
    known = {}
    for k, key in enumerate(old.crosses[name].keys.tolist()):
      parts = crosses.parts_of(key, [old.num_rows(c) for c in columns])
      known[parts] = old.crosses[name].oov_buckets + k
    followed = 0
    for k, key in enumerate(new.crosses[name].keys.tolist()):
      parts = crosses.parts_of(key, [new.num_rows(c) for c in columns])
      tables = [c + "_buckets" if c == "age" else c for c in columns]
      before = tuple(int(found[t][part]) for t, part in zip(tables, parts, strict=True))
      expected = known.get(before, remap.NEW)
      assert found[name][new.crosses[name].oov_buckets + k] == expected
      followed += expected != remap.NEW
    assert 10 < followed < len(new.crosses[name].keys)
    assert found[name][0] == 0  # the shared row


def test_shared_rows_are_followed_where_as_many_share(both):
  old, new = both
  other = dataclasses.replace(
    new, rows={**new.rows, "city": dataclasses.replace(new.rows["city"], oov_buckets=3)}
  )
  found = remap.old_rows(
    dataclasses.replace(old, crosses={}), dataclasses.replace(other, crosses={})
  )
  assert found["city"][:4].tolist() == [0, remap.NEW, remap.NEW, remap.NEW]
  assert remap.old_rows(old, new)["city"][:3].tolist() == [0, 1, 2]


def test_tables_and_columns_that_are_new_are_left_out(both, tmp_path):
  old, _ = both
  columns = {**COLUMNS, "more": Column("categorical")}
  table = clicks(1, 5).append_column("more", pa.array([f"m{k % 7}" for k in range(600)]))
  schema = Schema({"click": None}, columns, crosses={"more*city": Cross(("more", "city"))})
  found = remap.old_rows(old, fit(table, tmp_path / "more", schema))
  assert set(found) == {"city", "item", "agent", "age_buckets"}


def test_a_cross_of_a_column_whose_table_is_new_begins_anew(both, tmp_path):
  old, _ = both
  columns = {**COLUMNS, "city": Column("categorical", table="town")}
  crosses_now = {"city*item": Cross(("city", "item"), min_count=2)}
  new = fit(clicks(1, 5), tmp_path / "t", Schema({"click": None}, columns, crosses=crosses_now))
  assert (remap.old_rows(old, new)["city*item"] == remap.NEW).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"rows": {"agent": vocabulary.HashedRows(30)}},
      r"table 'agent' is made by a hash into 20 rows .* there and by a hash into 30 rows",
    ),
    (
      {"rows": {"agent": vocabulary.Vocabulary(pa.array(["a"]))}},
      "there and by a vocabulary here, so its rows cannot be followed",
    ),
    (
      {"crosses": {"city*item": crosses.HashedCross(50)}},
      "cross 'city\\*item' is hashed, and its settings or its columns' vocabularies have changed",
    ),
  ],
)
def test_rows_without_keys_are_refused_by_name(both, change, message):
  old, new = both
  (field, value), = change.items()  # fmt: skip
  other = dataclasses.replace(new, **{field: {**getattr(new, field), **value}})
  with pytest.raises(ConfigError, match=message):
    remap.old_rows(old, other)


def test_a_cross_of_other_columns_is_another_cross(both):
  old, new = both
  schema = dataclasses.replace(
    SCHEMA, crosses={**CROSSES, "city*item": Cross(("item", "city"), min_count=2)}
  )
  with pytest.raises(ConfigError, match="combines city, item there and item, city here"):
    remap.old_rows(old, dataclasses.replace(new, schema=schema))
