"""A run that is killed and started again ends like one that was left alone, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import signal
import time
from collections.abc import Iterable

import numpy as np
import pytest

from tests.runs import run_helpers
from tests.runs.run_helpers import Kill

# Points where what is on disk is about to change, or has just changed, in the order of a run.
DELICATE_POINTS = {
  "config.json is half written": Kill("os.rename", "config.json.tmp"),
  "the first checkpoint begins": Kill("os.mkdir", ".orbax-checkpoint-tmp"),
  "in an evaluation": Kill("read", "val", 2),
  "before a line of metrics": Kill("open", "metrics.jsonl", 2),
  "arrays are written": Kill("open", "array_metadatas", 2),
  "the metrics are being cut back": Kill("os.rename", "metrics.jsonl.tmp"),
  "all is written but not committed": Kill("os.rename", "/state.orbax-checkpoint-tmp", 2),
  "a checkpoint is being deleted": Kill("os.rmdir", "/checkpoints/", 2),
  "in the final test": Kill("read", "test", 2),
  "the result is half written": Kill("os.rename", "result.json.tmp"),
}


@dataclasses.dataclass(frozen=True)
class Reference:
  """A run that was left alone: how it was started, what it left, how much there was to disturb."""

  args: tuple[str, ...]
  bits: dict
  num_events: int
  training_seconds: float


@dataclasses.dataclass(frozen=True)
class Life:
  """From a start of the run to its death."""

  moment: Kill | float
  resumed_from: int
  was_writing: bool


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
  """The cheapest model that has parameters, tables and moments of both."""
  return undisturbed(tmp_path_factory.mktemp("reference"), "--set=model.name=logistic_regression")


def undisturbed(folder: pathlib.Path, *args: str) -> Reference:
  workdir = folder / "run"
  child = run_helpers.Child(
    run_helpers.tiny_args(workdir, *args),
    folder,
    kill=Kill("*", str(workdir), 0),
  )
  child.wait_for("[3/3]")
  began = time.monotonic()
  outcome = child.wait()
  seconds = time.monotonic() - began
  assert outcome.code == 0, outcome.stderr
  return Reference(args, run_helpers.final_bits(workdir), outcome.num_events, seconds)


def live_and_die(workdir: pathlib.Path, moments: Iterable[Kill | float], *args: str) -> list[Life]:
  """Starts one run again and again, killed at each of ``moments`` (seconds of training, or a Kill).

  Ends when a life reaches the end of the run; after the last moment one is left alone.
  """
  lives = []
  for moment in itertools.chain(moments, [None]):
    before = run_helpers.unfinished(workdir)
    child = run_helpers.Child(
      run_helpers.tiny_args(workdir, *args),
      workdir.parent,
      kill=moment if isinstance(moment, Kill) else None,
    )
    if isinstance(moment, float):
      child.wait_for("[3/3]")
      child.process.join(moment)  # or until it has ended by itself
      child.send(signal.SIGKILL)
    outcome = child.wait()
    if outcome.code == 0:
      return lives
    assert outcome.code == -signal.SIGKILL, outcome.stderr
    began = run_helpers.unfinished(workdir) - before
    lives.append(Life(moment, outcome.resumed_from, was_writing=bool(began)))
  raise AssertionError("the last life, left alone, did not reach the end")


def die_at_random(
  reference: Reference, folder: pathlib.Path, *, times: int, seed: int
) -> list[Life]:
  """Runs that are killed up to five times each, until ``times`` kills have struck."""
  rng = np.random.default_rng(seed)
  lives: list[Life] = []
  while len(lives) < times:
    moments = [
      Kill("*", "/run", int(rng.integers(1, reference.num_events // 2)))
      if rng.random() < 0.5
      else float(rng.uniform(0, reference.training_seconds / 2))
      for _ in range(min(5, times - len(lives)))
    ]
    workdir = folder / str(len(lives)) / "run"
    lived = live_and_die(workdir, moments, *reference.args)
    assert run_helpers.final_bits(workdir) == reference.bits, lived
    lives += lived
  return lives


@pytest.mark.nightly
def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bits(
  reference, tmp_path, nightly
):
  lives = die_at_random(reference, tmp_path, times=20, seed=nightly.seed)
  assert len(lives) >= 20
  assert sum(life.was_writing for life in lives) > 0
  assert sum(life.resumed_from > 0 for life in lives) > 0


def test_a_run_killed_at_each_delicate_point_ends_with_the_same_bits(tmp_path):
  args = ("--table_optimizer=adam", "--accumulate_steps=2", "--set=optimizer.warmup_steps=3")
  args += ("--set=model.dropout=0.2", "--label=click,like", "--early_stop_patience=3")
  left_alone = undisturbed(tmp_path / "reference", *args)
  lives = live_and_die(tmp_path / "disturbed" / "run", DELICATE_POINTS.values(), *args)
  assert [life.moment for life in lives] == list(DELICATE_POINTS.values())
  assert sum(life.was_writing for life in lives) >= 3
  assert sum(life.resumed_from > 0 for life in lives) >= 3
  assert run_helpers.final_bits(tmp_path / "disturbed" / "run") == left_alone.bits, lives


def children_of(pid: int) -> set[int]:
  found = set()
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):  # it has just ended
      if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
        found.add(int(stat.parent.name))
  return found


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_worker_processes_die_with_their_run_which_goes_on_without_them_to_the_same_bits(
  reference, tmp_path
):
  workdir = tmp_path / "run"
  child = run_helpers.Child(
    run_helpers.tiny_args(workdir, *reference.args, "--num_workers=2"),
    tmp_path,
    kill=Kill("os.mkdir", "10.orbax-checkpoint-tmp"),
  )
  child.wait_for("[3/3]")
  workers = children_of(child.process.pid)
  assert len(workers) >= 2
  assert child.wait().code == -signal.SIGKILL
  deadline = time.monotonic() + 30
  while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
    assert time.monotonic() < deadline, "workers outlive their run"
    time.sleep(0.05)
  assert live_and_die(workdir, [], *reference.args) == []
  assert run_helpers.final_bits(workdir) == reference.bits


@pytest.mark.nightly
def test_a_run_killed_at_hundreds_of_random_moments_ends_with_the_same_bits(
  reference, tmp_path, nightly
):
  times = nightly.trials(300, sample=10)
  lives = die_at_random(reference, tmp_path, times=times, seed=nightly.seed + 1)
  assert len(lives) >= times
  assert sum(life.resumed_from > 0 for life in lives) > 0
