"""A table of spans is that table with its lists spelt out, at a fraction of the disk."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.data.events import examples
from jaxrec.data.prepared import prepare, prepared_table, splits
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import BadExampleError
from jaxrec.features.schema import Column, Cross, Schema
from tests.data.events.examples_test import log_of, made

COLUMNS = {
  "who": Column("categorical"),
  "what": Column("categorical", table="items", min_count=3, oov_buckets=2),
  "history": Column("sequence", table="items", min_count=3, oov_buckets=2, max_length=20),
  "kinds": Column("sequence"),
  "where": Column("categorical"),
}
SCHEMA = Schema(
  {"chosen": None}, COLUMNS, time="when", crosses={"where*who": Cross(("where", "who"))}
)


def plan_of(reader, schema=SCHEMA) -> prepare.Plan:
  return prepare.Plan(reader, schema, splits.ByTime("when", "number", 60.0, 75.0))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """The same examples from spans, and from a table that holds every history."""
  reader = made(
    log_of(), context=("where",), min_history=2, negatives=examples.Negatives(excluding="user")
  )
  folder = tmp_path_factory.mktemp("spans")
  table = reader.table
  for name, log in reader.logs.items():
    lists = [log[s["begin"] : s["end"]].to_pylist() for s in table[name].to_pylist()]
    table = table.set_column(table.column_names.index(name), name, pa.array(lists))
  return (
    prepared_table.StoredTable(prepare.prepare(plan_of(reader), folder / "spans"), 8),
    prepared_table.StoredTable(
      prepare.prepare(plan_of(reader_lib.ArrowTable(table)), folder / "lists"), 8
    ),
    table,
  )


def test_batches_of_spans_are_those_of_lists(both):
  spans_table, lists_table, _ = both
  assert spans_table.spec.dense_names == lists_table.spec.dense_names
  for split in splits.NAMES:
    size = lists_table.num_examples(split)
    assert spans_table.num_examples(split) == size > 50
    ours, theirs = (one.read(np.arange(size)[::-1], split) for one in (spans_table, lists_table))
    texts = [
      {name: one.transforms.rows[name].names() for name in ("items", "kinds", "who", "where")}
      for one in (spans_table, lists_table)
    ]
    table_of = {"what": "items", "history": "items"}
    for name in COLUMNS:
      table = table_of.get(name, name)
      named = [
        [[names[table][row] for row in bag] for bag in batch.ids[name].to_lists()]
        for names, batch in zip(texts, (ours, theirs), strict=True)
      ]
      assert named[0] == named[1], name
    assert ours.ids["where*who"].to_lists() == theirs.ids["where*who"].to_lists()
    np.testing.assert_array_equal(ours.labels["chosen"], theirs.labels["chosen"])
  features = {f.name: f.ids_per_bag for f in spans_table.spec.features}
  assert features == {f.name: f.ids_per_bag for f in lists_table.spec.features}
  assert features["history"] == 20 < features["kinds"]


def test_the_vocabulary_has_what_training_sees_and_nothing_of_later(both):
  spans_table, lists_table, table = both
  for name in ("items", "kinds"):
    known = [set(one.transforms.rows[name].names()) for one in (spans_table, lists_table)]
    assert known[0] <= known[1]  # a value counts once an event here, once an example there
  train = table.slice(0, spans_table.num_examples("train"))
  seen = {kind for kinds in train["kinds"].to_pylist() for kind in kinds}
  assert seen <= set(spans_table.transforms.rows["kinds"].names())


def test_a_value_that_only_later_events_have_is_in_no_vocabulary(tmp_path):
  late = pa.table({"who": [3] * 9, "what": ["item 1"] * 9, "kind": ["late"] * 9,
                   "when": [70] * 9, "where": ["place 1"] * 9})  # fmt: skip
  reader = made(pa.concat_tables([log_of(), late]), context=("where",))
  found = prepared_table.StoredTable(prepare.prepare(plan_of(reader), tmp_path / "t"), 8)
  assert "late" in reader.logs["kinds"].to_pylist()
  assert "late" not in found.transforms.rows["kinds"].names()
  bags = found.read(np.arange(found.num_examples("test")), "test").ids["kinds"].to_lists()
  assert any(row == 1 for bag in bags for row in bag)  # read as unknown


def test_a_history_is_kept_once_and_not_once_an_example(both):
  spans_table, lists_table, _ = both

  def size(one, names):
    return sum(path.stat().st_size for path in one.folder.iterdir() if path.name.startswith(names))

  ours, theirs = size(spans_table, ("log_", "spans_")), size(lists_table, ("values_", "splits_"))
  rows = sum(spans_table.num_examples(split) for split in splits.NAMES)
  assert ours == 2 * (600 * 4 + rows * 16) < theirs / 2


def test_rows_served_as_lists_have_the_bits_of_the_stored_spans(both):
  spans_table, _, table = both
  test = table.filter(pa.compute.greater(table["when"], 75))
  served = spans_table.transforms.batch(test)
  read = spans_table.read(np.arange(test.num_rows), "test")
  for name in spans_table.transforms.schema.columns:
    assert served.ids[name].to_lists() == read.ids[name].to_lists(), name


def test_what_cannot_be_a_history_is_named(tmp_path):
  reader = made(log_of(), context=("where",))
  columns = {**COLUMNS, "kinds": Column("list")}
  with pytest.raises(ConfigError, match="column 'kinds' is a history, so its kind must be 'seq"):
    prepare.prepare(plan_of(reader, dataclasses.replace(SCHEMA, columns=columns)), tmp_path / "a")
  crossed = dataclasses.replace(SCHEMA, crosses={"x": Cross(("where", "history"))})
  with pytest.raises(ConfigError, match="cross 'x': column 'history' is a history kept once"):
    prepare.prepare(plan_of(reader, crossed), tmp_path / "b")
  short = dataclasses.replace(reader, logs={n: log[:5] for n, log in reader.logs.items()})
  with pytest.raises(BadExampleError, match="expected spans of a log of 5 values"):
    prepare.prepare(plan_of(short), tmp_path / "c")
  assert not list(tmp_path.iterdir())
