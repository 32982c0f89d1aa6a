"""How fast, and in how much memory, are Criteo's raw files prepared and read?

    python -m benchmarks.criteo_prepare [--quick]

Generates 24 days in the raw form (4 GiB of text; ``--quick``: 96 MiB), prepares them with each
recipe in a process of its own, and reads the blocks: at random by whole batches, in the order that
training has. Memory is RssAnon, what a process has that no file backs, of the preparing process and
its workers together, sampled every 20 ms. There is no peer at hand: facebookresearch/dlrm and
torchrec prepare with torch and hold a day, or all days, in memory (papers note on DLRM, section 4);
figures are therefore our own, and the ratio is text to peak memory.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import report
from jaxrec.config import experiment
from jaxrec.data import criteo
from jaxrec.data.criteo import blocks as blocks_lib
from jaxrec.data.criteo import raw_files
from jaxrec.data.pipeline import shuffle
from jaxrec.runs.process import host

_QUICK = flags.DEFINE_bool("quick", False, "Under a minute: less text, one recipe.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the raw files and the order of reading.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that prepare.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to work; default: a temporary folder.")

_DAYS = 24
_ROW_BYTES = 262  # of generated text, about
_BATCH_SIZE = 4096


def generate(folder: pathlib.Path, num_bytes: int, seed: int) -> int:
  """Writes 24 days of about ``num_bytes`` in all; returns their size."""
  rows = num_bytes // _ROW_BYTES // _DAYS
  paths = raw_files.write_days(folder, [rows + 1] * _DAYS, seed=seed)
  return sum(path.stat().st_size for path in paths)


def prepare(raw: pathlib.Path, prepared: pathlib.Path, recipe: str) -> dict[str, Any]:
  """Prepares in another process; its last line, seconds, and the peak of its memory."""
  command = [sys.executable, "-m", "jaxrec.data.criteo", f"--data_dir={raw}", f"--recipe={recipe}"]
  command += [f"--prepared_dir={prepared}", f"--prepare_workers={_WORKERS.value}"]
  started = time.perf_counter()
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    peak_together = peak_one = 0
    while process.poll() is None:
      sizes = [rss_anon_bytes(pid) for pid in (process.pid, *descendants(process.pid))]
      peak_together, peak_one = max(peak_together, sum(sizes)), max(peak_one, *sizes)
      time.sleep(0.02)
    assert process.stdout is not None
    output = process.stdout.read()
  assert process.returncode == 0, f"preparing {recipe} failed"
  seconds = time.perf_counter() - started
  made = json.loads(output.splitlines()[-1])
  folder = pathlib.Path(made["prepared"])
  rows = sum(made["splits"].values())
  return {
    "rows": rows,
    "seconds": round(seconds, 1),
    "rows_per_s": round(rows / seconds),
    "peak_rss_anon_mib": round(peak_together / 2**20),
    "peak_rss_anon_mib_of_one_process": round(peak_one / 2**20),
    "prepared_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    "table_rows": sum(made["vocab_sizes"]),
  }


def rss_anon_bytes(pid: int) -> int:
  """RssAnon of a process; 0 when it has just ended."""
  try:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return 0
  found = [line.split()[1] for line in text.splitlines() if line.startswith("RssAnon:")]
  return 1024 * int(found[0]) if found else 0


def descendants(pid: int) -> list[int]:
  """Processes below this one."""
  try:
    tasks = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
    children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
  except OSError:
    return []
  return children + [below for child in children for below in descendants(child)]


def read(raw: pathlib.Path, prepared: pathlib.Path, recipe: str, *, rounds: int) -> dict[str, Any]:
  """Rows a second of ``Criteo.read`` in training's order, and of the blocks alone."""
  data = experiment.DataConfig(
    dataset="criteo",
    data_dir=str(raw),
    criteo=experiment.CriteoConfig(recipe=recipe, prepared_dir=str(prepared)),
  )
  dataset = criteo.load(data, embedding_dim=16)
  size = dataset.num_examples("train")
  num_batches = min(200, size // _BATCH_SIZE)
  batches = [
    shuffle.permuted_by_block(
      np.arange(step * _BATCH_SIZE, (step + 1) * _BATCH_SIZE),
      num_examples=size,
      block_rows=dataset.block_rows,
      seed=_SEED.value,
    )
    for step in range(num_batches)
  ]
  blocks = blocks_lib.open_split(dataset.folder, "train")
  numbers = np.random.default_rng(_SEED.value).permutation(len(blocks))[: 4 * num_batches]

  def read_batches() -> None:
    fresh = criteo.load(data, embedding_dim=16)  # which has no blocks in memory yet
    for indices in batches:
      fresh.read(indices)

  def read_blocks() -> None:
    for number in numbers.tolist():
      blocks[number]

  times = report.alternate({"batches": read_batches, "blocks": read_blocks}, rounds=rounds)
  rows = {"batches": num_batches * _BATCH_SIZE, "blocks": len(numbers) * dataset.block_rows}
  return {
    f"{name}_rows_per_s": round(1e3 * rows[name] / figures["median_ms"])
    for name, figures in times.items()
  }


def main(_: list[str]) -> None:
  """Runs the benchmark."""
  host.quiet_libraries()
  folder = pathlib.Path(_FOLDER.value or tempfile.mkdtemp(prefix="jaxrec-criteo-"))
  recipes = ("dlrm",) if _QUICK.value else ("dlrm", "mlperf")
  try:
    started = time.perf_counter()
    raw_bytes = generate(folder / "raw", (96 if _QUICK.value else 4096) << 20, _SEED.value)
    generate_s = time.perf_counter() - started
    prepared = {name: prepare(folder / "raw", folder / "prepared", name) for name in recipes}
    reading = {
      name: read(folder / "raw", folder / "prepared", name, rounds=5 if _QUICK.value else 9)
      for name in recipes
    }
    peak = max(figures["peak_rss_anon_mib"] for figures in prepared.values())
    report.finish(
      {
        "benchmark": "criteo_prepare",
        "raw_mib": round(raw_bytes / 2**20),
        "days": _DAYS,
        "generate_s": round(generate_s, 1),
        "workers": _WORKERS.value,
        "prepare": prepared,
        "read": reading,
        "ratio": {"raw_text_to_peak_rss_anon": round(raw_bytes / 2**20 / peak, 2)},
        "peer": "none at hand: both reference programs need torch and hold days in memory",
        "seed": _SEED.value,
      }
    )
  finally:
    if not _FOLDER.value:
      shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
  app.run(main)
