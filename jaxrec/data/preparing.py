"""From a table in files to arrays that train: three passes, bounded memory, all or nothing.

1. *Spool*: the columns that matter, in one canonical form, with each row's split, to Parquet.
2. *Fit* the transforms on the training rows (fitting.py).
3. *Encode* every row and append the numbers to flat files that are mapped into memory later.

The result is one folder under the cache, named by a hash of all that it depends on, and renamed
into place when it is whole; a run that is killed leaves a temporary folder and no result, and a
second run finds what the first has made.

Read next: jaxrec/data/stored.py, the data set over those files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxrec.data import fitting, reading, splits
from jaxrec.features import schema as schema_lib
from jaxrec.features import transforms, transforms_file, validate

VERSION = 1  # of the files below; another version is prepared anew
_LABEL, _WEIGHT = "jaxrec_label_", "jaxrec_weight"  # columns of the spool


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that a prepared table depends on.

  Attributes:
    reader: the table.
    schema: its columns.
    splitter: its splits.
    seed: of which negatives are kept.
    negative_keep_rate: share of the training negatives that is kept.
    fitted: transforms to use instead of fitting new ones.
    left_out: columns that the schema does not use, and why; kept for people to read.
  """

  reader: reading.Reader
  schema: schema_lib.Schema
  splitter: splits.Splitter
  seed: int = 0
  negative_keep_rate: float = 1.0
  fitted: transforms.Transforms | None = None
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def key(self) -> str:
    """A name for the result: another name if anything is different."""
    parts = [
      VERSION,
      self.reader.identity(),
      schema_lib.to_json(self.schema),
      repr(self.splitter),
      [self.seed, self.negative_keep_rate],
      None if self.fitted is None else transforms_file.digest(self.fitted),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def cache_folder() -> pathlib.Path:
  """``$JAXREC_CACHE``, or ``~/.cache/jaxrec``."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return pathlib.Path(os.environ.get("JAXREC_CACHE") or os.path.join(base, "jaxrec"))


def prepare(plan: Plan, folder: pathlib.Path | None = None) -> pathlib.Path:
  """The folder that holds ``plan``'s table as arrays; made now unless it is there.

  Args:
    plan: what to prepare.
    folder: where; None: in the cache, under ``plan.key()``.

  Raises:
    BadExampleError: a row that must not be trained on; nothing is left behind.
  """
  reading.require_columns(plan.reader, plan.schema.used)
  target = cache_folder() / "tables" / plan.key() if folder is None else folder
  if (target / "meta.json").exists():
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    _prepare(plan, temporary)
    if target.exists():  # another process was faster
      return target
    os.rename(temporary, target)
  except OSError as error:
    raise validate.BadExampleError(
      f"cannot prepare {plan.reader.name} in {target.parent}: {error.strerror or error}; make "
      "room, or name another folder in JAXREC_CACHE"
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return target


def _prepare(plan: Plan, folder: pathlib.Path) -> None:
  spool = folder / "spool.parquet"
  _spool(plan, spool)
  fitted = plan.fitted or fitting.fit(spool, plan.schema)
  transforms_file.save(fitted, folder)
  counts, total = _encode(plan, fitted, spool, folder)
  if plan.fitted is None:
    splits.check_not_empty(counts, plan.reader.name)
  spool.unlink()
  shutil.rmtree(folder / "duckdb", ignore_errors=True)
  meta = {
    "version": VERSION,
    "num_rows": total,
    "bad_rows": getattr(plan.reader, "bad_rows", []),
    "left_out": dict(plan.left_out),
  }
  with (folder / "meta.json").open("w") as file:
    json.dump(meta, file)
    file.flush()
    os.fsync(file.fileno())


def _spool(plan: Plan, path: pathlib.Path) -> None:
  """Writes the canonical columns: labels and weights f32, numbers f64, ids and groups as text."""
  columns = list(dict.fromkeys([*plan.schema.used, *plan.splitter.columns()]))
  first, writer = 0, None
  with contextlib.ExitStack() as stack:
    for rows in plan.reader.batches(columns):
      if rows.num_rows == 0:
        continue
      chunk = _canonical(plan, rows, first)
      if writer is None:
        writer = stack.enter_context(pq.ParquetWriter(path, chunk.schema, compression="zstd"))
      writer.write_batch(chunk)
      first += rows.num_rows
  if writer is None:
    raise validate.BadExampleError(f"{plan.reader.name}: holds no rows; expected at least one")


def _canonical(plan: Plan, rows: pa.RecordBatch, first: int) -> pa.RecordBatch:
  schema, where = plan.schema, plan.reader.name
  found: dict[str, pa.Array] = {fitting.SPLIT: pa.array(plan.splitter(first, rows))}
  for name, positive in schema.labels.items():
    column = f"label {name!r} of {where}"
    found[_LABEL + name] = pa.array(_labels(rows.column(name), positive, column, first))
  if schema.weight is not None:
    weights = _weights(rows.column(schema.weight), schema.weight, where, first)
    found[_WEIGHT] = pa.array(weights)
  for name in schema.groups:
    found[fitting.GROUP + name] = _plain(transforms.to_texts(rows.column(name), name, where))
  for name, feature in schema.columns.items():
    values = rows.column(name)
    if feature.is_numeric:
      numbers = transforms.to_numbers(values, name, where)
      found[name] = pa.array(numbers, pa.float64(), from_pandas=True)
    elif feature.is_bag:
      found[name] = _text_lists(values, feature, name, where)
    else:
      found[name] = _plain(transforms.to_texts(values, name, where))
  return pa.RecordBatch.from_pydict(found)


def _plain(texts: pa.DictionaryArray) -> pa.Array:
  return texts.cast(pa.string())


def _text_lists(values: pa.Array, column: schema_lib.Column, name: str, where: str) -> pa.Array:
  lists = transforms.to_lists(values, column, name, where)
  texts = _plain(transforms.to_texts(pc.list_flatten(lists), name, where))
  offsets = np.concatenate([[0], np.cumsum(transforms.list_lengths(lists), dtype=np.int64)])
  return pa.LargeListArray.from_arrays(pa.array(offsets), texts)


def _labels(values: pa.Array, positive: Any, where: str, first: int) -> np.ndarray:
  """f32[N] of 0 and 1."""
  if positive is not None:
    texts = _plain(transforms.to_texts(values, where, "the table"))
    is_bad = pc.is_null(texts).to_numpy(zero_copy_only=False)
    wanted = _plain(transforms.to_texts(pa.array([positive]), where, "the table"))[0]
    labels = pc.fill_null(pc.equal(texts, wanted), False).to_numpy(zero_copy_only=False)
  else:
    try:
      numbers = pc.cast(values, pa.float32())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
      raise validate.BadExampleError(
        f"{where}: expected 0 or 1, got {values.type} ({error}); say in schema.json which value "
        'counts as 1, as "labels": {"income": ">50K"}'
      ) from error
    labels = pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)
    is_bad = (labels != 0) & (labels != 1)
  if is_bad.any():
    row = int(np.argmax(is_bad))
    raise validate.BadExampleError(
      f"{where}: expected 0 or 1, got {values[row].as_py()!r} in row {first + row} "
      f"({int(is_bad.sum())} such rows among {len(labels)}); is this an unlabeled test file?"
    )
  return labels.astype(np.float32)


def _weights(values: pa.Array, name: str, where: str, first: int) -> np.ndarray:
  """f32[N], finite and >= 0."""
  weights = transforms.to_numbers(values, name, where)
  is_good = weights >= 0
  if not is_good.all():
    row = int(np.argmin(is_good))
    raise validate.BadExampleError(
      f"weight {name!r} of {where}: expected a number >= 0, got {weights[row]} in row {first + row}"
    )
  return weights.astype(np.float32)


class _Files:
  """Flat files that grow."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._open: dict[str, BinaryIO] = {}

  def append(self, name: str, array: np.ndarray) -> None:
    if name not in self._open:
      self._open[name] = (self._folder / name).open("wb")
    np.ascontiguousarray(array).tofile(self._open[name])

  def close(self) -> None:
    for file in self._open.values():
      file.flush()
      os.fsync(file.fileno())
      file.close()


def _encode(
  plan: Plan, fitted: transforms.Transforms, spool: pathlib.Path, folder: pathlib.Path
) -> tuple[list[int], int]:
  """Writes every row's numbers and each split's rows; how many rows each split has, and all."""
  counts, first = [0, 0, 0], 0
  bags = [name for name, column in plan.schema.columns.items() if column.is_bag]
  lengths = dict.fromkeys(bags, 0)
  with contextlib.closing(_Files(folder)) as files:
    for name in bags:
      files.append(f"splits_{bags.index(name)}.i64", np.zeros(1, np.int64))
    for split in splits.NAMES:
      files.append(f"rows_{split}.i64", np.zeros(0, np.int64))
    for rows in _spooled(spool):
      encoded = fitted.encode(rows, where=plan.reader.name)
      labels = np.stack([rows.column(_LABEL + n).to_numpy() for n in plan.schema.labels], axis=1)
      files.append("ids.i32", encoded.ids)
      files.append("dense.f32", encoded.dense)
      files.append("labels.f32", labels)
      if plan.schema.weight is not None:
        files.append("weights.f32", rows.column(_WEIGHT).to_numpy())
      if plan.schema.groups:
        files.append("groups.i32", _groups(fitted, rows))
      for k, name in enumerate(bags):
        values, sizes = encoded.bags[name]
        ends = lengths[name] + np.cumsum(sizes, dtype=np.int64)
        files.append(f"values_{k}.i32", values)
        files.append(f"splits_{k}.i64", ends)
        lengths[name] = int(ends[-1])
      assigned = rows.column(fitting.SPLIT).to_numpy()
      for number, split in enumerate(splits.NAMES):
        chosen = splits.rows_of(assigned, first, number)
        if number == splits.TRAIN:
          chosen = _kept(plan, chosen, labels[chosen - first])
        files.append(f"rows_{split}.i64", chosen)
        counts[number] += len(chosen)
      first += rows.num_rows
  return counts, first


def _spooled(spool: pathlib.Path) -> Iterator[pa.RecordBatch]:
  yield from pq.ParquetFile(spool).iter_batches(reading.CHUNK_ROWS)


def _groups(fitted: transforms.Transforms, rows: pa.RecordBatch) -> np.ndarray:
  """i32[N, G]."""
  found = [names.rows(rows.column(fitting.GROUP + n)) for n, names in fitted.groups.items()]
  return np.stack(found, axis=1)


def _kept(plan: Plan, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """All rows with a positive label, and a share of the others by a hash of their number."""
  if plan.negative_keep_rate == 1.0:
    return rows
  is_lucky = splits.uniform("negatives", plan.seed, rows) < plan.negative_keep_rate
  return rows[labels.any(axis=1) | is_lucky]
