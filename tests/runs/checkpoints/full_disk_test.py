"""A disk that is full costs the steps since the last checkpoint, and nothing that was written."""

from __future__ import annotations

import functools
import json
import pathlib
import resource
import subprocess
import time

import pytest

from tests.runs import run_helpers

# Tables large enough to be the first thing that does not fit, a line of metrics at every step.
ARGS = ("--set=model.embedding_dim=64", "--set=model.bottom_mlp=8,64", "--set=log_every=1")


def limit_file_bytes(num_bytes: int) -> None:
  """Every write past this size fails, as it does on a full disk, but for one file at a time."""
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> pathlib.Path:
  """A run that has ended at step 9, with a checkpoint; to be copied and asked to go on."""
  folder = tmp_path_factory.mktemp("stopped")
  outcome = run_helpers.run(run_helpers.tiny_args(folder / "run", *ARGS, "--set=steps=9"), folder)
  assert outcome.code == 0, outcome.stderr
  return folder / "run"


def go_on(stopped: pathlib.Path, folder: pathlib.Path, *more: str, limit: int | None = None):
  """The run ``stopped``, or what an earlier call made of it, for the rest of its steps."""
  workdir = folder / "run"
  if not workdir.exists():
    subprocess.run(["cp", "-r", stopped, workdir], check=True)
  setup = None if limit is None else functools.partial(limit_file_bytes, limit)
  return workdir, run_helpers.run(run_helpers.tiny_args(workdir, *ARGS, *more), folder, setup=setup)


def whole_lines(workdir: pathlib.Path) -> list[dict]:
  text = (workdir / "metrics.jsonl").read_text()
  assert text.endswith("\n")
  return [json.loads(line) for line in text.splitlines()]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_it(stopped, tmp_path):
  workdir, outcome = go_on(stopped, tmp_path, limit=20_000)
  assert outcome.code == 1 and "Traceback" not in outcome.stderr, outcome.stderr
  last = outcome.stderr.strip().splitlines()[-1]
  assert f"error: a checkpoint in {workdir}/checkpoints could not be written: File too" in last
  assert "The one at step 9 is intact. Make room on the disk, or choose another --workdir" in last
  assert outcome.stdout == "" and whole_lines(workdir)
  assert run_helpers.committed(workdir)[-1] == 9 and not run_helpers.unfinished(workdir)
  workdir, outcome = go_on(stopped, tmp_path)
  assert (outcome.code, outcome.resumed_from) == (0, 9), outcome.stderr


def test_a_line_of_metrics_that_does_not_fit_is_named_and_not_half_written(stopped, tmp_path):
  rarely = ("--set=eval_every=1000", "--set=checkpoint_every=0")
  # Those are no settings to change on the way: this run has had them from its beginning.
  config = json.loads((stopped / "config.json").read_text())
  subprocess.run(["cp", "-r", stopped, tmp_path / "run"], check=True)
  config |= {"eval_every": 1000, "checkpoint_every": 0}
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  # To go on cuts off the final test; then one more line fits, and not a second. Blanks in the first
  # line make all of it longer than config.json, which must fit.
  lines = (stopped / "metrics.jsonl").read_text().splitlines()
  kept = [line for line in lines if json.loads(line)["split"] != "test"]
  padded = "\n".join([kept[0] + 4000 * " ", *kept[1:]]) + "\n"
  (tmp_path / "run" / "metrics.jsonl").write_text(padded)
  limit = len(padded) + len(kept[0]) * 3 // 2
  workdir, outcome = go_on(stopped, tmp_path, *rarely, limit=limit)
  assert outcome.code == 1 and "Traceback" not in outcome.stderr, outcome.stderr
  last = outcome.stderr.strip().splitlines()[-1]
  assert f"error: cannot write {workdir}/metrics.jsonl: File too large. Make room or" in last
  assert [line["step"] for line in whole_lines(workdir)][-2:] == [9, 10]
  assert run_helpers.committed(workdir)[-1] == 9
  workdir, outcome = go_on(stopped, tmp_path, *rarely)
  assert (outcome.code, outcome.resumed_from) == (0, 9), outcome.stderr
  steps = [line["step"] for line in whole_lines(workdir) if line["split"] == "train"]
  assert steps == list(range(1, 25))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 1 MiB."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
  try:
    mounted = subprocess.run(mount, capture_output=True, text=True)
  except FileNotFoundError:
    pytest.skip("there is no mount command")
  if mounted.returncode:
    pytest.skip(f"may not mount a small disk: {mounted.stderr.strip()}")
  yield disk
  subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_while_training_stops_the_run_and_room_lets_it_go_on(
  small_disk, tmp_path
):
  workdir, filler = small_disk / "run", small_disk / "filler"
  args = run_helpers.tiny_args(workdir, *ARGS, "--set=steps=400")
  child = run_helpers.Child(args, tmp_path / "out")
  child.wait_for(" eval 8")
  while not run_helpers.committed(workdir) and child.process.is_alive():
    time.sleep(0.001)
  with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
    while file.write(b"x" * 4096):
      pass
  outcome = child.wait()
  assert outcome.code == 1 and "Traceback" not in outcome.stderr, outcome.stderr
  assert "No space left on device" in outcome.stderr.strip().splitlines()[-1]
  assert outcome.stdout == "" and not (workdir / "result.json").exists()
  intact = run_helpers.committed(workdir)
  assert intact and whole_lines(workdir)
  filler.unlink()
  args = run_helpers.tiny_args(workdir, *ARGS, f"--set=steps={intact[-1] + 3}")
  outcome = run_helpers.run(args, tmp_path / "out")
  assert (outcome.code, outcome.resumed_from) == (0, intact[-1]), outcome.stderr
