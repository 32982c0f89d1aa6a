"""A log of one's own against loops over it: whose history, whose category, and what is refused."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec import data
from jaxrec.config import ConfigError, presets
from jaxrec.config.experiment import DataConfig, EventsConfig
from jaxrec.data import registry
from jaxrec.data.events import event_log
from jaxrec.data.readers import reader
from jaxrec.features import BadExampleError
from jaxrec.features import schema as schema_lib
from jaxrec.features.schema import Column, Schema
from tests.data import tables

ROLES = {"user": "who", "item": "what", "time": "when"}
HOW = {
  "context": ("where",), "item_columns": ("category", "price"), "histories": ("category", "device"),
  "min_history": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


def log_of(seed: int = 0, size: int = 800) -> pa.Table:
  """Events out of order, several at one moment; of half the events no price is known."""
  rng = np.random.default_rng(seed)
  item = rng.zipf(1.3, size) % 40
  moment = 1_700_000_000 + 3600 * rng.integers(0, 120, size)
  return pa.table({
    "who": rng.integers(0, 12, size),
    "what": [f"item {k}" for k in item],
    "when": pa.array(moment, pa.timestamp("s")),
    "where": [f"place {k}" for k in rng.integers(0, 3, size)],
    "device": [f"device {k}" for k in rng.integers(0, 2, size)],
    "category": [f"kind|{k % 5}" for k in item],
    "price": pa.array(5.0 + item, mask=rng.random(size) < 0.5),
  })  # fmt: skip


def config_of(path=None, *, time="when", **fields) -> DataConfig:
  own = {field.name for field in dataclasses.fields(EventsConfig)}
  how = {"user": "who", "item": "what", **HOW, **{k: v for k, v in fields.items() if k in own}}
  others = {k: v for k, v in fields.items() if k not in own}
  return DataConfig("events", path and str(path), time=time, events=EventsConfig(**how), **others)


def rows_of(found: reader.ArrowTable) -> list[dict]:
  """Examples with their histories spelt out."""
  rows, logs = found.table.to_pylist(), {n: log.to_pylist() for n, log in found.logs.items()}
  for row in rows:
    row |= {name: log[row[name]["begin"] : row[name]["end"]] for name, log in logs.items()}
  return rows


def check_rows(rows: list[dict], log: list[dict], min_history: int) -> None:
  """Every history, and every item's own columns, by a loop over the log."""
  own = {name: {e["what"]: e[name] for e in log if e[name] is not None}
         for name in ("category", "price")}  # fmt: skip
  at = {pa.scalar(e["when"], pa.timestamp("us")).value: e["when"] for e in log}
  for row in rows:
    now = at[row["when"]]
    past = [e for e in log if str(e["who"]) == row["user"] and e["when"] < now]
    past.sort(key=lambda e: e["when"])
    assert row["history"] == [e["what"] for e in past] and len(past) >= min_history
    assert row["category_history"] == [e["category"] for e in past]
    assert row["device_history"] == [e["device"] for e in past]
    assert row["category"] == [own["category"][row["item"]]]
    assert (row["price"] and float(row["price"])) == own["price"].get(row["item"])
    here = [e for e in log if str(e["who"]) == row["user"] and e["when"] == now]
    assert row["where"] in {e["where"] for e in here}
    assert (row["item"] in {e["what"] for e in here}) == bool(row["chosen"])


@pytest.mark.parametrize("negatives", ["popularity", "uniform", "category"])
def test_examples_are_those_of_a_loop_over_the_log(negatives):
  log = log_of()
  category = "category" if negatives == "category" else None
  config = config_of(negatives=negatives, category=category, num_negatives=2)
  found = event_log.examples(reader.ArrowTable(log), config)
  rows, events = rows_of(found), log.to_pylist()
  check_rows(rows, events, 3)
  chosen = collections.Counter((r["user"], r["item"]) for r in rows if r["chosen"])
  expected = collections.Counter(
    (str(e["who"]), e["what"])
    for e in events
    if sum(o["who"] == e["who"] and o["when"] < e["when"] for o in events) >= 3
  )
  assert chosen == expected and len(rows) > 2 * expected.total()
  assert {r["price"] for r in rows if not r["chosen"]} & {r["price"] for r in rows if r["chosen"]}


def test_negatives_are_drawn_as_asked():
  log = log_of()
  chosen = {(str(e["who"]), e["what"]) for e in log.to_pylist()}
  drawn = {}
  for fields in ({"seed": 0}, {"seed": 1}, {"excluding": "user"}):
    rows = event_log.examples(reader.ArrowTable(log), config_of(**fields)).table.to_pylist()
    drawn[str(fields)] = [(row["user"], row["item"]) for row in rows if not row["chosen"]]
  first, second, never = drawn.values()
  assert first != second and set(first) & chosen
  assert never and not set(never) & chosen


