"""Which row of an older model's tables each row of a newer one's continues.

The same value has another row under another vocabulary, so rows are followed by their keys: a
value of a vocabulary by its text, a combination of a cross by the values that it combines, a bucket
of numbers by where it lies. A row whose key the older model did not have continues none.

Source: the warm start of Wide & Deep (Cheng et al. 2016, section 4.2); in TensorFlow,
WarmStartSettings map a variable from one vocabulary to another.
Read next: jaxrec/runs/warm_start.py.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxrec import config
from jaxrec.features import crosses, quantiles, transforms, vocabulary

NEW = -1  # the older model has no such row


def old_rows(old: transforms.Transforms, new: transforms.Transforms) -> dict[str, np.ndarray]:
  """By table of ``new`` that ``old`` has too: i32[V] of rows of ``old``'s, or NEW.

  Raises:
    ConfigError: ids of a table were made in another way, by hash or with other buckets of it, so
      rows have no keys to follow; the message names it.
  """
  found: dict[str, np.ndarray] = {}
  for table, rows in new.rows.items():
    if table in old.rows:
      found[table] = _of_values(f"table {table!r}", old.rows[table], rows)
  for name, buckets in new.quantiles.items():
    if name in old.quantiles:
      found[name + transforms.BUCKETS] = _of_buckets(old.quantiles[name], buckets)
  for name, cross in new.crosses.items():
    if name in old.crosses:
      found[name] = _of_combinations(name, old, new, cross, found)
  return found


def _of_values(
  where: str,
  old: vocabulary.Vocabulary | vocabulary.HashedRows,
  new: vocabulary.Vocabulary | vocabulary.HashedRows,
) -> np.ndarray:
  if isinstance(old, vocabulary.HashedRows) or isinstance(new, vocabulary.HashedRows):
    config.require(
      old == new,
      f"warm start: {where} is made by {_made_by(old)} there and by {_made_by(new)} here, so its "
      "rows cannot be followed; give it one encoding",
    )
    return np.arange(new.num_rows, dtype=np.int32)
  found = np.full(new.num_rows, NEW, np.int32)
  found[0] = 0  # what is missing
  if old.oov_buckets == new.oov_buckets:  # else a shared row has other values than it had
    found[: 1 + new.oov_buckets] = np.arange(1 + new.oov_buckets)
  places = pc.index_in(new.values.cast(pa.string()), value_set=old.values.cast(pa.string()))
  known = places.fill_null(NEW).to_numpy(zero_copy_only=False)
  found[1 + new.oov_buckets :] = np.where(known < 0, NEW, 1 + old.oov_buckets + known)
  return found


def _of_buckets(old: quantiles.Quantiles, new: quantiles.Quantiles) -> np.ndarray:
  """Each bucket continues the one in which it begins; the first, the one in which it ends."""
  if not len(new.boundaries):
    return np.arange(new.num_rows, dtype=np.int32)  # the missing, and one bucket of all
  ends = np.nextafter(new.boundaries[:1], -np.inf)
  inside = old.buckets(np.concatenate([ends, new.boundaries]))
  return np.concatenate([np.zeros(1, np.int32), inside])


def _of_combinations(
  name: str,
  old: transforms.Transforms,
  new: transforms.Transforms,
  cross: crosses.CrossRows,
  tables: dict[str, np.ndarray],
) -> np.ndarray:
  before = old.crosses[name]
  columns = new.schema.crosses[name].columns
  where = f"cross {name!r}"
  config.require(
    columns == old.schema.crosses[name].columns,
    f"warm start: {where} combines {', '.join(old.schema.crosses[name].columns)} there and "
    f"{', '.join(columns)} here; give it another name",
  )
  if any(_table_of(new, column) not in tables for column in columns):
    return np.full(cross.num_rows, NEW, np.int32)  # a column has a table of its own now
  of_parts = [tables[_table_of(new, column)] for column in columns]
  if isinstance(cross, crosses.HashedCross) or isinstance(before, crosses.HashedCross):
    same = all((rows == np.arange(len(rows))).all() for rows in of_parts)
    config.require(
      cross == before and same,
      f"warm start: {where} is hashed there or here, and its settings or its columns' ids have "
      "changed, so its rows cannot be followed. With a vocabulary in both runs "
      "(data.cross_hash_buckets=0), or with columns that are hashed too, they can; under another "
      "name the cross begins anew",
    )
    return np.arange(cross.num_rows, dtype=np.int32)
  sizes, old_sizes = ([made.num_rows(c) for c in columns] for made in (new, old))
  config.require(
    np.prod(np.array(sizes, object)) <= 2**64 and np.prod(np.array(old_sizes, object)) <= 2**64,
    f"warm start: {where} has more combinations than 64 bits, so its rows cannot be followed",
  )
  found = np.full(cross.num_rows, NEW, np.int32)
  if cross.oov_buckets == before.oov_buckets:
    found[: cross.oov_buckets] = np.arange(cross.oov_buckets)
  parts = _parts(cross.keys, sizes)
  old_parts = [rows[part] for rows, part in zip(of_parts, parts, strict=True)]
  is_known = np.logical_and.reduce([part >= 0 for part in old_parts])
  bags = [crosses.Bags(np.maximum(part, 0)) for part in old_parts]
  keys = crosses.cross(bags, old_sizes).values
  rows = before.rows(keys)
  is_known &= rows >= before.oov_buckets
  found[cross.oov_buckets :] = np.where(is_known, rows, NEW)
  return found


def _parts(keys: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
  """Of each key the ids that it combines, by column: ``crosses.parts_of`` of all."""
  found = []
  for size in reversed(sizes[1:]):
    keys, rows = np.divmod(keys, np.uint64(size))
    found.append(rows.astype(np.int64))
  return [keys.astype(np.int64), *reversed(found)]


def _table_of(made: transforms.Transforms, column: str) -> str:
  if made.schema.columns[column].is_numeric:
    return column + transforms.BUCKETS
  return made.schema.columns[column].table or column


def _made_by(rows: vocabulary.Vocabulary | vocabulary.HashedRows) -> str:
  if isinstance(rows, vocabulary.HashedRows):
    return f"a hash into {rows.num_buckets} rows (salt {rows.salt})"
  return "a vocabulary"
