"""Whole runs of train.py in processes of their own, made cheap enough to kill by the dozen.

Importing jax costs seconds, so children are forked from one warm server (multiprocessing's), which
has imported everything and started no JAX backend. A child runs ``train.main`` just as the command
line does, on a data set so small that a run lasts a second or two. It dies by SIGKILL where a test
says: at any time, or at the n-th time it touches a file whose path contains a given text. Python's
audit events are the hook for that, so nothing of the program is patched.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

import train
from jaxrec.config import experiment as experiment_lib
from jaxrec.config import overrides
from jaxrec.data import registry
from jaxrec.runs.results import curves
from tests.data import tiny_clicks

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
TIMEOUT_S = 120


# A run of TinyClicks that is over soon and saves often.
STEPS = 24
TINY = (
  "data.dataset=tiny",
  f"steps={STEPS}",
  "batch_size=64",
  "model.embedding_dim=4",
  "model.bottom_mlp=8,4",
  "model.top_mlp=8,1",
  "optimizer.learning_rate=0.1",
  "optimizer.table_learning_rate=0.5",
  "log_every=3",
  "eval_every=8",
  "checkpoint_every=5",
  "eval_examples=0",
  "test_examples=0",
  "baseline_steps=0",
)


def tiny_args(workdir: pathlib.Path, *more: str) -> list[str]:
  """The command line of a tiny run; ``--set`` in ``more`` wins over what is set here."""
  return [*(f"--set={override}" for override in TINY), f"--workdir={workdir}", *more]


def tiny_config(*settings: str) -> experiment_lib.ExperimentConfig:
  """The config of a tiny run, for one in this process; ``settings`` win."""
  return overrides.with_overrides(experiment_lib.ExperimentConfig(), [*TINY, *settings])


@dataclasses.dataclass(frozen=True)
class Kill:
  """Where a child kills itself: at its ``count``-th ``event`` on a path that contains ``path``.

  ``event`` names one of Python's audit events, ``"read"`` (whose path is the split) or ``"*"``, any
  of FILE_EVENTS. With a ``count`` of 0 the child lives, and its events are counted.
  """

  event: str
  path: str
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a child ended. ``code`` is negative for a signal, as subprocess has it."""

  code: int
  stdout: str
  stderr: str
  seconds: float
  num_events: int = 0

  @property
  def result(self) -> dict[str, Any]:
    return json.loads(self.stdout.splitlines()[-1])

  @property
  def resumed_from(self) -> int:
    found = re.search(r"^resuming .* from step (\d+)$", self.stderr, re.MULTILINE)
    return int(found[1]) if found else 0


