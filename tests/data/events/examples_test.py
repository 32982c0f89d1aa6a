"""Examples of a log against a loop over it: histories without the present, negatives that are."""

from __future__ import annotations

import collections

import numpy as np
import pyarrow as pa
import pytest

from jaxrec.config import ConfigError
from jaxrec.data.events import examples
from jaxrec.data.prepared import spans


def log_of(seed: int = 0, size: int = 600) -> pa.Table:
  """Events out of order, several at one moment."""
  rng = np.random.default_rng(seed)
  item = rng.zipf(1.3, size) % 40
  return pa.table({
    "who": rng.integers(0, 12, size),
    "what": [f"item {k}" for k in item],
    "kind": [f"kind {k % 5}" for k in item],
    "when": rng.integers(0, 90, size),
    "where": [f"place {k}" for k in rng.integers(0, 3, size)],
  })  # fmt: skip


def made(table: pa.Table, **options):
  log = examples.Log(table, "who", "what", "when")
  fields = {"label": "chosen", "histories": {"history": "what", "kinds": "kind"}, **options}
  return examples.examples(log, **fields)


def rows_of(found) -> list[dict]:
  """The examples with their histories spelt out."""
  rows = found.table.to_pylist()
  values = {name: log.to_pylist() for name, log in found.logs.items()}
  for row in rows:
    for name in found.logs:
      row[name] = values[name][row[name]["begin"] : row[name]["end"]]
  return rows


@pytest.mark.parametrize("excluding", examples.EXCLUDED)
@pytest.mark.parametrize("kind", examples.KINDS)
def test_examples_are_those_of_a_loop_over_the_log(kind, excluding):
  table = log_of()
  category = "kind" if kind == "category" else None
  how = examples.Negatives(kind=kind, excluding=excluding, category=category, number=3, seed=4)
  rows = rows_of(made(table, context=("where",), min_history=4, negatives=how))
  log = table.to_pylist()
  kind_of = {row["what"]: row["kind"] for row in log}
  ever, at_once = collections.defaultdict(set), collections.defaultdict(set)
  for event in log:
    ever[event["who"]].add(event["what"])
    at_once[event["who"], event["when"]].add(event["what"])
  positives = collections.Counter()
  num_negatives = 0
  for before, row in zip([None, *rows], rows, strict=False):
    assert before is None or before["when"] <= row["when"]
    past = [e for e in log if e["who"] == row["who"] and e["when"] < row["when"]]
    past.sort(key=lambda e: e["when"])  # stable: events of one moment keep their order
    assert [e["what"] for e in past] == row["history"] and len(past) >= 4
    assert [e["kind"] for e in past] == row["kinds"]
    if row["chosen"]:
      positives[row["who"], row["when"], row["what"], row["where"]] += 1
      event = row
      continue
    num_negatives += 1
    assert (row["who"], row["when"], row["where"]) == (event["who"], event["when"], event["where"])
    taken = ever[row["who"]] if excluding == "user" else at_once[row["who"], row["when"]]
    assert row["what"] not in taken
    if kind == "category":
      assert kind_of[row["what"]] == kind_of[event["what"]]
    assert any(e["what"] == row["what"] and e["when"] < row["when"] for e in log)
  expected = collections.Counter()
  for event in log:
    if sum(e["who"] == event["who"] and e["when"] < event["when"] for e in log) >= 4:
      expected[event["who"], event["when"], event["what"], event["where"]] += 1
  assert positives == expected and sum(expected.values()) > 400
  assert num_negatives > (300 if kind == "category" else 2 * sum(expected.values()))


def test_popular_items_are_drawn_as_often_as_they_were_chosen():
  table = log_of(size=4000)
  draws = {}
  for kind in ("popularity", "uniform"):
    how = examples.Negatives(kind=kind, excluding="moment", number=2)
    rows = made(table, negatives=how).table.to_pylist()
    draws[kind] = collections.Counter(row["what"] for row in rows if not row["chosen"])
  (top, count), = collections.Counter(table["what"].to_pylist()).most_common(1)  # fmt: skip
  share = {kind: found[top] / found.total() for kind, found in draws.items()}
  assert 2 * share["uniform"] < share["popularity"] < count / 4000
  assert 0.2 / 40 < share["uniform"] < 1.5 / 40


def test_negatives_are_a_function_of_the_seed_and_their_event():
  table = log_of()
  same = [made(table, negatives=examples.Negatives(seed=s)).table for s in (1, 1, 2)]
  assert same[0].equals(same[1]) and not same[0].equals(same[2])
  one = rows_of(made(table, negatives=examples.Negatives(seed=1)))
  three = rows_of(made(table, negatives=examples.Negatives(seed=1, number=3)))
  firsts = [row for before, row in zip(three, three[1:], strict=False)
            if before["chosen"] and not row["chosen"]]  # fmt: skip
  assert [row for row in one if not row["chosen"]] == firsts  # the first of three is the one of one


def test_an_event_without_any_free_item_has_fewer_negatives():
  table = pa.table({"who": [1] * 4, "what": ["a", "b", "a", "b"], "when": [0, 1, 2, 3]})
  for excluding, labels in (("user", [1, 1, 1]), ("moment", [1, 0, 1, 0, 1, 0])):
    found = examples.examples(
      examples.Log(table, "who", "what", "when"),
      label="y",
      histories={"past": "what"},
      negatives=examples.Negatives(excluding=excluding),
    )
    assert found.table["y"].to_pylist() == labels


@pytest.mark.parametrize("kind", examples.KINDS)
def test_an_item_is_no_negative_before_anybody_has_chosen_it(kind):
  """It would be a label 0 that no test shows, and be known in training."""
  log = log_of().to_pylist()
  late = max(row["when"] for row in log) - 5
  for k, row in enumerate(row for row in log if row["when"] > late):
    row["what"], row["kind"] = f"new {k % 4}", "kind 1"
  category = "kind" if kind == "category" else None
  how = examples.Negatives(kind=kind, category=category, number=3)
  rows = rows_of(made(pa.Table.from_pylist(log), negatives=how))
  new = [row for row in rows if row["what"].startswith("new")]
  assert all(row["when"] > late for row in new) and any(not row["chosen"] for row in new)


def test_mistakes_are_named():
  table = log_of()
  with pytest.raises(ConfigError, match="the log: no column 'wht'; did you mean 'what'"):
    made(table, histories={"history": "wht"})
  with pytest.raises(ConfigError, match="negatives.kind: 'popular'; did you mean 'popularity'"):
    examples.Negatives(kind="popular")
  with pytest.raises(ConfigError, match="kind 'category' needs the column"):
    examples.Negatives(kind="category")
  with pytest.raises(ConfigError, match="negatives.number: must be >= 1, got 0"):
    examples.Negatives(number=0)
  begins, ends = np.array([0, 3]), np.array([2, 1])
  with pytest.raises(ValueError, match="column 'past': expected spans of a log of 5 values"):
    spans.check("past", spans.column(begins, ends), pa.array(list("abcde")))
