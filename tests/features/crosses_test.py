"""Crosses against Python's own products and dictionaries (law W4)."""

from __future__ import annotations

import collections
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from jaxrec import data
from jaxrec.config import ConfigError
from jaxrec.config.experiment import DataConfig
from jaxrec.data.prepared import fit_transforms, prepare, prepared_table, splits
from jaxrec.data.prepared import from_table as table
from jaxrec.data.readers import files, reader
from jaxrec.features import BadExampleError, crosses, transforms_io
from jaxrec.features import schema as schema_lib
from jaxrec.features.schema import Column, Cross, Schema
from tests.data import tables

SIZES = (3, 50, 7)


def bags_of(lists) -> crosses.Bags:
  """Of lists of ids; of plain ids where all are."""
  if all(isinstance(ids, int) for ids in lists):
    return crosses.Bags(np.array(lists, np.int32))
  flat = [i for ids in lists for i in ids]
  return crosses.Bags(np.array(flat, np.int32), np.array([len(ids) for ids in lists], np.int32))


def oracle(columns, sizes) -> list[list[int]]:
  """Keys of each example, by itertools and Python's whole numbers."""
  found = []
  for parts in zip(*columns, strict=True):
    parts = [[ids] if isinstance(ids, int) else ids for ids in parts]
    keys = []
    for combination in itertools.product(*parts):
      key = 0
      for size, row in zip(sizes, combination, strict=True):
        key = key * size + row
      keys.append(key)
    found.append(keys)
  return found


def column(size: int, num_rows: int):
  ids = st.integers(0, size - 1)
  single = st.lists(ids, min_size=num_rows, max_size=num_rows)
  several = st.lists(st.lists(ids, max_size=3), min_size=num_rows, max_size=num_rows)
  return single | several


@hypothesis.given(st.data(), st.integers(0, 9), st.integers(2, 3))
def test_a_cross_is_every_combination_of_an_example(data, num_rows, num_columns):
  sizes = SIZES[:num_columns]
  columns = [data.draw(column(size, num_rows)) for size in sizes]
  found = crosses.cross([bags_of(ids) for ids in columns], sizes)
  expected = oracle(columns, sizes)
  assert found.values.dtype == np.uint64
  assert found.values.tolist() == [key for keys in expected for key in keys]
  if found.lengths is not None:
    assert found.lengths.tolist() == [len(keys) for keys in expected]
  else:
    assert all(len(keys) == 1 for keys in expected)
  for key, *_ in filter(None, expected):
    rows = crosses.parts_of(key, sizes)
    assert len(rows) == num_columns and oracle([[row] for row in rows], sizes) == [[key]]


def test_keys_are_exact_up_to_64_bits_and_hashes_beyond():
  sizes = (2**31, 2**31, 4)
  ids = [np.array([2**31 - 1, 0, 5], np.int32), np.array([2**31 - 1, 1, 6]), np.array([3, 2, 1])]
  keys = crosses.cross([crosses.Bags(column) for column in ids], sizes).values
  assert keys.tolist() == [2**64 - 1, 4 + 2, (5 * 2**31 + 6) * 4 + 1]
  rng = np.random.default_rng(0)
  many = [rng.integers(0, 2**30, 200_000) for _ in range(2)]
  last = np.arange(200_000) % 2**20
  keys = crosses.cross([crosses.Bags(c) for c in (*many, last)], (2**31, 2**31, 2**20)).values
  assert len(np.unique(keys)) == 200_000
  fixed = [crosses.Bags(np.full(2**16, 7)), crosses.Bags(np.full(2**16, 9))]
  keys = crosses.cross([*fixed, crosses.Bags(np.arange(2**16))], (2**31, 2**31, 2**20)).values
  assert len(np.unique(keys)) == 2**16


def test_hashes_beyond_64_bits_tell_in_which_column_an_id_stands():
  """(a, b, 5, 7) is not (a, b, 7, 5), though an XOR of hashed ids alone would say so."""
  ids = np.array(list(itertools.product(range(16), repeat=4)))
  parts = [crosses.Bags(column) for column in ids.T]
  keys = crosses.cross(parts, (2**31,) * 4).values
  assert len(np.unique(keys)) == 16**4


