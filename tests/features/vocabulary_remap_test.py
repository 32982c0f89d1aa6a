"""Rows follow their keys from one vocabulary to another (law W6)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.data.prepared import prepare, splits
from jaxrec.data.readers import reader
from jaxrec.features import crosses, transforms, transforms_io, vocabulary, vocabulary_remap
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
  plan = prepare.Plan(reader.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  return transforms_io.load(prepare.prepare(plan, folder))


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[transforms.Transforms, transforms.Transforms]:
  folder = tmp_path_factory.mktemp("remap")
  return fit(clicks(0, 0), folder / "old"), fit(clicks(1, 5), folder / "new")


def test_values_are_followed_by_their_text(both):
  old, new = both
  found = vocabulary_remap.old_rows(old, new)
  for table in ("city", "item"):
    ours, theirs = new.rows[table].names(), old.rows[table].names()
    assert len(found[table]) == len(ours)
    for name, row in zip(ours, found[table].tolist(), strict=True):
      assert row == (theirs.index(name) if name in theirs else vocabulary_remap.NEW)
    assert 0 < np.count_nonzero(found[table] == vocabulary_remap.NEW) < len(ours)
  np.testing.assert_array_equal(found["agent"], np.arange(21))


def test_buckets_are_followed_by_their_place(both):
  old, new = both
  found = vocabulary_remap.old_rows(old, new)["age_buckets"]
  assert found[0] == 0 and len(found) == new.quantiles["age"].num_rows
  for value in np.arange(0.0, 50.0):
    row = new.quantiles["age"].buckets(np.array([value]))[0]
    lower = new.quantiles["age"].boundaries[row - 2] if row > 1 else None
    if lower is not None:
      assert found[row] == old.quantiles["age"].buckets(np.array([lower]))[0]
  assert (np.diff(found) >= 0).all()
  same = vocabulary_remap.old_rows(old, old)
  for rows in same.values():
    np.testing.assert_array_equal(rows, np.arange(len(rows)))


def test_combinations_are_followed_by_the_values_they_combine(both):
  old, new = both
  found = vocabulary_remap.old_rows(old, new)
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
      expected = known.get(before, vocabulary_remap.NEW)
      assert found[name][new.crosses[name].oov_buckets + k] == expected
      followed += expected != vocabulary_remap.NEW
    assert 10 < followed < len(new.crosses[name].keys)
    assert found[name][0] == 0  # the shared row


def test_shared_rows_are_followed_where_as_many_share(both):
  old, new = both
  other = dataclasses.replace(
    new, rows={**new.rows, "city": dataclasses.replace(new.rows["city"], oov_buckets=3)}
  )
  found = vocabulary_remap.old_rows(
    dataclasses.replace(old, crosses={}), dataclasses.replace(other, crosses={})
  )
  assert found["city"][:4].tolist() == [
    0,
    vocabulary_remap.NEW,
    vocabulary_remap.NEW,
    vocabulary_remap.NEW,
  ]
  as_many = vocabulary_remap.old_rows(old, new)["city"]
  assert as_many[:3].tolist() == [0, 1, 2]
  np.testing.assert_array_equal(found["city"][4:], as_many[3:])  # values as before


def by_names(made: transforms.Transforms, name: str) -> dict[tuple[str, ...], int]:
  """The row of each combination of a cross, by what its values are called."""
  columns, cross = made.schema.crosses[name].columns, made.crosses[name]
  names = [made.rows[column].names() for column in columns]
  found = {}
  for row, key in enumerate(cross.keys.tolist(), cross.oov_buckets):
    parts = crosses.parts_of(key, [made.num_rows(column) for column in columns])
    found[tuple(known[part] for known, part in zip(names, parts, strict=True))] = row
  return found


def test_combinations_with_missing_values_are_followed_into_tables_of_another_size(tmp_path):
  columns = {"a": Column("categorical"), "b": Column("categorical")}
  schema = Schema({"click": None}, columns, crosses={"a*b": Cross(("a", "b"))})
  rng = np.random.default_rng(0)

  def made(values: list[str | None], others: list[str | None], folder: str):
    table = pa.table({
      "a": [values[k] for k in rng.integers(0, len(values), 400)],
      "b": [others[k] for k in rng.integers(0, len(others), 400)],
      "click": [0, 1] * 200,
    })  # fmt: skip
    return fit(table, tmp_path / folder, schema)

  small = made(["v", "w", None], ["x", "y", None], "small")
  large = made(["u", "w", "t", None, "s"], [None, "z", "y", "r"], "large")
  for old, new in ((small, large), (large, small)):
    found = vocabulary_remap.old_rows(old, new)["a*b"]
    before, now = by_names(old, "a*b"), by_names(new, "a*b")
    assert len(now) == 9 if new is small else 20
    wanted = [before.get(combination, vocabulary_remap.NEW) for combination in now]
    assert found[1:].tolist() == wanted
    assert (
      len(found) - 1 - wanted.count(vocabulary_remap.NEW) == 4
    )  # w and missing, with y and missing


def test_numbers_of_one_bucket_are_followed(both):
  old, _ = both
  one = dataclasses.replace(old.quantiles["age"], boundaries=np.zeros(0))
  new = dataclasses.replace(old, quantiles={"age": one}, crosses={})
  assert vocabulary_remap.old_rows(old, new)["age_buckets"].tolist() == [0, 1]
  many = vocabulary_remap.old_rows(new, dataclasses.replace(old, crosses={}))["age_buckets"]
  assert many.tolist() == [0] + [1] * (old.quantiles["age"].num_rows - 1)


@pytest.mark.parametrize(("before", "now"), [(14, 14), (14, 15), (15, 14)])
def test_combinations_beyond_64_bits_are_refused_by_name(tmp_path, before, now):
  hashed = Column("categorical", encoding="hash", num_hash_buckets=2**20 - 1)
  columns = {"a": hashed, "b": hashed, "c": hashed, "d": Column("categorical")}
  schema = Schema({"click": None}, columns, crosses={"all": Cross(("a", "b", "c", "d"))})

  def made(size: int, folder: str):  # 2^60 combinations, times 16 where d has 14 values
    texts = [f"{k}" for k in range(size)] * 4
    table = pa.table({**dict.fromkeys(columns, texts), "click": [0, 1] * 2 * size})
    return fit(table, tmp_path / folder, schema)

  old, new = made(before, "old"), made(now, "new")
  assert np.prod(np.array([new.num_rows(c) for c in columns], object)) == 2**60 * (now + 2)
  if before == now:
    np.testing.assert_array_equal(vocabulary_remap.old_rows(old, new)["all"], np.arange(1 + now))
    return
  with pytest.raises(ConfigError, match="cross 'all' has more combinations than 64 bits, so its"):
    vocabulary_remap.old_rows(old, new)


@pytest.mark.parametrize(("before", "now"), [(3, 3), (1, 3), (3, 1)])
def test_shared_rows_of_a_cross_are_followed_where_as_many_share(both, before, now):
  old, new = (
    dataclasses.replace(
      made,
      crosses={"city*item": dataclasses.replace(made.crosses["city*item"], oov_buckets=buckets)},
    )
    for made, buckets in zip(both, (before, now), strict=True)
  )
  found = vocabulary_remap.old_rows(old, new)["city*item"]
  assert found[:now].tolist() == ([0, 1, 2] if before == now else [vocabulary_remap.NEW] * now)
  ranks = (
    vocabulary_remap.old_rows(*both)["city*item"][1:] - 1
  )  # of combinations, where one row is shared
  expected = np.where(ranks < 0, vocabulary_remap.NEW, before + ranks)
  np.testing.assert_array_equal(found[now:], expected)


def test_a_hashed_cross_is_followed_only_where_its_columns_have_the_same_rows(both):
  old, new = (
    dataclasses.replace(made, crosses={"city*item": crosses.HashedCross(50)}) for made in both
  )
  np.testing.assert_array_equal(vocabulary_remap.old_rows(old, old)["city*item"], np.arange(50))
  with pytest.raises(
    ConfigError, match="hashed there or here, and its settings or its columns' ids"
  ):
    vocabulary_remap.old_rows(old, new)  # the same hash, of ids that mean something else
  for other in (crosses.HashedCross(60), crosses.HashedCross(50, salt=1)):
    with pytest.raises(
      ConfigError, match="hashed there or here, and its settings or its columns' ids"
    ):
      vocabulary_remap.old_rows(old, dataclasses.replace(old, crosses={"city*item": other}))


def test_tables_and_columns_that_are_new_are_left_out(both, tmp_path):
  old, _ = both
  columns = {**COLUMNS, "more": Column("categorical")}
  table = clicks(1, 5).append_column("more", pa.array([f"m{k % 7}" for k in range(600)]))
  schema = Schema({"click": None}, columns, crosses={"more*city": Cross(("more", "city"))})
  found = vocabulary_remap.old_rows(old, fit(table, tmp_path / "more", schema))
  assert set(found) == {"city", "item", "agent", "age_buckets"}


def test_a_cross_of_a_column_whose_table_is_new_begins_anew(both, tmp_path):
  old, _ = both
  columns = {**COLUMNS, "city": Column("categorical", table="town")}
  crosses_now = {"city*item": Cross(("city", "item"), min_count=2)}
  new = fit(clicks(1, 5), tmp_path / "t", Schema({"click": None}, columns, crosses=crosses_now))
  assert (vocabulary_remap.old_rows(old, new)["city*item"] == vocabulary_remap.NEW).all()


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
      "cross 'city\\*item' is hashed there or here, and its settings or its columns' ids",
    ),
  ],
)
def test_rows_without_keys_are_refused_by_name(both, change, message):
  old, new = both
  (field, value), = change.items()  # fmt: skip
  other = dataclasses.replace(new, **{field: {**getattr(new, field), **value}})
  with pytest.raises(ConfigError, match=message):
    vocabulary_remap.old_rows(old, other)


def test_a_cross_of_other_columns_is_another_cross(both):
  old, new = both
  schema = dataclasses.replace(
    SCHEMA, crosses={**CROSSES, "city*item": Cross(("item", "city"), min_count=2)}
  )
  with pytest.raises(ConfigError, match="combines city, item there and item, city here"):
    vocabulary_remap.old_rows(old, dataclasses.replace(new, schema=schema))
