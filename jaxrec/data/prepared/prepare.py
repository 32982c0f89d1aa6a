"""From a table in files to arrays that train: three passes, bounded memory, all or nothing.

1. *Spool*: the columns that matter, in one canonical form, with each row's split, to Parquet.
2. *Fit* the transforms on the training rows (fit_transforms.py).
3. *Encode* every row and append the numbers to flat files that are mapped into memory later.

The result is one folder under the cache, named by a hash of all that it depends on, and renamed
into place when it is whole: a run that is killed leaves a temporary folder and no result.

Read next: jaxrec/data/prepared/prepared_table.py, the data set over those files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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

from jaxrec.data.prepared import fit_transforms, spans, splits
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features import column_values, transforms, transforms_io, vocabulary
from jaxrec.features import schema as schema_lib
from jaxrec.inputs import batch_checks

VERSION = 6  # of the files below; another version is prepared anew
_LABEL, _WEIGHT = "label_", "weight"  # columns of the spool
_MOST_DESCRIBED = 10_000  # rows that were left out


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
    skip_bad_rows: whether rows that must not be learned are left out, rather than an error.
  """

  reader: reader_lib.Reader
  schema: schema_lib.Schema
  splitter: splits.Splitter
  seed: int = 0
  negative_keep_rate: float = 1.0
  fitted: transforms.Transforms | None = None
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  skip_bad_rows: bool = False

  @property
  def logs(self) -> Mapping[str, pa.Array]:
    """Of columns that are spans (spans.py), the values that they are spans of."""
    found = getattr(self.reader, "logs", {})
    return {name: log for name, log in found.items() if name in self.schema.columns}

  @functools.cached_property
  def plain_schema(self) -> schema_lib.Schema:
    """Without these columns."""
    return spans.plain(self.schema, self.logs)

  def key(self) -> str:
    """A name for the result: another name if anything is different."""
    parts = [
      VERSION,
      self.reader.identity(),
      schema_lib.to_json(self.schema),
      repr(self.splitter),
      [self.seed, self.negative_keep_rate, self.skip_bad_rows],
      None if self.fitted is None else transforms_io.digest(self.fitted),
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
  reader_lib.require_columns(plan.reader, plan.schema.used)
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
    raise batch_checks.BadExampleError(
      f"cannot prepare {plan.reader.name} in {target.parent}: {error.strerror or error}; make "
      "room, or name another folder in JAXREC_CACHE"
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return target


def _prepare(plan: Plan, folder: pathlib.Path) -> None:
  spool = folder / "spool.parquet"
  bad_rows, num_bad = _spool(plan, spool)
  logs = _write_logs(plan, spool, folder) if plan.logs else {}
  if plan.fitted is None:
    fitted, shared = fit_transforms.fit(spool, plan.schema, plan.reader.kinds, logs)
  else:
    fitted, shared = plan.fitted, {}
  transforms_io.save(fitted, folder)
  groups = fit_transforms.group_values(spool, plan.schema)
  for name, rows in groups.items():
    pq.write_table(pa.table({"value": rows.values}), folder / groups_file(plan.schema, name))
  counts, positives = _encode(plan, fitted, groups, spool, folder)
  if plan.fitted is None:
    splits.check_not_empty(counts, plan.reader.name)
    _check_labels(plan, positives, counts[splits.TRAIN])
  _encode_logs(fitted, logs, folder)
  spool.unlink()
  shutil.rmtree(folder / "duckdb", ignore_errors=True)
  meta = {
    "version": VERSION,
    "num_rows": sum(counts),
    "bad_rows": bad_rows,
    "num_bad_rows": num_bad,
    "left_out": dict(plan.left_out),
    "crosses": [
      rows.describe(name, fitted.crosses[name], fitted.max_lengths.get(name, 1))
      for name, rows in shared.items()
    ],
  }
  with (folder / "meta.json").open("w") as file:
    json.dump(meta, file)
    file.flush()
    os.fsync(file.fileno())


def _write_logs(plan: Plan, spool: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
  spooled = fit_transforms.feature_columns(plan.schema)

  def of_train(name: str) -> Iterator[np.ndarray]:
    columns = [fit_transforms.SPLIT, spooled[name]]
    for rows in pq.ParquetFile(spool).iter_batches(columns=columns):
      train = rows.filter(pc.equal(rows.column(fit_transforms.SPLIT), splits.TRAIN))
      yield spans.bounds(train.column(spooled[name]))

  return spans.write_logs(
    plan.logs, plan.reader.kinds, {name: of_train(name) for name in plan.logs}, folder
  )


def _encode_logs(
  fitted: transforms.Transforms, logs: Mapping[str, str], folder: pathlib.Path
) -> None:
  for name, path in logs.items():
    texts = pq.read_table(path, columns=[spans.VALUE])[spans.VALUE].combine_chunks()
    rows = fitted.rows[fitted.schema.columns[name].table or name]
    rows.rows(texts).tofile(folder / f"log_{list(fitted.max_lengths).index(name)}.i32")
    os.unlink(path)


def _spool(plan: Plan, path: pathlib.Path) -> tuple[list[str], int]:
  """Writes the canonical columns; returns where rows were left out and why, and how many."""
  columns = list(dict.fromkeys([*plan.schema.used, *plan.splitter.columns()]))
  first, writer = 0, None
  refused: dict[int, str] = {}
  with contextlib.ExitStack() as stack:
    for rows in plan.reader.batches(columns):
      chunk, bad = column_values.of_good_rows(rows, functools.partial(_canonical, plan, first))
      refused |= {first + place: reason for place, reason in bad.items()}
      if refused and not plan.skip_bad_rows:
        row = min(refused)
        (place,) = plan.reader.places([row])
        raise batch_checks.BadExampleError(f"{place}: {refused[row]}")
      if writer is None:
        writer = stack.enter_context(pq.ParquetWriter(path, chunk.schema, compression="zstd"))
      writer.write_batch(chunk)
      first += rows.num_rows
  if first == len(refused):
    why = f"all {first} are bad, the first: {refused[0]}" if refused else "expected at least one"
    raise batch_checks.BadExampleError(f"{plan.reader.name}: holds no rows to learn from; {why}")
  malformed = list(getattr(plan.reader, "bad_rows", []))
  described = sorted(refused)[:_MOST_DESCRIBED]
  found = zip(plan.reader.places(described), map(refused.__getitem__, described), strict=True)
  described_rows = [*malformed[:_MOST_DESCRIBED], *(f"{place}: {why}" for place, why in found)]
  return described_rows, len(malformed) + len(refused)


def _canonical(plan: Plan, first: int, rows: pa.RecordBatch, places: np.ndarray) -> pa.RecordBatch:
  """What the spool keeps of ``rows``; BadRowsError if there are any that must not be learned."""
  schema, kinds = plan.schema, plan.reader.kinds
  found: dict[str, pa.Array] = {fit_transforms.SPLIT: pa.array(plan.splitter(first + places, rows))}
  for number, (name, positive) in enumerate(schema.labels.items()):
    labels = _labels(rows.column(name), positive, kinds[name], name)
    found[f"{_LABEL}{number}"] = pa.array(labels)
  if schema.weight is not None:
    weights = _weights(rows.column(schema.weight), kinds[schema.weight], schema.weight)
    found[_WEIGHT] = pa.array(weights)
  for name in schema.groups:
    texts = column_values.to_texts(rows.column(name), kinds[name], f"group {name!r}")
    found[fit_transforms.group_column(schema, name)] = _plain(texts)
  if plan.fitted is None:
    lengths = {name: column.max_length for name, column in schema.columns.items()}
    features = column_values.features(rows, plan.plain_schema, kinds, lengths)
  else:
    known = plan.fitted
    features = column_values.features(rows, plan.plain_schema, known.kinds, known.max_lengths)
  features |= {name: spans.check(name, rows.column(name), log) for name, log in plan.logs.items()}
  spooled = fit_transforms.feature_columns(schema)
  for name, values in features.items():
    is_texts = isinstance(values, pa.DictionaryArray)
    found[spooled[name]] = _plain(values) if is_texts else values
  return pa.RecordBatch.from_pydict(found)


def _plain(texts: pa.DictionaryArray) -> pa.Array:
  return texts.cast(pa.string())


def _labels(values: pa.Array, positive: Any, kind: str, name: str) -> np.ndarray:
  """f32[N] of 0 and 1."""
  what = f"label {name!r}"
  if positive is not None:
    texts = _plain(column_values.to_texts(values, kind, what))
    wanted = _plain(column_values.to_texts(pa.array([positive]), kind, what))[0]
    is_bad = pc.is_null(texts).to_numpy(zero_copy_only=False)
    labels = pc.fill_null(pc.equal(texts, wanted), False).to_numpy(zero_copy_only=False)
    expected = "a value"
  else:
    labels = _zeros_and_ones(values, kind, what)
    is_bad = (labels != 0) & (labels != 1)
    expected = "0 or 1"
  if is_bad.any():
    raise column_values.BadRowsError(
      f"{what}: expected {expected}, got {{got}} ({int(is_bad.sum())} bad ones among "
      f"{len(labels)} rows); is this an unlabeled test file?",
      is_bad,
      values,
    )
  return labels.astype(np.float32)


def _zeros_and_ones(values: pa.Array, kind: str, what: str) -> np.ndarray:
  """f64[N] of numbers; NaN where there is none."""
  try:
    return column_values.to_numbers(values, kind, what)
  except column_values.BadRowsError as error:
    raise column_values.BadRowsError(
      f"{what}: expected 0 or 1, got {{got}}; if labels are words, say which one counts as 1: "
      '--label=income=rich, label={"income": "rich"} in Python, or "labels": {"income": "rich"} in '
      "a schema",
      error.is_bad,
      values,
    ) from error


def _weights(values: pa.Array, kind: str, name: str) -> np.ndarray:
  """f32[N], finite and >= 0."""
  weights = column_values.to_numbers(values, kind, f"weight {name!r}")
  is_bad = ~(weights >= 0)
  if is_bad.any():
    raise column_values.BadRowsError(
      f"weight {name!r}: expected a number >= 0, got {{got}}", is_bad, weights.tolist()
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


def groups_file(schema: schema_lib.Schema, name: str) -> str:
  """Where the values of a group column are kept: value k of the file has number 2 + k."""
  return f"group_{schema.groups.index(name)}.parquet"


def _encode(
  plan: Plan,
  fitted: transforms.Transforms,
  groups: Mapping[str, vocabulary.Vocabulary],
  spool: pathlib.Path,
  folder: pathlib.Path,
) -> tuple[list[int], np.ndarray]:
  """Writes every row's numbers and each split's rows; how many rows each split has, and for each
  label how many that train are 1.
  """
  counts, first, positives = [0, 0, 0], 0, np.zeros(len(plan.schema.labels))
  bags, plain = list(fitted.max_lengths), dataclasses.replace(fitted, schema=plan.plain_schema)
  lengths = {name: 0 for name in bags if name not in plan.logs}
  with contextlib.closing(_Files(folder)) as files:
    for name in lengths:
      files.append(f"splits_{bags.index(name)}.i64", np.zeros(1, np.int64))
    for split in splits.NAMES:
      files.append(f"rows_{split}.i64", np.zeros(0, np.int64))
    for rows in pq.ParquetFile(spool).iter_batches(fit_transforms.rows_at_once(fitted)):
      columns = fit_transforms.features_of(rows, plan.schema)
      encoded = plain.encode_canonical(columns, rows.num_rows)
      label_columns = [f"{_LABEL}{number}" for number in range(len(plan.schema.labels))]
      labels = np.stack([rows.column(name).to_numpy() for name in label_columns], axis=1)
      files.append("ids.i32", encoded.ids)
      files.append("dense.f32", encoded.dense)
      files.append("labels.f32", labels)
      if plan.schema.weight is not None:
        files.append("weights.f32", rows.column(_WEIGHT).to_numpy())
      if plan.schema.groups:
        found = [
          known.rows(rows.column(fit_transforms.group_column(plan.schema, name)))
          for name, known in groups.items()
        ]
        files.append("groups.i32", np.stack(found, axis=1))
      for k, name in enumerate(bags):
        if name in plan.logs:
          files.append(f"spans_{k}.i64", spans.bounds(columns[name]))
          continue
        values, sizes = encoded.bags[name]
        ends = lengths[name] + np.cumsum(sizes, dtype=np.int64)
        files.append(f"values_{k}.i32", values)
        files.append(f"splits_{k}.i64", ends)
        lengths[name] = int(ends[-1])
      assigned = rows.column(fit_transforms.SPLIT).to_numpy()
      for number, split in enumerate(splits.NAMES):
        chosen = splits.rows_of(assigned, first, number)
        if number == splits.TRAIN:
          chosen = _kept(plan, chosen, labels[chosen - first])
          positives += labels[chosen - first].sum(axis=0)
        files.append(f"rows_{split}.i64", chosen)
        counts[number] += len(chosen)
      first += rows.num_rows
  return counts, positives


def _check_labels(plan: Plan, positives: np.ndarray, num_train: int) -> None:
  """Raises BadExampleError if all rows that train have one label: there is nothing to learn."""
  for (name, positive), number in zip(plan.schema.labels.items(), positives, strict=True):
    if 0 < number < num_train:
      continue
    value = "1" if number else "0"
    word = "" if positive is None else f" (1 is what says {positive!r}; {_values(plan, name)})"
    raise batch_checks.BadExampleError(
      f"{plan.reader.name}: label {name!r} is {value} in all {num_train} rows that train{word}, so "
      "there is nothing to learn; name another column or value, or bring more rows"
    )


def _values(plan: Plan, name: str) -> str:
  """The first few values of a column, for a message."""
  chunk = next(iter(plan.reader.batches([name])))
  texts = column_values.to_texts(chunk.column(0), plan.reader.kinds[name], f"label {name!r}")
  shown = list(dict.fromkeys(text for text in texts.to_pylist() if text is not None))
  return "there is " + ", ".join(map(repr, shown[:5])) + (", ..." if len(shown) > 5 else "")


def _kept(plan: Plan, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """All rows with a positive label, and a share of the others by a hash of their number."""
  if plan.negative_keep_rate == 1.0:
    return rows
  is_lucky = splits.uniform("negatives", plan.seed, rows) < plan.negative_keep_rate
  return rows[labels.any(axis=1) | is_lucky]
