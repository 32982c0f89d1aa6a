"""Several processes that train one run.

Each is two: the trainer, which JAX's runtime ends at once, without a word of Python's, when a peer
dies; and its parent, which outlives it, leaves the runtime's own lines out, and says who died and
how to go on. They share a pipe, so the trainer ends when its parent is killed.

*Source*: ``jax.distributed``; measured on a CPU: when a process is killed, those it talks to fail
within a moment, the coordinator knows who it was after the heartbeat's timeout, 10 s, and if it was
the coordinator the others abort at once.
*Read next*: train.py.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TextIO

import jax

from jaxrec import config as config_lib
from jaxrec import jax_internals
from jaxrec.config import experiment as experiment_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.process import collectives, interrupt, virtual_devices

HEARTBEAT_SECONDS = 10
# To meet: time to type the commands, or for imports from a slow disk; the terminal says who waits.
_MEETING_SECONDS = 120
_PIPE = "JAXREC_PARENT_PIPE"  # environment: the file that ends when the parent does
_VERDICT_SECONDS = HEARTBEAT_SECONDS + 6  # in which the runtime says which peer died
_FAREWELL_SECONDS = 2  # where all fail alike, for them to say so before their coordinator is gone
# Where data lie and how they are fetched; all else must be the same in all processes.
_MAY_DIFFER = ("data.data_dir", "data.test_dir", "data.num_workers", "data.prefetch_depth")
# From there on the runtime says why it ends a process, in many lines.
_ENDING = re.compile(
  "error to all tasks|distributed service detected fatal errors|Failed to add port to server"
)
_NOISE = re.compile(
  r"[EWIF]\d{4} \d\d:|    @ +0x|\*\*\* Check failure|RPC: /xla|WARNING: All log|Additional GRPC"
  r"|:UNKNOWN:Error"
)


class Group(NamedTuple):
  """The processes of a run, and which one this is; None: not said.

  Attributes:
    coordinator: Host and port of process 0, or ``auto``.
    num_processes: The number of processes.
    process_id: The number of this process, from 0.
  """

  coordinator: str | None
  num_processes: int | None
  process_id: int | None


def group(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Group:
  """Returns the group that flags give, with a launcher's variables for those that are None.

  The variables are those of ``jax.distributed``: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID.

  Raises:
    ConfigError: A variable that counts processes is not a whole number.
  """

  def number(flag: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if flag is not None or not text:
      return flag
    config_lib.require(text.isdecimal(), f"{variable}={text}: expected a whole number, from 0")
    return int(text)

  return Group(
    coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
    number(num_processes, "JAX_NUM_PROCESSES"),
    number(process_id, "JAX_PROCESS_ID"),
  )


def is_supervised() -> bool:
  """Whether this is a trainer, and its parent waits for it."""
  return _PIPE in os.environ


def join(
  config: experiment_lib.ExperimentConfig,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
  """Makes this process one of a run's, with its share of the mesh's devices, before JAX starts.

  Args:
    config: of the run, the same in all of them.
    coordinator: host and port of process 0; ``auto``: as SLURM, or the TPU's own metadata, say;
      None: there is only this process.
    num_processes: how many there are.
    process_id: which one this is.

  Raises:
    ConfigError: a number is missing or out of range, the others do not come, or one of them has
      another config.
  """
  virtual_devices.provide(config.sharding, num_processes or 1)
  if coordinator is None:
    config_lib.require(
      num_processes is None and process_id is None,
      "--num_processes and --process_id need --coordinator=HOST:PORT, of process 0 (as "
      "JAX_NUM_PROCESSES and JAX_PROCESS_ID need JAX_COORDINATOR_ADDRESS)",
    )
    return
  known: dict[str, Any] = {}
  if coordinator != "auto":
    config_lib.require(
      num_processes is not None and process_id is not None and 0 <= process_id < num_processes,
      "--coordinator needs --num_processes=N and --process_id=0..N-1, got "
      f"num_processes={num_processes} and process_id={process_id} (JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID stand in for flags that are not given)",
    )
    numbers = {"num_processes": num_processes, "process_id": process_id}
    known = {"coordinator_address": coordinator, **numbers}
  if is_supervised():
    _follow_parent()
    _keep_output()
  whom = "the other processes" if num_processes is None else f"{num_processes} processes"
  print(f"waiting for {whom} at {coordinator}", file=sys.stderr, flush=True)
  try:
    jax.distributed.initialize(
      **known,
      initialization_timeout=_MEETING_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=collectives.MAX_WAIT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    first_line = (str(error).splitlines() or [""])[0]
    raise config_lib.ConfigError(
      f"--coordinator={coordinator}: the processes did not meet ({first_line}); start all of them "
      "with the same coordinator and num_processes, and a process_id each"
    ) from error
  _require_same(config)


def _require_same(config: experiment_lib.ExperimentConfig) -> None:
  """Raises ConfigError, in all processes, where one has other settings than the first.

  By the coordinator's store of keys: with other meshes they could not even exchange arrays.
  """
  client, me, num_processes = jax_internals.process_group()
  versions = {f"version of {name}": metadata.version(name) for name in ("jaxrec", "jax")}
  mine = versions | workdir_lib.flat(config)

  def get(key: str) -> str:
    return client.blocking_key_value_get(f"jaxrec/{key}", _MEETING_SECONDS * 1000)

  def put(key: str, value: str) -> None:
    client.key_value_set(f"jaxrec/{key}", value)

  if me == 0:
    put("settings", json.dumps(mine))
  first = json.loads(get("settings"))
  differing = "; ".join(
    f"{name}: {first.get(name)!r} in process 0, {mine.get(name)!r} in process {me}"
    for name in sorted(first.keys() | mine.keys())
    if name not in _MAY_DIFFER and first.get(name) != mine.get(name)
  )
  put(f"differing/{me}", differing)
  if me == 0:  # all say the same, and none begins before all have compared
    everyones = (get(f"differing/{i}") for i in range(num_processes))
    put("differing", next(filter(None, everyones), ""))
  found = get("differing")
  config_lib.require(not found, f"{found}. Start all processes of a run with the same settings")


def _follow_parent() -> None:
  """Ends this process when its parent is gone, however that went."""
  descriptor = int(os.environ[_PIPE])

  def follow() -> None:
    os.read(descriptor, 1)  # nothing is ever written: it returns at the end
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _keep_output() -> None:
  """Keeps what is printed to standard output for Python, and drops what native libraries write.

  Gloo says there, in pieces and from many threads at once, whom each device is connected to. What a
  process that this one starts writes there is dropped as well.
  """
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
  nothing = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nothing, 1)
  os.close(nothing)


@contextlib.contextmanager
def own_folder(workdir: workdir_lib.Workdir) -> Iterator[workdir_lib.Workdir]:
  """``workdir``; but for processes after the first a folder that goes away, for what they write.

  Checkpoints, which all of them write together, are where they are.
  """
  if collectives.is_first():
    yield workdir
    return
  with tempfile.TemporaryDirectory(prefix="jaxrec") as folder:
    yield workdir_lib.Workdir(os.path.join(folder, "run"), shared=workdir.path)


@contextlib.contextmanager
def leaving_on_error(expected: tuple[type[Exception], ...]) -> Iterator[None]:
  """Of several processes, ends this one at an error: at once, so that the others see it die.

  By the usual way it would first wait for them, in JAX's barrier at exit, and they wait for it.

  Args:
    expected: errors whose message is enough; of others there is a traceback.
  """
  try:
    yield
  except interrupt.Interrupted:  # as all are, after the same step
    raise
  except (Exception, KeyboardInterrupt) as error:
    if jax_internals.process_group().num_processes == 1:
      raise
    if _may_be_a_peers_death(error):
      time.sleep(_VERDICT_SECONDS)  # if it is, the runtime names it and ends this process
    if isinstance(error, KeyboardInterrupt):
      print("\nstopped; saved checkpoints stay", file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError):
      print(f"error: {(str(error).splitlines() or [''])[0]}", file=sys.stderr)
    elif isinstance(error, expected):
      print(f"error: {error}", file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax_internals.process_group().process_id == 0:
      time.sleep(_FAREWELL_SECONDS)
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _may_be_a_peers_death(error: BaseException | None) -> bool:
  """Whether ``error``, or what it came from, is the runtime's, and not for want of memory."""
  while error is not None:
    text = f"{type(error).__name__}: {error}"  # a CheckpointError names its cause in its message
    if "JaxRuntimeError" in text:
      return "RESOURCE_EXHAUSTED" not in text
    error = error.__cause__ or error.__context__
  return False


