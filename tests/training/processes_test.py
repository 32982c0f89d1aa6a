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

import numpy as np
import pytest

from jaxrec import config as config_lib
from jaxrec import experiment
from jaxrec.training import checkpoint, processes
from tests import repository

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


class Group:
  """Processes of train.py that train one run together, or a single one."""

  def __init__(self, folder: pathlib.Path, mesh: str, count: int = 1, *args: str):
    self.workdir = folder / "run"
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    self.logs = [folder / f"{count}-{i}.log" for i in range(count)]
    self.processes = []
    for i, log in enumerate(self.logs):
      group = (f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}")
      command = [
        *(sys.executable, str(repository.ROOT / "train.py"), *ARGS, *args),
        *(f"--set=sharding.mesh={mesh}", f"--workdir={self.workdir}"),
        *(group if count > 1 else ()),
      ]
      environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_max_isa=AVX", "NPROC": "8"}
      with log.open("w") as file:
        self.processes.append(
          subprocess.Popen(
            command, cwd=repository.ROOT, env=environment, stdout=subprocess.PIPE, stderr=file
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

  def start(*args) -> Group:
    groups.append(Group(*args))
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


def killed_and_resumed(started, tmp_path, alone, *, count, victim, mesh, then_mesh, then_count):
  group = started(tmp_path, mesh, count)
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


def test_two_processes_train_as_one_and_the_survivor_of_a_kill_says_how_to_go_on(
  started, tmp_path, alone
):
  killed_and_resumed(
    started, tmp_path, alone, count=2, victim=1, mesh="data:4", then_mesh="data:2", then_count=1
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
def test_a_signal_to_one_process_stops_all_after_the_same_step(started, tmp_path, alone):
  group = started(tmp_path, "data:4", 2)
  group.wait_for_checkpoint()
  group.processes[1].send_signal(signal.SIGTERM)
  outputs = group.wait(60)
  assert [code for code, _, _ in outputs] == [128 + signal.SIGTERM] * 2, outputs
  assert "stopped by SIGTERM at step" in outputs[0][2]
  step = checkpoint.latest_step(group.workdir / "checkpoints")
  assert step % 5 == 0 and f"at step {step}; saved" in outputs[0][2]
  assert started(tmp_path, "data:4", 2).wait(240)[0][0] == 0
  check_same(group.workdir, alone)


def test_the_runtimes_words_name_the_dead():
  unhealthy = (
    "E1126 08:22:34.195840 4969 coordination_service.cc:1549] UNAVAILABLE: The following tasks are "
    "unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed.\n"
  )
  assert processes.who_died(unhealthy) == [1, 3]
  no_coordinator = (
    "F1126 client.h:80] Terminating process because the JAX distributed service detected fatal "
    "errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service.\n"
  )
  assert processes.who_died(no_coordinator) == [0]
  assert processes.who_died("Traceback (most recent call last):\n") == []


def test_flags_that_do_not_fit_are_refused():
  config = experiment.ExperimentConfig()
  for numbers in ((None, 0), (2, None), (2, 2), (2, -1)):
    with pytest.raises(config_lib.ConfigError, match=r"--coordinator needs --num_processes=N and"):
      processes.join(config, "localhost:1", *numbers)
  with pytest.raises(config_lib.ConfigError, match="need --coordinator=HOST:PORT"):
    processes.join(config, None, 2, 0)
  with pytest.raises(config_lib.ConfigError, match="--fresh: processes must agree on a folder"):
    processes.supervise([], "run", "train.py", is_fresh=True)