@given(st.lists(st.tuples(*(st.integers(0, k) for k in (2, 4, 6, 1))), min_size=2, max_size=40))
def test_no_log_gives_an_example_of_another_past_or_of_another_items_attributes(found):
  log = [
    {"who": who, "what": f"i{what}", "when": when, "device": f"d{device}", "where": "x",
     "category": f"c{what % 2}", "price": None if device else 1.5 * what}
    for who, what, when, device in found
  ]  # fmt: skip
  config = config_of(min_history=1)
  try:
    made = event_log.examples(reader.ArrowTable(pa.Table.from_pylist(log)), config)
  except BadExampleError as error:
    pasts = [sum(o["who"] == e["who"] and o["when"] < e["when"] for o in log) for e in log]
    # An event may find no free item, so that a log may have no negative.
    assert ("min_history" in str(error)) == (max(pasts) == 0)
    assert "min_history" in str(error) or "could be a negative" in str(error)
    return
  rows = rows_of(made)
  at = {float(e["when"]): e["when"] for e in log}
  for row in rows:
    row["when"] = pa.scalar(at[row["when"]], pa.timestamp("us")).value
  check_rows(rows, log, 1)


def same(ours: data.StoredTable, theirs: data.StoredTable) -> None:
  assert ours.spec == theirs.spec
  for split in ("train", "val", "test"):
    indices = np.arange(theirs.num_examples(split))
    assert ours.num_examples(split) == len(indices) > 10
    jax.tree.map(
      np.testing.assert_array_equal, ours.read(indices, split), theirs.read(indices, split)
    )


def test_frames_tables_and_files_of_every_form_give_the_same_data_set(tmp_path):
  log = log_of()
  options = {**HOW, "test_fraction": 0.2, "seed": 3, "history_length": 20}
  found = data.from_events(log, **ROLES, **options)
  assert [feature.name for feature in found.spec.features] == [
    "user", "item", "category", "price_buckets", "where", "history", "category_history",
    "device_history",
  ]  # fmt: skip
  same(data.from_events(log.to_pandas(), **ROLES, **options), found)
  for name in ("log.parquet", "log.csv", "log.csv.gz"):
    path = tables.write(log, tmp_path / name)
    config = config_of(path, combiner="none", test_fraction=0.2, seed=3, history_length=20)
    same(registry.load(config, embedding_dim=16), found)
  tables.write(log.slice(0, 300), tmp_path / "parts" / "a.parquet")
  tables.write(log.slice(300), tmp_path / "parts" / "b.parquet")
  config = config_of(tmp_path / "parts", combiner="none", test_fraction=0.2, seed=3)
  parts = registry.load(config, embedding_dim=16)
  assert parts.num_examples("train") == found.num_examples("train")


def test_candidates_and_histories_share_the_rows_of_their_tables():
  found = data.from_events(log_of(), **ROLES, **HOW)
  features = {feature.name: feature for feature in found.spec.features}
  assert features["item"].table == features["history"].table
  assert features["category"].table == features["category_history"].table
  assert features["category"].ids_per_bag == 1 and features["history"].ids_per_bag == 50
  names = found.transforms.rows["category"].names()
  assert sorted(names[2:]) == [f"kind|{k}" for k in range(5)]  # one value, whatever is in it
  assert found.spec.labels == ("chosen",) and found.spec.groups == ("user",)


def test_the_latest_moments_test_and_nothing_of_them_is_fitted():
  log = log_of()
  late = pc.greater(log["when"], pa.scalar(1_700_000_000 + 3600 * 100, pa.timestamp("s")))
  new = pc.if_else(late, "brand new", log["device"])
  log = log.set_column(log.column_names.index("device"), "device", new)
  found = data.from_events(log, **ROLES, **HOW, test_fraction=0.3)
  assert "brand new" not in found.transforms.rows["device_history"].names()
  history = found.read(np.arange(found.num_examples("test")), "test").ids["device_history"]
  assert (history.values[: history.row_splits[-1]] == 1).any()  # the row of what was never seen


def test_one_cache_is_of_one_log_and_one_way_to_make_examples(tmp_path):
  path = tables.write(log_of(), tmp_path / "log.parquet")
  first = registry.load(config_of(path), embedding_dim=4)
  assert registry.load(config_of(path), embedding_dim=4).folder == first.folder
  changes = [{"seed": 1}, {"min_history": 4}, {"num_negatives": 2}, {"excluding": "user"}]
  changes += [{"negatives": "uniform"}, {"item_columns": ("category",)}, {"labels": ("bought",)}]
  folders = {registry.load(config_of(path, **c), embedding_dim=4).folder for c in changes}
  assert len(folders) == len(changes) and first.folder not in folders