class Child:
  """A run of train.py that has been started; what it prints goes to files in ``folder``.

  ``setup`` is called in the child before train.main; it must be a function of a module. The run
  draws its curves only if ``draws`` says so: that takes longer than training here.
  """

  def __init__(
    self,
    args: Sequence[str],
    folder: pathlib.Path,
    *,
    kill: Kill | None = None,
    setup: Callable[[], None] | None = None,
    draws: bool = False,
  ):
    folder.mkdir(parents=True, exist_ok=True)
    self._stdout, self._stderr = folder / "stdout.txt", folder / "stderr.txt"
    self._started = time.monotonic()
    server = _server()
    self._num_events = server.RawValue("i", 0)  # a lock could die with the child that holds it
    outputs = (str(self._stdout), str(self._stderr))
    self.process = server.Process(
      target=_run_child,
      args=(list(args), outputs, _compilation_cache(), kill, self._num_events, setup, draws),
    )
    self.process.start()

  def wait(self, timeout_s: float = TIMEOUT_S) -> Outcome:
    self.process.join(timeout_s)
    if self.process.exitcode is None:
      self.process.kill()
      self.process.join()
      raise AssertionError(f"still running after {timeout_s} s:\n{self.stderr()}")
    seconds = time.monotonic() - self._started
    return Outcome(
      self.process.exitcode,
      self._stdout.read_text(),
      self.stderr(),
      seconds,
      self._num_events.value,
    )

  def wait_for(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
    """Returns when the child has printed ``text`` to standard error, or has ended."""
    deadline = time.monotonic() + timeout_s
    while text not in self.stderr() and self.process.is_alive():
      assert time.monotonic() < deadline, f"no {text!r} after {timeout_s} s:\n{self.stderr()}"
      time.sleep(0.005)

  def stderr(self) -> str:
    return self._stderr.read_text() if self._stderr.exists() else ""

  def send(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.process.pid, number)


def run_here(args: Sequence[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
  """Runs train.py's ``main`` on a command line, in this process, whose terminal it writes to."""
  capsys.readouterr()
  before = {name: (flag.value, flag.present) for name, flag in _flags_of_train().items()}
  began = time.monotonic()
  try:
    flags.FLAGS(["train.py", *args])
    code = train.main(["train.py"])
  finally:
    for name, flag in _flags_of_train().items():
      flag.value, flag.present = before[name]
  out, err = capsys.readouterr()
  return Outcome(code, out, err, time.monotonic() - began)


def _flags_of_train() -> dict[str, flags.Flag]:
  return {flag.name: flag for flag in flags.FLAGS.get_flags_for_module(train)}


def run(args: Sequence[str], folder: pathlib.Path, **options: Any) -> Outcome:
  """Starts a child and waits for its end."""
  return Child(args, folder, **options).wait()


def final_bits(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a finished run must leave the same, however often it was killed."""
  result = json.loads((workdir / "result.json").read_text())
  for place_or_speed in ("workdir", "examples_per_s"):
    result["result"].pop(place_or_speed)
  kept = committed(workdir)
  return {
    "metrics.jsonl": (workdir / "metrics.jsonl").read_bytes(),
    "result.json": json.dumps(result),
    "kept checkpoints": kept,
    **{f"checkpoint {step}{key}": bits for step in kept for key, bits in saved_bits(workdir, step)},
  }


def committed(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints that are whole."""
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def unfinished(workdir: pathlib.Path) -> set[int]:
  """Checkpoints that have been begun and not committed, by inode: each attempt has another."""
  found = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")
  return {path.stat().st_ino for path in found}


def saved_bits(workdir: pathlib.Path, step: int) -> list[tuple[str, Any]]:
  """Every array of a checkpoint, as dtype, shape and bytes; and the data's position."""
  folder = workdir / "checkpoints" / str(step)
  handler, leaves = ocp.PyTreeCheckpointHandler(), []
  for item in ("state", "tables"):
    like = handler.metadata(folder / item).tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    tree = handler.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=args))
    leaves += [
      (item + jax.tree_util.keystr(path), (leaf.dtype.name, leaf.shape, leaf.tobytes()))
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
  return [*leaves, ("progress", json.loads((folder / "progress" / "metadata").read_text()))]


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["tests.runs.run_helpers"])
  return context


def flags_for(num_devices: int) -> str:
  """XLA's flags of the tests, for a process with so many virtual devices."""
  return os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={num_devices}")


def environment(num_devices: int | None = 1) -> dict[str, str]:
  """The environment of a program in a process of its own that compiles as the tests do, and shares
  what it compiles with others.

  ``num_devices``: virtual devices of a CPU; None: as many as the program asks for.
  """
  xla_flags = flags_for(num_devices or 8)
  if num_devices is None:
    xla_flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", xla_flags)
  return {
    **os.environ,
    "XLA_FLAGS": xla_flags,
    "JAX_COMPILATION_CACHE_DIR": _compilation_cache(),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


def cache_programs(folder: str | None = None) -> None:
  """Makes JAX keep what it compiles in a folder that runs share."""
  jax.config.update("jax_compilation_cache_dir", folder or _compilation_cache())
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def cached_programs() -> Iterator[None]:
  """Shares what this process compiles in the context; to load a program counts as compiling it."""
  cache_programs()
  try:
    yield
  finally:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@functools.cache
def _compilation_cache() -> str:
  """One folder of compiled programs for all children of this process."""
  folder = tempfile.mkdtemp(prefix="jaxrec-test-cache-")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def _run_child(
  args: list[str],
  outputs: tuple[str, str],
  cache: str,
  kill: Kill | None,
  num_events: Any,
  setup: Callable[[], None] | None,
  draws: bool,
) -> None:
  for path, number in zip(outputs, (1, 2), strict=True):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, number)
    os.close(descriptor)
  sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True)
  sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True)
  os.environ["XLA_FLAGS"] = flags_for(1)
  cache_programs(cache)
  if not draws:
    curves.plot_curves = lambda *args, **kwargs: None
  registry.LOADERS = {**registry.LOADERS, "tiny": tiny_clicks.load}
  if setup is not None:
    setup()
  if kill is not None:
    sys.addaudithook(_killer(kill, num_events))
  sys.argv = ["train.py", *args]
  train.app.run(train.main)


def _killer(kill: Kill, num_events: Any) -> Callable[[str, tuple], None]:
  def hook(event: str, args: tuple) -> None:
    if event != kill.event and not (kill.event == "*" and event in FILE_EVENTS):
      return
    if any(kill.path in str(arg) for arg in args[:2]):
      num_events.value += 1
      if num_events.value == kill.count:
        os.kill(os.getpid(), signal.SIGKILL)

  return hook
