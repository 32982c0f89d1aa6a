"""The files of fitted transforms are read as they were written, or named as changed."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest

from jaxrec import data
from jaxrec.config import ConfigError
from jaxrec.features import transforms, transforms_io
from tests.data import tables


@pytest.fixture(scope="module")
def fitted() -> transforms.Transforms:
  labels = list(tables.SCHEMA.labels)
  return data.from_arrow(tables.clicks(), label=labels, schema=tables.SCHEMA).transforms


def edit_the_schema(folder):
  path = folder / "schema.json"
  path.write_text(path.read_text().replace('"max_length": 4', '"max_length": 5'))


def edit_the_numbers(folder):
  found = json.loads((folder / "fitted.json").read_text())
  found["max_lengths"]["tags"] = 5
  (folder / "fitted.json").write_text(json.dumps(found))


def drop_a_value(folder):
  path = folder / "vocabularies.parquet"
  table = pq.read_table(path)
  pq.write_table(table.slice(0, len(table) - 1), path)


@pytest.mark.parametrize(
  ("change", "name"),
  [
    (edit_the_schema, "schema.json"),
    (edit_the_numbers, "fitted.json"),
    (drop_a_value, "vocabularies.parquet"),
  ],
)
def test_a_file_that_was_changed_by_hand_is_named_and_what_to_do_instead(
  fitted, tmp_path, change, name
):
  transforms_io.save(fitted, tmp_path)
  transforms_io.load(tmp_path)
  change(tmp_path)
  message = (
    rf"^{re.escape(str(tmp_path))}: {name} changed since .* is the run's own.* Restore it.*; to "
    "change the schema, edit a copy of it and give that to a new run as --schema$"
  )
  with pytest.raises(ConfigError, match=message):
    transforms_io.load(tmp_path)


def test_a_folder_of_before_there_were_digests_is_read(fitted, tmp_path):
  transforms_io.save(fitted, tmp_path)
  found = json.loads((tmp_path / "fitted.json").read_text())
  assert found.pop("digests").keys() == set(transforms_io.FILES)
  (tmp_path / "fitted.json").write_text(json.dumps(found))
  again = transforms_io.load(tmp_path)
  assert transforms_io.digest(again) == transforms_io.digest(fitted)