def test_values_are_spelt_as_everywhere(tmp_path):
  lines = ["who,what,when"]
  lines += [f"{('7', '07', ' 7', '8')[k % 4]},{('a', ' a ', 'b', 'c')[k % 4]},2024-01-{k + 1:02}"
            for k in range(28)]  # fmt: skip
  path = tmp_path / "log.csv"
  path.write_text("\n".join(lines))
  config = config_of(path, context=(), item_columns=(), histories=(), min_history=1)
  found = event_log.examples(reader.open_files(path), config)
  assert set(found.table["user"].to_pylist()) == {"7", "8"}
  assert set(found.table["item"].to_pylist()) == {"a", "b", "c"}
  assert (found.kinds["user"], found.kinds["history"]) == ("number", "text")
  assert max(len(row["history"]) for row in rows_of(found)) == 20


BAD = {
  "who": (None, "user 'who': is missing; fill it in, or leave such rows out"),
  "what": ("?", "item 'what': is missing"),
  "when": (None, "time 'when': is missing"),
  "device": (None, "column 'device' of a history: is missing"),
}


@pytest.mark.parametrize("column", BAD)
def test_a_row_that_lacks_what_an_event_needs_is_named_or_left_out(tmp_path, column):
  log, (value, message) = log_of(), BAD[column]
  rows = log.to_pylist()
  rows[137][column] = value
  path = tables.write(pa.Table.from_pylist(rows, log.schema), tmp_path / "log.csv")
  with pytest.raises(BadExampleError, match=f"log.csv, line 139: {message}"):
    registry.load(config_of(path), embedding_dim=4)
  with pytest.raises(BadExampleError, match=f"the log, row 137: {message}"):
    data.from_events(pa.Table.from_pylist(rows, log.schema), **ROLES, **HOW)
  found = registry.load(config_of(path, on_bad_row="skip"), embedding_dim=16)
  assert found.num_bad_rows == 1 and f"line 139: {message}" in found.bad_rows[0]
  del rows[137]
  without = data.from_events(
    pa.Table.from_pylist(rows, log.schema), **ROLES, **HOW, combiner="mean"
  )
  same(found, without)


def test_rows_are_counted_across_chunks_of_a_log():
  size = 70_000
  log = pa.table({"who": np.arange(size) % 50, "what": np.arange(size) % 9, "when": range(size)})
  when = log["when"].to_pylist()
  when[3] = when[66_000] = None
  config = DataConfig("events", time="when", events=EventsConfig("who", "what"), on_bad_row="skip")
  bad = log.set_column(2, "when", pa.array(when))
  found = event_log.examples(reader.ArrowTable(bad, "the log"), config)
  places = [row.partition(":")[0] for row in found.bad_rows]
  assert places == ["the log, row 3", "the log, row 66000"]


def test_a_time_of_words_is_refused():
  log = log_of()
  log = log.set_column(2, "when", pa.array(["soon"] * 800))
  with pytest.raises(BadExampleError, match="row 0: time 'when': expected a moment such as 2024-"):
    data.from_events(log, **ROLES, **HOW)
  with pytest.raises(BadExampleError, match="all 800 rows are bad, the first: time 'when'"):
    data.from_events(log, **ROLES, **HOW, on_bad_row="skip")


def test_an_item_of_two_categories_is_named():
  rows = log_of().to_pylist()
  row = next(k for k, row in enumerate(rows) if row["what"] == "item 3")
  rows[row]["category"] = "other"
  with pytest.raises(BadExampleError, match=r"column 'category': item 'item 3' has .*one value"):
    data.from_events(pa.Table.from_pylist(rows), **ROLES, **HOW)


def test_a_context_that_gives_the_item_away_is_refused():
  options = {"context": "category", "min_history": 3}
  message = r"context 'category' is what its item has in {} of the events"
  with pytest.raises(BadExampleError, match=message.format("100.0%")):
    data.from_events(log_of(), **ROLES, **options)
  rows = log_of().to_pylist()
  for row in rows[::25]:
    row["category"] = None  # which says nothing
  for row in rows[1::50]:
    row["category"] = "other"
  with pytest.raises(BadExampleError, match=message.format(r"9\d\.\d%")):
    data.from_events(pa.Table.from_pylist(rows), **ROLES, **options)


