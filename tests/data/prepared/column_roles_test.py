"""Label, weight, group and time, from a schema and from what was asked for: both, or an error."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec import data
from jaxrec.config import ConfigError
from jaxrec.config.experiment import DataConfig
from jaxrec.data import registry
from jaxrec.features import BadExampleError
from jaxrec.features import schema as schema_lib
from tests.data import tables

BARE = dataclasses.replace(tables.SCHEMA, weight=None, groups=(), time=None)
ASKED = {"weight": "weight", "group": "user", "time": "ts"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


def of_file(tmp_path, schema, labels=(), **fields):
  """The data set of flags and a schema file."""
  (tmp_path / "s.json").write_text(schema_lib.to_json(schema))
  path = tables.write(tables.clicks(), tmp_path / "x.parquet")
  config = DataConfig("table", str(path), labels=labels, schema=f"{tmp_path}/s.json", **fields)
  return registry.load(config, embedding_dim=4)


def of_arrow(_, schema, labels=("click", "like"), **fields):
  """The same in Python, where a label is always named."""
  return data.from_arrow(tables.clicks(), label=labels, schema=schema, **fields)


@pytest.mark.parametrize("read", [of_file, of_arrow])
def test_what_the_schema_leaves_open_is_as_asked_and_the_future_does_not_train(tmp_path, read):
  found = read(tmp_path, BARE, **ASKED)
  assert found.transforms.schema == tables.SCHEMA
  assert read(tmp_path, tables.SCHEMA, **ASKED).transforms.schema == tables.SCHEMA
  assert read(tmp_path, tables.SCHEMA).transforms.schema == tables.SCHEMA
  times = tables.clicks()["ts"].to_numpy()
  rows = {s: np.fromfile(found.folder / f"rows_{s}.i64", np.int64) for s in ("train", "test")}
  assert times[rows["train"]].max() < times[rows["test"]].min()


@pytest.mark.parametrize("read", [of_file, of_arrow])
@pytest.mark.parametrize(
  ("schema", "fields", "message"),
  [
    (tables.SCHEMA, {"time": "age"}, r"time: 'age' is asked for .* has 'ts'; make the two equal"),
    (tables.SCHEMA, {"weight": "age"}, "weight: 'age' is asked for .* has 'weight'; make"),
    (tables.SCHEMA, {"group": "city"}, "group: 'city' is asked for .* has 'user'; make the two"),
    (tables.SCHEMA, {"labels": ("like",)}, "label: 'like' is asked for .* has 'click, like'"),
    (tables.SCHEMA, {"labels": ("click", "like=no")}, "label: 'like=no' is .* has 'like=yes'"),
    (tables.SCHEMA, {"labels": ("click=1", "like")}, "label: 'click=1' is asked .* has 'click';"),
    (BARE, {"time": "age"}, "column 'age' is the time .*, and a feature too: .* take it out of"),
    (BARE, {"weight": "age"}, "column 'age' is a label or the weight, and a feature too"),
    (BARE, {"time": "tz"}, "no column 'tz'"),
  ],
)
def test_what_differs_is_named_on_both_sides(tmp_path, read, schema, fields, message):
  with pytest.raises((ConfigError, BadExampleError), match=message):
    read(tmp_path, schema, **fields)


def test_labels_stand_in_the_order_they_are_asked_for_with_the_value_of_the_schema(tmp_path):
  for labels in (("like", "click"), ("like=yes", "click")):
    found = of_file(tmp_path, tables.SCHEMA, labels)
    assert dict(found.transforms.schema.labels) == {"like": "yes", "click": None}
    assert found.spec.labels == ("like", "click")
  assert of_arrow(None, tables.SCHEMA, {"click": None, "like": "yes"}).spec.labels[0] == "click"


def test_one_of_several_groups_may_be_asked_for(tmp_path):
  both = dataclasses.replace(tables.SCHEMA, groups=("user", "city"))
  assert of_file(tmp_path, both, group="city").spec.groups == ("user", "city")