def supervise(argv: Sequence[str], path: str, command: str, *, is_fresh: bool = False) -> int:
  """Runs ``argv`` as a trainer, and says who died if it does not end by itself.

  Args:
    argv: the command, to be run by this interpreter.
    path: the run's folder.
    command: what resumes the run, without its processes.
    is_fresh: whether the folder is to be chosen anew.

  Returns:
    The exit code.

  Raises:
    ConfigError: each process would choose a folder of its own.
  """
  config_lib.require(
    not is_fresh, "--fresh: processes must agree on a folder; name a new one with --workdir"
  )
  reading, writing = os.pipe()
  trainer = subprocess.Popen(
    [sys.executable, *argv],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    errors="replace",
    pass_fds=(reading,),
    env={**os.environ, _PIPE: str(reading)},
    process_group=0,  # a terminal's Ctrl-C comes from here, once: a second would not wait to save
  )
  os.close(reading)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: trainer.send_signal(number))
  with trainer:
    results = threading.Thread(target=_pass_on, args=(trainer.stdout, sys.stdout), daemon=True)
    results.start()
    log = _pass_on(trainer.stderr, sys.stderr)
    results.join()
    code = trainer.wait()
  os.close(writing)
  if code and (why := why_not_met(log)):
    print(f"error: {why}", file=sys.stderr)
    return 1
  dead = who_died(log)
  if code >= 0 and not dead:
    return code
  who = f"process {', '.join(map(str, dead))} died" if dead else "the runtime ended this process"
  print(f"error: {who}, so all have stopped. {_how_to_go_on(path, command)}", file=sys.stderr)
  return 1


