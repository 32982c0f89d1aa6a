"""Preparing that is killed at any moment and started again ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import time
from typing import Any

import numpy as np
import pytest

from jaxrec.config import experiment as experiment_lib
from jaxrec.data import criteo
from jaxrec.data.criteo import atomic, blocks
from tests.data.criteo import cases as criteo_cases
from tests.runs import run_helpers

SIZES = (400, 300, 200)


def prepare_and_die(
  data: experiment_lib.DataConfig, out: str, kill_at: int, num_events: Any, hook_path: str
) -> None:
  """Runs in a child: prepares, and dies at its ``kill_at``-th touch of a file below ``out``."""
  sys.stderr = open(os.devnull, "w")  # noqa: SIM115
  atomic._sync_one = lambda path: None
  blocks.SHARD_BLOCKS, blocks.SHARD_ROWS = 1, blocks.BLOCK_ROWS

  def hook(event: str, args: tuple) -> None:
    if event in run_helpers.FILE_EVENTS and any(hook_path in str(arg) for arg in args[:2]):
      num_events.value += 1
      if num_events.value == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(hook)
  criteo.prepare(data)


class Preparing:
  """A preparation in a process of its own."""

  def __init__(self, data, out, kill_at=0):
    server = run_helpers._server()
    self._num_events = server.RawValue("i", 0)
    args = (data, str(out), kill_at, self._num_events, str(out))
    self.process = server.Process(target=prepare_and_die, args=args)
    self.process.start()

  def wait(self):
    """(exit code, file events)."""
    self.process.join(120)
    assert self.process.exitcode is not None, "still preparing after 120 s"
    return self.process.exitcode, self._num_events.value


def finished(out: pathlib.Path) -> list[pathlib.Path]:
  return [path for path in out.glob("criteo_*") if path.suffix not in (".lock", ".unfinished")]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("raw")
  criteo_cases.write_days(folder, SIZES)
  return folder


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
  """Bytes and file events of a preparation that nobody killed, by recipe."""
  found = {}
  for recipe in ("dlrm", "mlperf"):
    out = tmp_path_factory.mktemp(recipe)
    code, num_events = Preparing(criteo_cases.data_config(raw, out, recipe), out).wait()
    assert code == 0 and num_events > 100
    (folder,) = finished(out)
    found[recipe] = criteo_cases.prepared_bytes(folder), num_events
  return found


def die_and_resume(raw, out, recipe, moments, undisturbed):
  """Lives until one ends by itself; how many were killed while something was half-written."""
  expected, _ = undisturbed[recipe]
  data = criteo_cases.data_config(raw, out, recipe)
  num_kills = num_half_written = 0
  for kill_at in [*moments, 0]:
    code, _ = Preparing(data, out, kill_at).wait()
    if code == 0:
      break
    assert code == -signal.SIGKILL
    num_kills += 1
    num_half_written += bool(list(out.glob("**/*.unfinished-*")))
    for folder in finished(out):  # it may be there, and then it is whole
      assert criteo_cases.prepared_bytes(folder) == expected
  assert code == 0
  (folder,) = finished(out)
  assert criteo_cases.prepared_bytes(folder) == expected
  assert sorted(path.name for path in out.iterdir()) == [folder.name, f"{folder.name}.lock"]
  return num_kills, num_half_written


@pytest.mark.parametrize("recipe", ["dlrm", "mlperf"])
def test_a_preparation_killed_again_and_again_ends_with_the_same_bytes(
  raw, undisturbed, tmp_path, nightly, recipe
):
  _, num_events = undisturbed[recipe]
  random = np.random.default_rng(nightly.seed)
  moments = random.integers(2, num_events // 3, 5).tolist()
  num_kills, num_half_written = die_and_resume(raw, tmp_path, recipe, moments, undisturbed)
  assert num_kills >= 3 and num_half_written > 0


@pytest.mark.nightly
@pytest.mark.parametrize("recipe", ["dlrm", "mlperf"])
def test_a_preparation_killed_at_hundreds_of_moments_ends_with_the_same_bytes(
  raw, undisturbed, tmp_path, nightly, recipe
):
  _, num_events = undisturbed[recipe]
  random = np.random.default_rng(nightly.seed + 1)
  times, num_kills, run = nightly.trials(200, sample=8), 0, 0
  while num_kills < times:
    moments = random.integers(1, num_events, 4).tolist()
    run += 1
    num_kills += die_and_resume(raw, tmp_path / str(run), recipe, moments, undisturbed)[0]


@pytest.mark.nightly
def test_workers_die_with_a_killed_preparation_which_then_ends_with_the_same_bytes(
  raw, undisturbed, tmp_path
):
  data = criteo_cases.data_config(raw, tmp_path, "mlperf", prepare_workers=2)
  preparing = Preparing(data, tmp_path)
  deadline = time.monotonic() + 60
  while not list(tmp_path.glob("*.unfinished/vocabulary/*")) and time.monotonic() < deadline:
    time.sleep(0.01)
  pid = preparing.process.pid
  children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  assert len(children) >= 2
  os.kill(pid, signal.SIGKILL)
  assert preparing.wait()[0] == -signal.SIGKILL
  while any(is_running(child) for child in children):
    assert time.monotonic() < deadline, "workers outlive the preparation"
    time.sleep(0.05)
  # In this process, whose shards are as large as ever: here that is one a split, as above.
  folder = criteo.prepare(criteo_cases.data_config(raw, tmp_path, "mlperf"))
  assert criteo_cases.prepared_bytes(folder) == undisturbed["mlperf"][0]


def is_running(pid: str) -> bool:
  with contextlib.suppress(OSError):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  return False


def test_two_preparations_at_a_time_make_one_folder(raw, undisturbed, tmp_path):
  data = criteo_cases.data_config(raw, tmp_path, "mlperf")
  both = [Preparing(data, tmp_path) for _ in range(2)]
  assert [preparing.wait()[0] for preparing in both] == [0, 0]
  (folder,) = finished(tmp_path)
  assert criteo_cases.prepared_bytes(folder) == undisturbed["mlperf"][0]


def test_what_is_written_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
  done = []
  monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
  rename = os.rename
  monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), rename(*paths)))
  with atomic.writing(tmp_path / "folder") as temporary:
    temporary.mkdir()
    (temporary / "file").write_text("text")
    assert not (tmp_path / "folder").exists()
  assert done == ["sync", "sync", "rename", "sync"]
  assert (tmp_path / "folder" / "file").read_text() == "text"


def test_what_fails_is_removed(tmp_path):
  with pytest.raises(KeyError), atomic.writing(tmp_path / "file") as temporary:
    temporary.write_text("half")
    raise KeyError
  assert list(tmp_path.iterdir()) == []
