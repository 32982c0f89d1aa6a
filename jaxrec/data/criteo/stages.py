"""The work of preparing, cut into tasks that each make one finished file or folder.

    scan    a file    Kaggle only: where each of the seven days begins
    count   a day     distinct raw ids with counts and first rows; the smallest dense value
    number  a column  the vocabulary of the column over all days
    encode  a day     its rows with dense values and ids as the recipe wants them, by shard
    write   a shard   its rows, of whatever days, as blocks of an ArrayRecord file

A task reads what earlier stages finished, and its result is a function of the raw files and the
recipe alone. So tasks of a stage may run anywhere, in any order, be killed and run again; an
executor only decides where. Text is parsed twice rather than kept in another form: at some 700k
rows a second that costs less than reading back what was kept.

Read next: jaxrec/data/criteo/preparation.py, which runs them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxrec.data.criteo import (
  atomic,
  blocks,
  fields,
  reader,
  recipes,
  schema,
  sorted_runs,
  vocabulary,
)
from jaxrec.inputs import batch_checks

_PLACE_BYTES = 1 << 24  # text between the places noted in a scan
_ENCODED_ROWS = 1 << 17  # put in order at a time


@dataclasses.dataclass(frozen=True)
class Job:
  """What all tasks of one preparation know.

  Attributes:
    raw: the raw files.
    recipe: what to make of them.
    folder: where results go; on a file system that all workers see.
    on_bad_row: ``error`` or ``skip``.
    chunk_bytes: text read at a time.
  """

  raw: schema.RawFiles
  recipe: recipes.Recipe
  folder: pathlib.Path
  on_bad_row: str = "error"
  chunk_bytes: int = reader.CHUNK_BYTES


@dataclasses.dataclass(frozen=True)
class Stage:
  """Tasks that may run side by side: ``task(job, item)`` makes ``results(job)[item]``."""

  name: str
  task: Callable[[Job, int], None]
  results: Callable[[Job], list[pathlib.Path]]


def scan(job: Job, item: int) -> None:
  """Finds where each day of Kaggle's one file begins."""
  path = job.raw.paths[item]
  places: list[tuple[int, int, int]] = []  # rows before, byte, line
  num_rows = num_bad = 0
  first_bad = ""
  for block in _read(job, path, reader.Place()):
    if not places or block.start.byte >= places[-1][1] + _PLACE_BYTES:
      places.append((num_rows, block.start.byte, block.start.line))
    num_rows += len(block.rows)
    num_bad, first_bad = num_bad + block.num_bad, first_bad or block.first_bad
  days: list[dict[str, int]] = []
  first_row = 0
  for size in recipes.kaggle_days(num_rows, job.raw.num_days):
    before, byte, line = next(place for place in reversed(places) if place[0] <= first_row)
    skip = first_row - before
    days.append({"byte": byte, "line": line, "skip_rows": skip, "num_rows": size})
    first_row += size
  with atomic.writing(_scan_path(job)) as temporary:
    _write_json(temporary, {"days": days, "num_bad": num_bad, "first_bad": first_bad})


def count(job: Job, day: int) -> None:
  """Counts the raw ids of a day, and finds its smallest dense value."""
  num_rows = num_kept = num_bad = 0
  first_bad, smallest = "", schema.INT32.max
  with atomic.writing(_count_path(job, day)) as folder:
    scratch = folder / "scratch"
    counter = sorted_runs.Counter(schema.NUM_IDS, scratch)
    for rows, block in _rows_of(job, day):
      kept = recipes.select(job.recipe, rows, day=day, first_row=num_rows)
      counter.add(kept.ids)
      num_rows, num_kept = num_rows + len(rows), num_kept + len(kept)
      smallest = min(smallest, int(rows.dense.min(initial=schema.INT32.max)))
      num_bad, first_bad = num_bad + block.num_bad, first_bad or block.first_bad
    if not num_kept:
      raise batch_checks.BadExampleError(
        f"{_path_of(job, day)}: day {day} has no row to keep"
        + (f" ({num_bad} bad ones; {first_bad})" if num_bad else "")
      )
    counter.write(folder)
    atomic.remove(scratch)
    stats = {"num_rows": num_rows, "num_kept": num_kept, "smallest": smallest, "num_bad": num_bad}
    _write_json(folder / "stats.json", {**stats, "first_bad": first_bad})


def number(job: Job, column: int) -> None:
  """Numbers the ids of a column over all days."""
  days = [sorted_runs.open_runs(_count_path(job, day))[column] for day in range(job.raw.num_days)]
  with atomic.writing(vocabulary_path(job, column)) as folder:
    vocabulary.build(
      days,
      rows_per_day(job),
      folder,
      first_id=job.recipe.first_id,
      threshold=job.recipe.frequency_threshold,
    )


