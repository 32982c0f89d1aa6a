"""Fitted transforms on disk: four files that are read back bit for bit.

``schema.json`` is the schema; ``fitted.json`` holds the numbers (Python writes a float64 so that it
reads back the same) with a digest of each file, as tables were trained with exactly these;
``vocabularies.parquet`` holds the values of all vocabularies, and ``crosses.parquet`` the keys of
all crosses, in order of row.

Read next: jaxrec/features/transforms.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxrec import config
from jaxrec.features import crosses, numeric, quantiles, transforms, vocabulary
from jaxrec.features import schema as schema_lib

FILES = ("schema.json", "fitted.json", "vocabularies.parquet", "crosses.parquet")
_DIGESTS = "digests"  # in fitted.json


def save(fitted: transforms.Transforms, folder: str | os.PathLike[str]) -> None:
  """Writes ``fitted`` into ``folder``, which exists."""
  folder = pathlib.Path(folder)
  (folder / FILES[0]).write_text(schema_lib.to_json(fitted.schema), encoding="utf-8")
  pq.write_table(_values(fitted), folder / FILES[2], compression="zstd")
  pq.write_table(_keys(fitted), folder / FILES[3], compression="zstd")
  numbers = _numbers(fitted)
  found = {**numbers, _DIGESTS: _digests(folder, numbers)}
  (folder / FILES[1]).write_text(json.dumps(found), encoding="utf-8")


def load(folder: str | os.PathLike[str]) -> transforms.Transforms:
  """The transforms that ``save`` wrote.

  Raises:
    ConfigError: a file is missing, or is not what ``save`` wrote.
  """
  folder = pathlib.Path(folder)
  for name in FILES:
    config.require(
      (folder / name).is_file(),
      f"{folder}: holds no {name}, so no fitted transforms; expected the folder 'features' of a "
      "run",
    )
  try:
    found = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
    _check_digests(folder, dict(found))
    schema = schema_lib.from_json(
      (folder / FILES[0]).read_text(encoding="utf-8"), where=str(folder / FILES[0])
    )
    values, keys = (pq.read_table(folder / name) for name in FILES[2:])
    return transforms.Transforms(
      schema=schema,
      kinds=found["kinds"],
      rows={name: _rows(name, plain, values) for name, plain in found["rows"].items()},
      steps={n: tuple(map(numeric.from_plain, steps)) for n, steps in found["steps"].items()},
      quantiles={
        name: quantiles.Quantiles(*(np.array(part, np.float64) for part in parts))
        for name, parts in found["quantiles"].items()
      },
      max_lengths=found["max_lengths"],
      crosses={name: _cross(name, plain, keys) for name, plain in found["crosses"].items()},
    )
  except config.ConfigError:
    raise
  except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
    raise config.ConfigError(
      f"{folder}: cannot be read as fitted transforms ({error}); restore the folder, or train anew"
    ) from error


def digest(fitted: transforms.Transforms) -> str:
  """A name for the whole value: other transforms have another."""
  parts = [schema_lib.to_json(fitted.schema), json.dumps(_numbers(fitted))]
  for table in (_values(fitted), _keys(fitted)):
    parts += [json.dumps(table.column(name).to_pylist()) for name in table.column_names]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digests(folder: pathlib.Path, numbers: dict[str, Any]) -> dict[str, str]:
  """By file, what it holds; of the file of ``numbers``, these alone."""
  found = {}
  for name in (FILES[0], *FILES[2:]):
    with (folder / name).open("rb") as file:
      found[name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found | {FILES[1]: hashlib.sha256(json.dumps(numbers).encode()).hexdigest()}


def _check_digests(folder: pathlib.Path, found: dict[str, Any]) -> None:
  """Raises ConfigError if a file is not the one that ``save`` wrote."""
  saved = found.pop(_DIGESTS, None)
  if saved is None:  # of a run of before there were any
    return
  now = _digests(folder, found)
  changed = [name for name in FILES if now[name] != saved[name]]
  config.require(
    not changed,
    f"{folder}: {', '.join(changed)} changed since it was written. The folder is the run's own, as "
    "what was trained fits these files alone. Restore it, or train anew; to change the schema, "
    "edit a copy of it and give that to a new run as --schema",
  )


def _numbers(fitted: transforms.Transforms) -> dict[str, Any]:
  return {
    "rows": {name: _plain(rows) for name, rows in fitted.rows.items()},
    "steps": {name: list(map(numeric.to_plain, steps)) for name, steps in fitted.steps.items()},
    "quantiles": {
      name: [q.boundaries.tolist(), q.knots.tolist(), q.ranks.tolist()]
      for name, q in fitted.quantiles.items()
    },
    "max_lengths": dict(fitted.max_lengths),
    "kinds": dict(fitted.kinds),
    "crosses": {name: _plain(cross) for name, cross in fitted.crosses.items()},
  }


def _plain(
  rows: vocabulary.Vocabulary | vocabulary.HashedRows | crosses.CrossRows,
) -> dict[str, int]:
  if isinstance(rows, vocabulary.HashedRows | crosses.HashedCross):
    return {"num_buckets": rows.num_buckets, "salt": rows.salt}
  return {"oov_buckets": rows.oov_buckets}


def _rows(
  name: str, plain: dict[str, int], values: pa.Table
) -> vocabulary.Vocabulary | vocabulary.HashedRows:
  if "num_buckets" in plain:
    return vocabulary.HashedRows(**plain)
  return vocabulary.Vocabulary(_of(values, name), plain["oov_buckets"])


def _cross(name: str, plain: dict[str, int], keys: pa.Table) -> crosses.CrossRows:
  if "num_buckets" in plain:
    return crosses.HashedCross(**plain)
  found = keys.filter(pc.equal(keys["cross"], name)).column("key").to_numpy()
  return crosses.CrossVocabulary(found, plain["oov_buckets"])


def _keys(fitted: transforms.Transforms) -> pa.Table:
  """Columns cross, key: every cross's combinations, end to end."""
  parts = [
    pa.table({"cross": pa.array([name] * len(cross.keys), pa.string()), "key": cross.keys})
    for name, cross in fitted.crosses.items()
    if isinstance(cross, crosses.CrossVocabulary)
  ]
  empty = pa.schema([("cross", pa.string()), ("key", pa.uint64())]).empty_table()
  return pa.concat_tables([empty, *parts])


def _values(fitted: transforms.Transforms) -> pa.Table:
  """Columns table, value: every vocabulary's values, end to end."""
  parts = [
    pa.table({
      "table": pa.array([name] * len(rows.values), pa.string()),
      "value": rows.values.cast(pa.string()),
    })
    for name, rows in fitted.rows.items()
    if isinstance(rows, vocabulary.Vocabulary)
  ]  # fmt: skip
  empty = pa.schema([(name, pa.string()) for name in ("table", "value")]).empty_table()
  return pa.concat_tables([empty, *parts])


def _of(values: pa.Table, table: str) -> pa.Array:
  found = values.filter(pc.equal(values["table"], table)).column("value").combine_chunks()
  return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found
