"""Raw files in, a finished folder of blocks out: resumable, and the same bytes whoever does it.

The work is a list of stages (stages.py), each a list of tasks with one result a task. A result that
is there is finished and is not made again; so a preparation that was killed goes on where it was.
All results lie in ``NAME.unfinished``, beside the folder ``NAME`` that the data becomes by one
rename at the end. ``NAME`` holds a digest of the raw files and the recipe: other files, another
folder.

Peak disk: text stays as it is; scratch takes 164 bytes a row and 16 a distinct id and day, and is
removed at the end; the data itself takes about 80 bytes a row.

Read next: jaxrec/data/criteo/source.py.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import process
from typing import Any

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data.criteo import atomic, blocks, recipes, schema, stages, vocabulary
from jaxrec.inputs import batch_checks

_FORMAT = 1  # of the prepared folder; another number, another folder
META = "criteo.json"

Task = Callable[[stages.Job, int], None]
RunTasks = Callable[[Task, stages.Job, Sequence[int]], None]
Executor = contextlib.AbstractContextManager[RunTasks]
"""What it gives runs a task for each of the items, in any order and anywhere, and returns when all
are done. Only ``in_process`` need be known; Beam's is in beam.py."""


def in_process(task: Task, job: stages.Job, items: Sequence[int]) -> None:
  """One task after the other, here."""
  for item in items:
    task(job, item)


@contextlib.contextmanager
def in_processes(num_workers: int) -> Iterator[RunTasks]:
  """``num_workers`` tasks at a time, in processes of their own."""
  if num_workers <= 1:
    yield in_process
    return
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _follow_parent)

  def run(task: Task, job: stages.Job, items: Sequence[int]) -> None:
    for future in [pool.submit(task, job, item) for item in items]:
      future.result()

  try:
    yield run
  finally:
    pool.shutdown(cancel_futures=True)


def prepare(
  data: experiment_lib.DataConfig,
  *,
  executor: Executor | None = None,
  report: Callable[[str], None] = lambda line: None,
) -> pathlib.Path:
  """The folder of prepared data that ``data`` asks for; made first if it is not there yet.

  Args:
    data: ``data_dir`` is the folder of raw files, or one that was prepared before.
    executor: who runs the tasks; None: ``data.criteo.prepare_workers`` processes.
    report: gets a line a stage.

  Raises:
    ConfigError: no raw files where they should be, or no room to write.
    BadExampleError: a bad row, see reader.py.
  """
  if data.data_dir and (pathlib.Path(data.data_dir) / META).is_file():
    return _already_prepared(pathlib.Path(data.data_dir), data)
  raw, recipe = schema.find_files(data.data_dir), recipe_of(data)
  parent = prepared_parent(data)
  folder = parent / f"criteo_{recipe.name}_{_digest(raw, recipe, data.on_bad_row)}"
  unfinished = folder.with_name(f"{folder.name}.unfinished")
  job = stages.Job(raw, recipe, unfinished, data.on_bad_row, data.criteo.chunk_bytes)
  if folder.is_dir() and not unfinished.exists():
    return folder
  try:
    with atomic.locked(parent / f"{folder.name}.lock"):
      if not folder.is_dir():  # nobody has finished it while we waited
        atomic.remove_unfinished(unfinished)
        with executor or in_processes(data.criteo.prepare_workers) as run_tasks:
          _run(job, run_tasks, report)
        os.rename(stages.data_path(job), folder)
      atomic.remove(unfinished)
  except batch_checks.BadExampleError:
    atomic.remove(unfinished)  # of these files, nothing will come
    raise
  except process.BrokenProcessPool as error:
    raise config_lib.ConfigError(
      "data.criteo.prepare_workers: one of the processes was killed, for want of memory perhaps; "
      "the same command goes on where it was, with fewer of them if need be"
    ) from error
  except OSError as error:
    where, why = error.filename or parent, error.strerror or error
    raise config_lib.ConfigError(
      f"data.criteo.prepared_dir: cannot write to {where}: {why}"
    ) from error
  return folder


def recipe_of(data: experiment_lib.DataConfig) -> recipes.Recipe:
  """The recipe that ``data`` asks for. dlrm's cap is its modulus; mlperf caps when it reads."""
  if data.criteo.recipe == "dlrm":
    return recipes.Recipe(
      "dlrm",
      max_rows=data.max_rows_per_table or 0,
      sub_sample_rate=data.criteo.sub_sample_rate,
    )
  return recipes.Recipe("mlperf", frequency_threshold=data.criteo.frequency_threshold)


def prepared_parent(data: experiment_lib.DataConfig) -> pathlib.Path:
  """The folder that prepared folders lie in."""
  cache = os.environ.get("JAXREC_CACHE", "~/.cache/jaxrec")
  return pathlib.Path(data.criteo.prepared_dir or cache).expanduser().absolute()


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
  """What a prepared folder says of itself."""
  meta: dict[str, Any] = json.loads((folder / META).read_text())
  return meta


def _run(job: stages.Job, run_tasks: RunTasks, report: Callable[[str], None]) -> None:
  for stage in stages.STAGES:
    results = stage.results(job)
    items = [item for item, result in enumerate(results) if not result.exists()]
    if items:
      done = f", {len(results) - len(items)} done before" if len(items) < len(results) else ""
      report(f"criteo: {stage.name}, {len(results)} tasks{done}")
      run_tasks(stage.task, job, items)
    if stage.task is stages.count:
      _check_splits(job)
  data = stages.data_path(job)
  sizes = stages.rows_per_split(job)
  blocks.write_metadata(data, sizes)
  bad = stages.bad_rows(job)
  meta = {
    "format": _FORMAT,
    "recipe": experiment_lib.to_dict(job.recipe),
    "block_rows": blocks.BLOCK_ROWS,
    "splits": sizes,
    "rows_per_day": stages.rows_per_day(job),
    "vocab_sizes": [
      vocabulary.num_rows(stages.vocabulary_path(job, column)) for column in range(schema.NUM_IDS)
    ],
    **bad,
  }
  with atomic.writing(data / META) as temporary:
    temporary.write_text(json.dumps(meta, indent=1) + "\n")
  if bad["num_bad"]:
    report(f"criteo: skipped {bad['num_bad']} bad rows; the first: {bad['first_bad']}")


def _check_splits(job: stages.Job) -> None:
  if not all(stages.rows_per_split(job).values()):
    raise batch_checks.BadExampleError(
      f"{job.raw.paths[-1]}: the last day has one row to keep; it is cut into test and val, and "
      "needs at least two"
    )


def _already_prepared(folder: pathlib.Path, data: experiment_lib.DataConfig) -> pathlib.Path:
  name = read_meta(folder)["recipe"]["name"]
  if name != data.criteo.recipe:
    raise config_lib.ConfigError(
      f"data.criteo.recipe: {folder} was prepared with {name}, not {data.criteo.recipe}; "
      f"use --set data.criteo.recipe={name}, or give the folder of the raw files"
    )
  return folder


def _digest(raw: schema.RawFiles, recipe: recipes.Recipe, on_bad_row: str) -> str:
  stats = [(path.name, path.stat()) for path in raw.paths]
  files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
  shape = (_FORMAT, blocks.BLOCK_ROWS, blocks.SHARD_BLOCKS)
  text = json.dumps([shape, files, experiment_lib.to_dict(recipe), on_bad_row])
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _follow_parent() -> None:
  """Runs in each worker, which by itself would survive its parent's kill, and ends it then."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it too, without a traceback
  parent = multiprocessing.parent_process()

  def follow() -> None:
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