def encode(job: Job, day: int) -> None:
  """Makes the day's rows, those of each shard together."""
  sizes, stats = rows_per_day(job), stats_of(job, day)
  vocabularies = [
    vocabulary.load(vocabulary_path(job, column), job.recipe.rare_id)
    for column in range(schema.NUM_IDS)
  ]
  with atomic.writing(_encoded_path(job, day)) as folder:
    folder.mkdir()
    files = _ShardedRows(job, day, sizes, folder)
    first_row = 0
    for rows, _ in _rows_of(job, day):
      kept = recipes.select(job.recipe, rows, day=day, first_row=first_row)
      first_row += len(rows)
      try:
        columns = [v.look_up(kept.ids[:, column]) for column, v in enumerate(vocabularies)]
      except KeyError as error:
        raise _changed(job, day) from error
      dense = recipes.dense_values(job.recipe, kept.dense, stats["smallest"])
      files.add(blocks.encode_rows(kept.labels, dense, np.stack(columns, axis=1)))
    if first_row != stats["num_rows"]:
      raise _changed(job, day)
    files.close()


def write(job: Job, item: int) -> None:
  """Writes a shard."""
  split, shard = _shards(job)[item]
  num_rows = rows_per_split(job)[split]
  size = min(blocks.SHARD_ROWS, num_rows - shard * blocks.SHARD_ROWS)
  rows = np.empty((size, blocks.WORDS), np.uint32)
  num_found = 0
  for day in range(job.raw.num_days):
    starts = np.load(_encoded_path(job, day) / "starts.npy")
    start, stop = int(starts[item]), int(starts[item + 1])
    if start == stop:
      continue
    found = _open_rows(_encoded_path(job, day))[start:stop]
    rows[found[:, -1].astype(np.int64)] = found[:, :-1]
    num_found += stop - start
  assert num_found == size, f"{split} shard {shard}: {num_found} rows of {size}"
  with atomic.writing(blocks.shard_path(data_path(job), split, shard, num_rows)) as temporary:
    blocks.write_shard(temporary, rows)


class _ShardedRows:
  """The encoded rows of a day in one file, those of a shard side by side.

  Where a row goes is known before it is read, so each shard's part of the file is too. A row is 41
  words: what ``blocks.encode_rows`` makes, and its place in the shard.
  """

  def __init__(self, job: Job, day: int, sizes: list[int], folder: pathlib.Path):
    self._job, self._day, self._sizes = job, day, sizes
    shards_before, total = [], 0
    for num_rows in rows_per_split(job).values():
      shards_before.append(total)
      total += blocks.num_shards(num_rows)
    self._shards_before = np.array(shards_before)
    counts = np.zeros(total, np.int64)
    for start in range(0, sizes[day], _ENCODED_ROWS):
      numbers = np.arange(start, min(start + _ENCODED_ROWS, sizes[day]))
      counts += np.bincount(self._places(numbers)[0], minlength=total)
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "starts.npy", starts)
    self._cursors = starts[:-1]
    shape = (sizes[day], blocks.WORDS + 1)
    self._file = np.memmap(folder / "rows", np.uint32, "w+", shape=shape)
    self._pending: list[np.ndarray] = []
    self._first_row = 0

  def add(self, rows: np.ndarray) -> None:
    """Adds the next rows of the day, u32[n, 40]."""
    self._pending.append(rows)
    if sum(map(len, self._pending)) >= _ENCODED_ROWS:
      self._flush()

  def close(self) -> None:
    self._flush()
    self._file.flush()
    del self._file

  def _flush(self) -> None:
    if not self._pending:
      return
    rows = np.concatenate(self._pending)
    self._pending = []
    if self._first_row + len(rows) > self._sizes[self._day]:
      raise _changed(self._job, self._day)
    shards, places = self._places(np.arange(self._first_row, self._first_row + len(rows)))
    by_shard = np.argsort(shards, kind="stable")
    shards = shards[by_shard]
    counts = np.bincount(shards, minlength=len(self._cursors))
    # Its shard's next free row, and one more for each row of the shard that comes before it here.
    shift = self._cursors - (np.cumsum(counts) - counts)
    targets = shift[shards] + np.arange(len(rows))
    self._file[targets, :-1] = rows[by_shard]
    self._file[targets, -1] = places[by_shard]
    self._cursors = self._cursors + counts
    self._first_row += len(rows)

  def _places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """i64[n] shards of the day's kept rows, numbered over all splits, and places in them."""
    splits, places = recipes.places(self._job.recipe, self._sizes, day=self._day, rows=numbers)
    shards, within = np.divmod(places, blocks.SHARD_ROWS)
    return self._shards_before[splits] + shards, within


