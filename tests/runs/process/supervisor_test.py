"""Several operating-system processes train one run, and outlive each other."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec import jax_internals
from jaxrec.config import experiment
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.process import interrupt, supervisor
from tests import repository
from tests.runs import run_helpers

STEPS = 90
VOCABULARY = ",".join(["300", "50", "7", *["5"] * 23])
ARGS = (
  "--dataset=synthetic",
  "--model=logistic_regression",
  "--table_optimizer=adam",
  "--batch_size=48",
  f"--steps={STEPS}",
  f"--set=data.vocab_sizes={VOCABULARY}",
  "--set=baseline_steps=0",
  "--set=eval_examples=96",
  "--set=test_examples=96",
  "--set=eval_every=45",
  "--set=checkpoint_every=15",
  "--set=log_every=5",
)
FAILING = """
import sys
import jax
import train
from absl import app
from jaxrec.inputs import batch_checks
from jaxrec.runs import loop
from jaxrec.runs.process import supervisor

def after_step(self, stop, before=loop.Loop._after_step):
  before(self, stop)
  if self.progress.step == 20 and jax.process_index() == VICTIM:
    raise ERROR

if supervisor.is_supervised():
  loop.Loop._after_step = after_step
app.run(train.main)
"""


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


class Group:
  """Processes of train.py that train one run together, or a single one.

  ``own`` are arguments of each; ``program``, other text to run than train.py's. They are told of
  each other by flags or, ``by_variables``, as a launcher does.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    mesh: str,
    count: int = 1,
    own: Sequence[str] = (),
    program: str | None = None,
    by_variables: bool = False,
  ):
    train = repository.ROOT / "train.py"
    if program is not None:
      train = folder / "program.py"
      train.write_text(program)
    self.workdir = folder / "run"
    port = free_port()
    self.logs = [folder / f"{count}-{i}.log" for i in range(count)]
    self.processes = []
    for i, log in enumerate(self.logs):
      command = [
        *(sys.executable, str(train), *ARGS, *own[i : i + 1]),
        *(f"--set=sharding.mesh={mesh}", f"--workdir={self.workdir}"),
      ]
      environment = {**run_helpers.environment(None), "NPROC": "8"}
      environment["PYTHONPATH"] = str(repository.ROOT)
      if count > 1 and by_variables:
        environment["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        environment |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i)}
      elif count > 1:
        group = f"--coordinator=localhost:{port} --num_processes={count} --process_id={i}"
        command += group.split()
      with log.open("w") as file:
        self.processes.append(
          subprocess.Popen(
            command,
            cwd=repository.ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
          )
        )

  def wait(self, seconds: float) -> list[tuple[int, str, str]]:
    """Each one's exit code, standard output and standard error."""
    ends = time.monotonic() + seconds
    outputs = []
    for process, log in zip(self.processes, self.logs, strict=True):
      out, _ = process.communicate(timeout=max(0.1, ends - time.monotonic()))
      outputs.append((process.returncode, out.decode(), log.read_text()))
    return outputs

  def wait_for_checkpoint(self, seconds: float = 180) -> int:
    ends = time.monotonic() + seconds
    while not (step := checkpoint.latest_step(self.workdir / "checkpoints")):
      assert time.monotonic() < ends and all(p.poll() is None for p in self.processes)
      time.sleep(0.02)
    return step

  def end(self) -> None:
    for process in self.processes:
      process.kill()
      process.wait()


@pytest.fixture
def started():
  groups = []

  def start(*args, **options) -> Group:
    groups.append(Group(*args, **options))
    return groups[-1]

  yield start
  for group in groups:
    group.end()


def metrics_of(workdir: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_same(ours: pathlib.Path, theirs: pathlib.Path) -> None:
  """Every reading of two runs, to what another order of addition leaves."""
  ours_lines, theirs_lines = metrics_of(ours), metrics_of(theirs)
  assert [(m["step"], m["split"]) for m in ours_lines] == [
    (m["step"], m["split"]) for m in theirs_lines
  ]
  assert len(ours_lines) == STEPS // 5 + 2 + 1
  for one, other in zip(ours_lines, theirs_lines, strict=True):
    for name in one.keys() & {"loss", "logloss", "auc", "ne"}:
      np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=f"{name} {one}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
  """A run of one process with four devices."""
  group = Group(tmp_path_factory.mktemp("alone"), "data:4")
  ((code, out, err),) = group.wait(240)
  assert code == 0, err
  assert json.loads(out.splitlines()[-1])["steps"] == STEPS
  return group.workdir


def killed_and_resumed(
  started, tmp_path, alone, *, count, victim, mesh, then_mesh, then_count, **options
):
  group = started(tmp_path, mesh, count, **options)
  step = group.wait_for_checkpoint()
  group.processes[victim].send_signal(signal.SIGKILL)
  began = time.monotonic()
  outputs = group.wait(20)  # the survivors leave within 20 s
  survivors = [found for i, found in enumerate(outputs) if i != victim]
  seconds = time.monotonic() - began
  latest = checkpoint.latest_step(group.workdir / "checkpoints")
  assert latest >= step and seconds < 20
  for code, out, err in survivors:
    assert code == 1 and not out
    assert f"error: process {victim} died, so all have stopped. To go on from the checkpoint" in err
    assert f"the checkpoint of step {latest} in {group.workdir}" in err and "Traceback" not in err
    assert "--num_processes=N" in err and "[Gloo]" not in err and "E1" not in err.split("error:")[0]
  resumed = started(tmp_path, then_mesh, then_count)
  code, out, err = resumed.wait(240)[0]
  assert code == 0, err
  assert f"resuming {resumed.workdir} from step {latest}" in err
  assert json.loads(out.splitlines()[-1])["steps"] == STEPS
  check_same(resumed.workdir, alone)


@pytest.mark.nightly
def test_two_processes_train_as_one_and_the_survivor_of_a_kill_says_how_to_go_on(
  started, tmp_path, alone
):
  killed_and_resumed(
    started,
    tmp_path,
    alone,
    count=2,
    victim=1,
    mesh="data:4",
    then_mesh="data:2",
    then_count=1,
    by_variables=True,
  )


@pytest.mark.nightly
@pytest.mark.parametrize("victim", [0, 3])
def test_four_processes_lose_one_and_two_go_on(started, tmp_path, alone, victim, nightly):
  if not nightly.is_full and victim:
    pytest.skip("a sample: the coordinator's death")
  killed_and_resumed(
    started,
    tmp_path,
    alone,
    count=4,
    victim=victim,
    mesh="data:2,model:2",
    then_mesh="data:4",
    then_count=2,
  )


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_after_the_same_step(started, tmp_path, alone, number):
  group = started(tmp_path, "data:4", 2)
  group.wait_for_checkpoint()
  parent = group.processes[1].pid
  (trainer,) = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
  assert os.getpgid(int(trainer)) != parent  # or it would get a terminal's signal twice
  os.killpg(parent, number)  # as a terminal does at Ctrl-C
  outputs = group.wait(60)
  assert [code for code, _, _ in outputs] == [128 + number] * 2, outputs
  assert f"stopped by {number.name} at step" in outputs[0][2]
  step = checkpoint.latest_step(group.workdir / "checkpoints")
  assert step % 5 == 0 and f"at step {step}; saved" in outputs[0][2]
  assert started(tmp_path, "data:4", 2).wait(240)[0][0] == 0
  check_same(group.workdir, alone)


def check_death(group: Group, victim: int, error: str) -> None:
  """The one that failed says why; the other, within 20 s, who it was and how to go on."""
  group.processes[victim].wait(240)
  began = time.monotonic()
  outputs = group.wait(20)
  assert time.monotonic() - began < 20
  assert [(code, out) for code, out, _ in outputs] == [(1, "")] * 2
  assert error in outputs[victim][2] and "all have stopped" not in outputs[victim][2]
  other = outputs[1 - victim][2]
  assert f"error: process {victim} died, so all have stopped. To go on from the" in other
  assert other.count("error: ") == 1 and "Traceback" not in other and "[Gloo]" not in other


@pytest.mark.nightly
@pytest.mark.parametrize(
  ("victim", "raised", "said"),
  [
    (1, 'batch_checks.BadExampleError("row 7 is bad")', "error: row 7 is bad\n"),
    (0, 'KeyError("a defect")', "KeyError: 'a defect'\n"),
    (
      1,
      'jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\\n more")',
      "error: RESOURCE_EXHAUSTED: Out of memory.\n",
    ),
  ],
  ids=["bad example", "defect of the first", "out of memory"],
)
def test_an_error_in_one_process_ends_all(started, tmp_path, victim, raised, said, nightly):
  if not nightly.is_full and victim == 0:
    pytest.skip("a sample: errors of process 1")
  program = FAILING.replace("VICTIM", str(victim)).replace("ERROR", raised)
  group = started(tmp_path, "data:4", 2, program=program)
  check_death(group, victim, said)
  assert f"the checkpoint of step 15 in {group.workdir}" in group.logs[1 - victim].read_text()


@pytest.mark.nightly
def test_an_error_of_one_process_in_its_setup_is_no_other_ones(started, tmp_path):
  table = tmp_path / "clicks.csv"
  lines = [f"{row % 2},{row % 7},{row / 9}" for row in range(3000)]
  table.write_text("\n".join(["click,item,age", *lines]))
  own = [f"--data_dir={path}" for path in (table, tmp_path / "missing.csv")]
  program = FAILING.replace("VICTIM", "-1").replace(
    "app.run", 'sys.argv += ["--dataset=table", "--label=click"]\napp.run'
  )
  group = started(tmp_path, "data:4", 2, own=own, program=program)
  check_death(group, 1, "missing.csv")
  assert "checkpoints" not in group.logs[0].read_text()


@pytest.mark.nightly
def test_processes_of_different_settings_are_refused_by_all(started, tmp_path):
  group = started(tmp_path, "data:4", 2, own=["--seed=0", "--seed=1"])
  for code, out, err in group.wait(120):
    assert code == 1 and not out
    assert "waiting for 2 processes at localhost:" in err
    assert "error: seed: 0 in process 0, 1 in process 1. Start all" in err
  assert not group.workdir.exists()


class Left(BaseException):
  """In place of the end of this process."""


@pytest.fixture
def one_of_two(monkeypatch) -> list[float]:
  """Makes this process look like one of two; how long it slept."""
  slept: list[float] = []

  def leave(code: int) -> None:
    raise Left(code)

  second = jax_internals.ProcessGroup(client=None, process_id=1, num_processes=2)
  monkeypatch.setattr(jax_internals, "process_group", lambda: second)
  monkeypatch.setattr(supervisor.os, "_exit", leave)
  monkeypatch.setattr(supervisor.time, "sleep", slept.append)
  return slept


def leave_on(error: BaseException, capsys) -> str:
  with pytest.raises(Left), supervisor.leaving_on_error((checkpoint.CheckpointError,)):
    raise error
  return capsys.readouterr().err


def test_only_what_may_be_a_peers_death_waits_to_hear_of_it(one_of_two, capsys):
  full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nAnd more.")
  assert leave_on(full, capsys) == "error: RESOURCE_EXHAUSTED: Out of memory.\n"
  assert leave_on(checkpoint.CheckpointError("no room"), capsys) == "error: no room\n"
  assert "Traceback" in (text := leave_on(KeyError("x"), capsys)) and "KeyError: 'x'" in text
  assert leave_on(KeyboardInterrupt(), capsys) == "\nstopped; saved checkpoints stay\n"
  assert not one_of_two
  gone = jax.errors.JaxRuntimeError("INTERNAL: Connection closed by peer.\nAnd more.")
  assert leave_on(gone, capsys) == "error: INTERNAL: Connection closed by peer.\n"
  named = checkpoint.CheckpointError("cannot use: JaxRuntimeError: Gloo")
  assert leave_on(named, capsys) == f"error: {named}\n"
  caused = checkpoint.CheckpointError("cannot use")
  caused.__cause__ = gone
  leave_on(caused, capsys)
  assert len(one_of_two) == 3 and min(one_of_two) > supervisor.HEARTBEAT_SECONDS
  stop = interrupt.Interrupted(signal.SIGTERM, 5)  # all have stopped: they end as usual
  with pytest.raises(interrupt.Interrupted), supervisor.leaving_on_error(()):
    raise stop


TALKING = """
import os
from jaxrec.config import experiment
from jaxrec.runs.process import supervisor

supervisor.join(experiment.ExperimentConfig(), "localhost:PORT", 1, 0)
print("first")
os.write(1, b"[Gloo] Rank 0 is [Gloo] Rank 1 is connected to 1 peer ranks.\\n\\n1 peer ranks.\\n")
print("last")
"""


def test_a_trainer_prints_its_own_words_alone(capsys, monkeypatch):
  monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
  monkeypatch.setenv("PYTHONPATH", str(repository.ROOT))
  program = TALKING.replace("PORT", str(free_port()))
  assert supervisor.supervise(["-c", program], "run", "train.py") == 0
  assert capsys.readouterr().out == "first\nlast\n"


def test_processes_that_do_not_meet_are_told_why():
  died = "F1126 client.h:80] Terminating process because the JAX distributed service detected "
  call = "\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
  late = f"{died}fatal errors. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded{call}"
  twice = f"{died}fatal errors. absl::Status: ALREADY_EXISTS: Aborted connect attempt{call}"
  taken = "E1126 add_port.cc:83] Failed to add port to server: No address for '[::]:47014'\n"
  assert "not all processes came within" in (supervisor.why_not_met(late) or "")
  assert "another process came with this --process_id" in (supervisor.why_not_met(twice) or "")
  assert "port 47014 of this machine is in use" in (supervisor.why_not_met(taken) or "")
  assert supervisor.why_not_met(f"{died}fatal errors. UNAVAILABLE: Failed to send RPC") is None


def test_the_runtimes_words_name_the_dead():
  unhealthy = (
    "E1126 08:22:34.195840 4969 coordination_service.cc:1549] UNAVAILABLE: The following tasks are "
    "unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed.\n"
  )
  assert supervisor.who_died(unhealthy) == [1, 3]
  no_coordinator = (
    "F1126 client.h:80] Terminating process because the JAX distributed service detected fatal "
    "errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service.\n"
  )
  assert supervisor.who_died(no_coordinator) == [0]
  assert supervisor.who_died("Traceback (most recent call last):\n") == []


def test_a_launchers_variables_stand_in_for_flags_that_are_not_given(monkeypatch):
  assert supervisor.group(None, None, None) == (None, None, None)
  variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert supervisor.group(None, None, None) == ("a:1", 4, 0)
  assert supervisor.group("b:2", 2, 1) == ("b:2", 2, 1)
  assert supervisor.group(None, None, 0) == ("a:1", 4, 0)
  assert supervisor.group("auto", None, 3) == ("auto", 4, 3)
  for name in variables:
    monkeypatch.setenv(name, "")
  assert supervisor.group(None, None, None) == (None, None, None)


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
@pytest.mark.parametrize("text", ["two", "-1", "1.0", "0x1"])
def test_a_variable_that_is_no_number_is_named(monkeypatch, name, text):
  monkeypatch.setenv(name, text)
  with pytest.raises(config_lib.ConfigError, match=f"{name}={text}: expected a whole number"):
    supervisor.group("a:1", None, None)
  assert supervisor.group("a:1", 1, 0) == ("a:1", 1, 0)  # a flag that is given is read alone


def test_flags_that_do_not_fit_are_refused():
  config = experiment.ExperimentConfig()
  for numbers in ((None, 0), (2, None), (2, 2), (2, -1)):
    with pytest.raises(config_lib.ConfigError, match=r"--coordinator needs --num_processes=N and"):
      supervisor.join(config, "localhost:1", *numbers)
  with pytest.raises(config_lib.ConfigError, match="need --coordinator=HOST:PORT"):
    supervisor.join(config, None, 2, 0)
  with pytest.raises(config_lib.ConfigError, match="--fresh: processes must agree on a folder"):
    supervisor.supervise([], "run", "train.py", is_fresh=True)