@pytest.mark.parametrize("sizes", [(2**31, 2**31, 5), (2**31,) * 4, (2**20, 2**40, 2**5, 9)])
def test_hashes_beyond_64_bits_are_splitmix64_of_what_came_before(sizes):
  """As vocabularies of them are kept in files, another hash would be another vocabulary."""

  def mixed(key: int) -> int:
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    return key ^ key >> 31

  rng = np.random.default_rng(0)
  columns = [rng.integers(0, size, 50) for size in sizes]
  expected = []
  for ids in zip(*(column.tolist() for column in columns), strict=True):
    key, span = ids[0], sizes[0]
    for row, size in zip(ids[1:], sizes[1:], strict=True):
      span *= size
      is_exact = span <= 2**64
      key = key * size + row if is_exact else mixed(key) ^ row * 0x9E3779B97F4A7C15 % 2**64
    expected.append(key)
  found = crosses.cross([crosses.Bags(column) for column in columns], sizes)
  assert found.values.tolist() == expected


@hypothesis.given(
  st.lists(st.integers(0, 30), max_size=200), st.integers(1, 3), st.integers(1, 4), st.booleans()
)
def test_a_vocabulary_is_the_frequent_combinations(keys, min_count, oov_buckets, is_capped):
  counts = collections.Counter(keys)
  ordered = sorted((k for k in counts if counts[k] >= min_count), key=lambda k: (-counts[k], k))
  most = 5 if is_capped else None
  halves = [list(counts)[::2], list(counts)[1::2]]
  chunks = [
    (np.array(half, np.uint64), np.array([counts[k] for k in half], np.int64)) for half in halves
  ]
  found = crosses.fit(chunks, min_count=min_count, max_size=most, oov_buckets=oov_buckets)
  assert found.keys.tolist() == ordered[:most]
  assert found.num_rows == oov_buckets + len(found.keys)
  rows = found.rows(np.arange(40, dtype=np.uint64)).tolist()
  for key, row in enumerate(rows):
    if key in ordered[:most]:
      assert row == oov_buckets + ordered.index(key)
    else:
      assert 0 <= row < oov_buckets


def test_hashed_combinations_collide_at_the_rate_that_is_expected():
  for num_keys, num_buckets in ((1000, 1000), (5000, 100_000), (20_000, 50_000)):
    keys = np.random.default_rng(num_keys).integers(0, 2**62, num_keys).astype(np.uint64)
    measured = [
      crosses.collision_rate(crosses.HashedCross(num_buckets, salt=salt).rows(keys))
      for salt in range(5)
    ]
    expected = crosses.expected_collision_rate(num_keys, num_buckets)
    assert abs(np.mean(measured) - expected) < 0.1 * expected + 0.002
    assert len(set(measured)) > 1  # another salt, another function
  assert crosses.collision_rate(np.array([4, 4, 1, 2])) == 0.5
  assert crosses.collision_rate(np.zeros(0, np.int32)) == 0.0