def _rows_of(job: Job, day: int) -> Iterator[tuple[fields.RawRows, reader.Block]]:
  """The good rows of a day, and with each the block it comes from."""
  if not job.raw.is_kaggle:
    for block in _read(job, job.raw.paths[day], reader.Place()):
      yield block.rows, block
    return
  part = json.loads(_scan_path(job).read_text())["days"][day]
  skip, left = part["skip_rows"], part["num_rows"]
  for block in _read(job, job.raw.paths[0], reader.Place(part["byte"], part["line"])):
    rows = block.rows[skip : skip + left]
    yield rows, block
    skip, left = max(0, skip - len(block.rows)), left - len(rows)
    if not left:
      return


def _read(job: Job, path: pathlib.Path, start: reader.Place) -> Iterator[reader.Block]:
  return reader.read_blocks(
    path, chunk_bytes=job.chunk_bytes, on_bad_row=job.on_bad_row, start=start
  )


def _shards(job: Job) -> list[tuple[str, int]]:
  """Every shard of every split, in the order they are numbered."""
  return [
    (split, shard)
    for split, num_rows in rows_per_split(job).items()
    for shard in range(blocks.num_shards(num_rows))
  ]


def stats_of(job: Job, day: int) -> dict[str, Any]:
  """What ``count`` found in a day."""
  stats: dict[str, Any] = json.loads((_count_path(job, day) / "stats.json").read_text())
  return stats


def rows_per_day(job: Job) -> list[int]:
  """Rows of each day that are kept."""
  return [stats_of(job, day)["num_kept"] for day in range(job.raw.num_days)]


def rows_per_split(job: Job) -> dict[str, int]:
  """Rows of each split."""
  return recipes.split_rows(job.recipe, rows_per_day(job))


def bad_rows(job: Job) -> dict[str, Any]:
  """``num_bad`` rows that were skipped, and ``first_bad``, the first, with file and line."""
  if job.raw.is_kaggle:
    found = [json.loads(_scan_path(job).read_text())]
  else:
    found = [stats_of(job, day) for day in range(job.raw.num_days)]
  named = zip(job.raw.paths, found, strict=True)
  first = next((f"{path.name}, {part['first_bad']}" for path, part in named if part["num_bad"]), "")
  return {"num_bad": sum(part["num_bad"] for part in found), "first_bad": first}


def vocabulary_path(job: Job, column: int) -> pathlib.Path:
  """The folder of a column's vocabulary."""
  return job.folder / "vocabulary" / schema.ID_NAMES[column]


def data_path(job: Job) -> pathlib.Path:
  """The folder of the shards."""
  return job.folder / "data"


def _scan_path(job: Job) -> pathlib.Path:
  return job.folder / "scan.json"


def _count_path(job: Job, day: int) -> pathlib.Path:
  return job.folder / "count" / f"day_{day}"


def _encoded_path(job: Job, day: int) -> pathlib.Path:
  return job.folder / "encoded" / f"day_{day}"


def _open_rows(folder: pathlib.Path) -> np.ndarray:
  return np.asarray(np.memmap(folder / "rows", np.uint32, "r")).reshape(-1, blocks.WORDS + 1)


def _path_of(job: Job, day: int) -> pathlib.Path:
  return job.raw.paths[0 if job.raw.is_kaggle else day]


def _changed(job: Job, day: int) -> batch_checks.BadExampleError:
  return batch_checks.BadExampleError(
    f"{_path_of(job, day)}: has changed since its ids were counted; remove {job.folder} and start "
    "again"
  )


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value))


def _each(path_fn: Callable[[Job, int], pathlib.Path], num_items: int | None = None) -> Any:
  """The results of a stage whose items are days, or numbered to ``num_items``."""
  return lambda job: [path_fn(job, item) for item in range(num_items or job.raw.num_days)]


def _shard_paths(job: Job) -> list[pathlib.Path]:
  sizes = rows_per_split(job)
  return [
    blocks.shard_path(data_path(job), split, shard, sizes[split]) for split, shard in _shards(job)
  ]


STAGES = (
  Stage("scan", scan, lambda job: [_scan_path(job)] if job.raw.is_kaggle else []),
  Stage("count", count, _each(_count_path)),
  Stage("number", number, _each(vocabulary_path, schema.NUM_IDS)),
  Stage("encode", encode, _each(_encoded_path)),
  Stage("write", write, _shard_paths),
)