def _pass_on(found: Iterable[str] | None, to: TextIO) -> str:
  """Writes the lines of the trainer's own; all of the last ones come back."""
  last: collections.deque[str] = collections.deque(maxlen=200)
  is_ending = False
  for line in found or ():
    last.append(line)
    is_ending = is_ending or bool(_ENDING.search(line))
    if not is_ending and not _NOISE.match(line):
      to.write(line)
      to.flush()
  return "".join(last)


def _how_to_go_on(path: str, command: str) -> str:
  step = checkpoint.latest_step(workdir_lib.Workdir(path).checkpoints_path)
  where = f"the checkpoint of step {step} in {path}" if step else f"the start, as {path} has none"
  return (
    f"To go on from {where}, start all processes again, as many as there are now:\n  {command} "
    "--coordinator=HOST:PORT --num_processes=N --process_id=0..N-1"
  )


def why_not_met(log: str) -> str | None:
  """Why the processes of a run never began it, where the runtime's own lines say so.

  >>> why_not_met("E1126 Failed to add port to server: No address added for '[::]:9000'")
  'port 9000 of this machine is in use, perhaps by an earlier run: end it, or give all ...'
  """
  if taken := re.search(r"Failed to add port to server[^\n]*:(\d+)'", log):
    return (
      f"port {taken.group(1)} of this machine is in use, perhaps by an earlier run: end it, or give"
      " all processes a --coordinator with another port"
    )
  if "RegisterTask" not in log:
    return None
  if "ALREADY_EXISTS" in log:
    return "another process came with this --process_id: each of 0..num_processes-1 must come once"
  return (
    f"not all processes came within {_MEETING_SECONDS} s: start as many as --num_processes says, "
    "each with its own --process_id, at the same --coordinator, whose port all must reach"
  )


def who_died(log: str) -> list[int]:
  """The processes that the runtime's own lines say are gone.

  >>> who_died(chr(10).join(["The following tasks are unhealthy (no heartbeats):", "1", "3", ""]))
  [1, 3]
  """
  found = re.search(r"following tasks are unhealthy[^\n]*:\n((?:\d+\n)+)", log)
  if found:
    return [int(number) for number in found.group(1).split()]
  # Without a coordinator nobody is there to say so.
  is_alone = "JAX distributed service detected fatal errors" in log
  return [0] if is_alone and "coordination service" in log.lower() else []