@hypothesis.given(
  st.dictionaries(st.integers(0, 2**63), st.integers(1, 9), max_size=60),
  st.integers(1, 40),
  st.booleans(),
)
def test_what_is_shared_is_counted_by_row(counts, num_rows, is_hashed):
  known = sorted(counts, key=lambda key: -counts[key])[: len(counts) // 2]
  rows = crosses.CrossVocabulary(np.array(known, np.uint64), oov_buckets=2)
  rows = crosses.HashedCross(num_rows) if is_hashed else rows
  of_row = collections.defaultdict(list)
  for key in counts:
    of_row[int(rows.rows(np.array([key], np.uint64))[0])].append(key)
  shared = [
    key
    for row, keys in of_row.items()
    for key in keys
    if (len(keys) > 1 if is_hashed else row < rows.oov_buckets)
  ]
  items = list(counts.items())

  def chunks():
    for part in (items[:7], items[7:]):
      yield np.array([k for k, _ in part], np.uint64), np.array([n for _, n in part], np.int64)

  found = crosses.sharing(chunks, rows)
  assert found == crosses.Sharing(
    len(counts), len(shared), sum(counts.values()), sum(counts[key] for key in shared)
  )
  if is_hashed and counts:
    of_all = rows.rows(np.array(list(counts), np.uint64))
    assert found.shared_keys == round(crosses.collision_rate(of_all) * len(counts))


CROSSES = {
  "city*item": Cross(("city", "item"), min_count=2, oov_buckets=3),
  "age*tags": Cross(("age", "tags")),
  "city*item*agent": Cross(("city", "item", "agent"), encoding="hash", num_hash_buckets=64),
  "tags*history": Cross(("tags", "history"), max_size=20),
}
SCHEMA = Schema(
  tables.SCHEMA.labels, tables.SCHEMA.columns, groups=("user",), time="ts", crosses=CROSSES
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> prepared_table.StoredTable:
  plan = prepare.Plan(
    reader.ArrowTable(tables.clicks()), SCHEMA, splits.ByTime("ts", "number", 120.0, 140.0)
  )
  return prepared_table.StoredTable(prepare.prepare(plan, tmp_path_factory.mktemp("t") / "t"), 8)


def test_a_table_with_crosses_is_that_table_and_its_combinations(prepared):
  fitted = prepared.transforms
  size = prepared.num_examples("train")
  batch = prepared.read(np.arange(size))
  feature_of = {"age": "age_buckets"}
  for name, cross in CROSSES.items():
    names = [feature_of.get(column, column) for column in cross.columns]
    columns = [batch.ids[name].to_lists() for name in names]
    sizes = [fitted.num_rows(column) for column in cross.columns]
    keys = oracle(columns, sizes)
    found = batch.ids[name].to_lists()
    assert [len(bag) for bag in found] == [len(bag) for bag in keys]
    rows = fitted.crosses[name]
    if cross.encoding == "vocabulary":
      counts = collections.Counter(key for bag in keys for key in bag)
      kept = sorted(
        (k for k in counts if counts[k] >= cross.min_count), key=lambda k: (-counts[k], k)
      )[: cross.max_size]
      assert rows.keys.tolist() == kept and len(kept) > 10
      known = {key: cross.oov_buckets + rank for rank, key in enumerate(kept)}
      for bag, bag_keys in zip(found, keys, strict=True):
        for row, key in zip(bag, bag_keys, strict=True):
          assert row == known.get(key, row) and (key in known or row < cross.oov_buckets)
    else:
      by_key = {key: row for b, k in zip(found, keys, strict=True)
                for row, key in zip(b, k, strict=True)}  # fmt: skip
      assert rows.num_rows == 64 and len(set(by_key.values())) > 50
  features = {feature.name: feature for feature in prepared.spec.features}
  assert prepared.spec.crosses == tuple(CROSSES)
  splits = [prepared.read(np.arange(prepared.num_examples(s)), s) for s in ("train", "val", "test")]
  for name in ("age*tags", "tags*history"):
    longest = max(len(bag) for one in splits for bag in one.ids[name].to_lists())
    assert features[name].ids_per_bag == longest > 1
  assert features["city*item"].is_single_valued and features["city*item"].table.embedding_dim == 8


def test_a_prepared_table_says_how_its_crosses_share_rows(prepared):
  fitted, size = prepared.transforms, prepared.num_examples("train")
  batch, lines = prepared.read(np.arange(size)), prepared.meta["crosses"]
  names = ("city", "item", "agent")
  columns = [batch.ids[name].to_lists() for name in names]
  counts = collections.Counter(
    key for keys in oracle(columns, [fitted.num_rows(n) for n in names]) for key in keys
  )
  keys, number = np.array(list(counts), np.uint64), np.array(list(counts.values()))
  of_row = collections.Counter(fitted.crosses["city*item*agent"].rows(keys).tolist())
  is_shared = np.array([of_row[row] > 1 for row in fitted.crosses["city*item*agent"].rows(keys)])
  expected = 100 * crosses.expected_collision_rate(len(keys), 64)
  assert 0.5 < is_shared.mean() <= 1
  assert lines[2] == (
    f"city*item*agent: {len(keys):,} combinations by hash in 64 rows; "
    f"{100 * is_shared.mean():.1f} % have company ({expected:.1f} % expected), "
    f"{100 * number[is_shared].sum() / number.sum():.1f} % of look-ups"
  )
  rows = np.concatenate(batch.ids["tags*history"].to_lists())
  outside = 100 * np.mean(np.asarray(rows) < 1)
  assert lines[3].startswith("tags*history: 20 of ") and 0 < outside < 100
  longest = max(len(bag) for bag in batch.ids["tags*history"].to_lists())
  assert f"have a row of their own; the others are {outside:.1f} % of look-ups" in lines[3]
  assert int(lines[3].split("up to ")[1].split()[0]) >= longest > 1


def test_a_cross_of_lists_may_be_limited_and_refuses_more(tmp_path):
  table = pa.table({
    "tags": [["a", "b"], ["c"], [], ["a", "b", "c"]] * 30,
    "seen": [["x"], ["x", "y"], ["z"] * 9, ["y"]] * 30,
    "city": ["p", "q", "r", "s"] * 30,
    "click": [0, 1, 1, 0] * 30,
  })  # fmt: skip
  columns = {"tags": Column("list"), "seen": Column("sequence"), "city": Column("categorical")}
  names = ("tags", "seen", "city")

  def plan(most: int | None, rows: pa.Table = table) -> prepare.Plan:
    cross = {"tags*seen": Cross(names, max_length=most)}
    schema = Schema({"click": None}, columns, crosses=cross)
    return prepare.Plan(reader.ArrowTable(rows), schema, splits.ByChance(0, 0.1))

  def longest(most: int | None) -> int:
    folder = prepare.prepare(plan(most), tmp_path / str(most))
    features = prepared_table.StoredTable(folder, 4).spec.features
    return {f.name: f.ids_per_bag for f in features}["tags*seen"]

  assert longest(None) == longest(3) == 3 and longest(8) == 8
  message = "cross 'tags.seen': lists of 3 combinations, but max_length is 2; raise it"
  with pytest.raises(BadExampleError, match=message):
    prepare.prepare(plan(2), tmp_path / "2")
  assert not (tmp_path / "2").exists()
  fitted = transforms_io.load(tmp_path / "3")
  rows = table.slice(0, 4).set_column(1, "seen", pa.array([["x"], ["x", "y"], ["z"], ["x", "y"]]))
  with pytest.raises(BadExampleError, match="lists of 6 combinations, but max_length is 3"):
    fitted.batch(rows)
  assert transforms_io.load(tmp_path / "3").schema.crosses["tags*seen"].max_length == 3
  with pytest.raises(ConfigError, match="cross 'x': max_length is of crosses of lists"):
    Schema(
      {"click": None}, tables.SCHEMA.columns, crosses={"x": Cross(("city", "item"), max_length=2)}
    )


def test_new_rows_and_other_chunks_are_crossed_with_the_same_bits(prepared, tmp_path, monkeypatch):
  fitted, new = prepared.transforms, tables.clicks(300, seed=5)
  whole = fitted.batch(new)
  for start in range(0, 300, 60):
    part = fitted.batch(new.slice(start, 60))
    for name in CROSSES:
      assert part.ids[name].to_lists() == whole.ids[name].to_lists()[start : start + 60]
  monkeypatch.setattr(files, "CHUNK_ROWS", 37)
  monkeypatch.setattr(fit_transforms, "_CHUNK_VALUES", 11)
  monkeypatch.setattr(fit_transforms, "_MOST_COMBINATIONS", 50)
  plan = prepare.Plan(
    reader.ArrowTable(tables.clicks()), SCHEMA, splits.ByTime("ts", "number", 120.0, 140.0)
  )
  folder = prepare.prepare(plan, tmp_path / "again")
  for path in prepared.folder.iterdir():
    assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
  assert transforms_io.digest(transforms_io.load(folder)) == transforms_io.digest(fitted)


def test_crosses_are_part_of_the_schema_file():
  text = schema_lib.to_json(SCHEMA)
  assert schema_lib.from_json(text).crosses == CROSSES
  assert "cross: hashed into 64 rows" in SCHEMA.describe()
  assert "crosses" not in schema_lib.to_json(tables.SCHEMA)


@pytest.mark.parametrize(
  ("name", "cross", "message"),
  [
    ("x", Cross(("city",)), "cross 'x': needs a list of two or more different columns, got city"),
    ("x", Cross(("city", "city")), "needs a list of two or more different columns"),
    ("x", Cross(("city", "itm")), "column 'itm'; did you mean 'item'"),
    ("x", Cross(("city", "price")), "column 'price' has numbers and no buckets"),
    ("city", Cross(("city", "item")), "cross 'city': is a column's name too"),
    ("x", Cross(("city", "item"), encoding="hsh"), "encoding 'hsh'; did you mean 'hash'"),
    ("x", Cross(("city", "item"), min_count=0), "min_count must be a whole number >= 1, got 0"),
  ],
)
def test_a_bad_cross_is_named(name, cross, message):
  with pytest.raises(ConfigError, match=message):
    Schema({"click": None}, tables.SCHEMA.columns, crosses={name: cross})


def test_crosses_of_a_column_of_one_hot_ids_are_its_products():
  """phi(x) = product of one-hot entries: the definition, on a dense matrix."""
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
  keys = crosses.cross([crosses.Bags(a), crosses.Bags(b)], [4, 5]).values
  phi = np.einsum("ni,nj->nij", np.eye(4)[a], np.eye(5)[b]).reshape(50, 20)
  np.testing.assert_array_equal(phi.argmax(1), keys)
  assert (phi.sum(1) == 1).all()
  table = pa.table({"a": a, "b": b, "click": a % 2})
  schema = Schema(
    {"click": None},
    {"a": Column("categorical"), "b": Column("categorical")},
    crosses={"a*b": Cross(("a", "b"))},
  )
  plan = prepare.Plan(reader.ArrowTable(table), schema, splits.ByChance(0, 0.0))
  assert plan.key() != prepare.Plan(reader.ArrowTable(table),
      Schema({"click": None}, schema.columns), splits.ByChance(0, 0.0)).key()  # fmt: skip


def test_the_flags_reach_the_crosses_and_a_schema_keeps_its_own():
  options = {"crosses": ("city*item", "age * tags"), "cross_min_count": 4}
  made = table.with_crosses(tables.SCHEMA, DataConfig("table", **options)).crosses
  assert made == {
    "city*item": Cross(("city", "item"), min_count=4),
    "age*tags": Cross(("age", "tags"), min_count=4),
  }
  hashed = table.with_crosses(
    tables.SCHEMA, DataConfig("table", crosses=("city*item",), cross_hash_buckets=70)
  )
  assert hashed.crosses["city*item"] == Cross(
    ("city", "item"), encoding="hash", num_hash_buckets=70
  )
  kept = table.with_crosses(SCHEMA, DataConfig("table", crosses=options["crosses"])).crosses
  assert kept["city*item"] == CROSSES["city*item"] and set(kept) == {*CROSSES, "age*tags"}
  found = data.from_arrow(tables.clicks(), label="click", crosses=("city*item",), val_fraction=0.1)
  assert found.spec.crosses == ("city*item",)
  for flag, value in (("cross_min_count", 4), ("cross_hash_buckets", 70)):
    with pytest.raises(
      ConfigError, match=rf"data.{flag}={value}: cross 'city\*item' is in the sch"
    ):
      table.with_crosses(SCHEMA, DataConfig("table", **{flag: value}))
  with pytest.raises(ConfigError, match="data.cross_hash_buckets: there are no crosses"):
    table.with_crosses(tables.SCHEMA, DataConfig("table", cross_hash_buckets=70))
  with pytest.raises(ConfigError, match=r"city\*click: column 'click' is left out: it is a label"):
    table.with_crosses(tables.SCHEMA, DataConfig("table", crosses=("city*click",)))
  with pytest.raises(ConfigError, match=r"city\*one: column 'one' is left out: one value"):
    crosses_of = DataConfig("table", crosses=("city*one",))
    table.with_crosses(tables.SCHEMA, crosses_of, {"one": "one value"})
  with pytest.raises(ConfigError, match="cross 'city.itm': column 'itm'; did you mean 'item'"):
    table.with_crosses(tables.SCHEMA, DataConfig("table", crosses=("city*itm",)))