def test_a_context_that_is_mostly_one_value_is_no_give_away():
  rows = log_of().to_pylist()
  for k, row in enumerate(rows):
    row["where"] = "web" if k % 30 else "app"
  made = data.from_events(pa.Table.from_pylist(rows), **ROLES, context="where", min_history=3)
  assert "where" in [feature.name for feature in made.spec.features]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data_dir": None}, "--data_dir names the file or folder of the log"),
    ({"user": None, "time": None}, "data.events.user, time not given; name the columns"),
    ({"item": "wht"}, "log.parquet: no column 'wht'; did you mean 'what'"),
    ({"item_columns": ("prise",)}, "no column 'prise'; did you mean 'price'"),
    ({"user": "what"}, "user, item and time are three columns, got 'what', 'what', 'when'"),
    ({"context": ("what",)}, "data.events.context: column 'what' is the user, the item or the"),
    ({"item_columns": ("where",), "context": ("where",)}, "column 'where' stands there 2 times"),
    ({"labels": ("where",)}, "the examples of .*: column 'where' stands there 2 times"),
    ({"labels": ("a", "b")}, "--label names the column of 1 and 0 that is made"),
    ({"negatives": "popular"}, "negatives.kind: 'popular'; did you mean 'popularity'"),
    ({"category": "category"}, "kind 'category' needs the column"),
    ({"min_history": 500}, r"log.parquet: no event has a history of min_history=500 or more ear"),
    ({"test_dir": "x"}, "data.test_dir: dataset events does not read it"),
    ({"dataset": "table"}, "data.events: dataset table does not read it"),
    ({"dataset": "online_retail", "time": None}, "data.events.user: dataset online_retail does"),
  ],
)
def test_mistakes_are_named(tmp_path, fields, message):
  path = tables.write(log_of(), tmp_path / "log.parquet")
  fields = dict(fields)
  dataset = fields.pop("dataset", "events")
  config = config_of(fields.pop("data_dir", path), **fields)
  with pytest.raises((ConfigError, BadExampleError), match=message):
    registry.load(dataclasses.replace(config, dataset=dataset), embedding_dim=4)


def test_mistakes_in_python_are_named():
  log = log_of()
  with pytest.raises(ConfigError, match="no option 'min_histry'; did you mean 'min_history'"):
    data.from_events(log, **ROLES, min_histry=3)
  with pytest.raises(ConfigError, match="from_events: option 'test_dir' is of files"):
    data.from_events(log, **ROLES, test_dir="x")
  with pytest.raises(BadExampleError, match="the log: expected a pandas frame or an Arrow table"):
    data.from_events([1], **ROLES)
  one = pa.table({"who": [1] * 9, "what": ["a"] * 9, "when": range(9)})
  with pytest.raises(BadExampleError, match="no event has an item that could be a negative"):
    data.from_events(one, **ROLES, min_history=1)
  with pytest.raises(BadExampleError, match="the log: holds no events; it is empty"):
    data.from_events(one.slice(0, 0), **ROLES)


def test_a_schema_of_ones_own_counts():
  schema = Schema(
    {"chosen": None},
    {"item": Column("categorical", table="items", min_count=5),
     "history": Column("sequence", table="items", min_count=5, max_length=7)},
    groups=("where",),
  )  # fmt: skip
  found = data.from_events(log_of(), **ROLES, **HOW, schema=schema)
  assert [feature.name for feature in found.spec.features] == ["item", "history"]
  assert found.spec.groups == ("where",) and not found.is_inferred


def test_an_inferred_schema_that_was_edited_is_read_from_its_file(tmp_path):
  path = tables.write(log_of(), tmp_path / "log.parquet")
  first = registry.load(config_of(path), embedding_dim=4)
  assert first.is_inferred
  text = schema_lib.to_json(first.transforms.schema).replace('"max_length": 50', '"max_length": 9')
  (tmp_path / "schema.json").write_text(text)
  edited = config_of(path, schema=str(tmp_path / "schema.json"))
  found = registry.load(edited, embedding_dim=4)
  assert found.transforms.max_lengths["history"] == 9 and not found.is_inferred
  assert found.num_examples("train") == first.num_examples("train")


def test_weights_are_of_the_event_and_of_its_negatives():
  log = log_of()
  log = log.append_column("weight", pc.add(pc.hour(log["when"]), 1.0))
  found = data.from_events(log, **ROLES, **HOW, weight="weight", group="where")
  assert found.spec.groups == ("where",) and "weight" not in found.transforms.schema.columns
  batch = found.read(np.arange(found.num_examples("train")), "train")
  weights, labels = batch.weights, batch.labels["chosen"]
  negative = np.flatnonzero(labels == 0)
  assert len(set(weights.tolist())) > 10 and len(negative) > 100
  np.testing.assert_array_equal(weights[negative], weights[negative - 1])


def test_shipped_settings_are_found_for_each_model_of_histories():
  sim = presets.for_dataset("events", "sim_hard")
  assert sim.model.history.category == ("category", "category_history")
  assert sim.data.events.histories == sim.data.events.item_columns == ("category",)
  for model in ("eta", "full_attention", "din", "average_pooling"):
    found = presets.for_dataset("events", model)
    assert (found.data.combiner, found.data.events.history_length) == ("none", 1024)
    assert found.data.events.histories == ()
  assert presets.for_dataset("events", None).data.combiner is None
  assert presets.for_dataset("online_retail", "sim_hard").data.events.min_history == 200
