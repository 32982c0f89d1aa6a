"""The first Ctrl-C or SIGTERM is a request, the second is obeyed at once."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from jaxrec.runs.process import interrupt
from tests import repository
from tests.runs import run_helpers

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def handlers():
  """The handlers of pytest, put back whatever a test does."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  yield before
  for number, handler in before.items():
    signal.signal(number, handler)


@SIGNALS
def test_the_first_signal_is_only_noted(number):
  with interrupt.listening() as stop:
    assert stop.signal_number is None
    signal.raise_signal(number)
    assert stop.signal_number == number


def test_the_second_ctrl_c_interrupts_at_once():
  signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
  with pytest.raises(KeyboardInterrupt), interrupt.listening() as stop:
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal_number == signal.SIGTERM
    signal.raise_signal(signal.SIGINT)


@SIGNALS
def test_the_handlers_are_what_they_were_afterwards(number, handlers):
  with interrupt.listening():
    assert signal.getsignal(number) is not handlers[number]
  assert signal.getsignal(number) is handlers[number]
  with pytest.raises(ValueError, match="on fire"), interrupt.listening():
    raise ValueError("on fire")
  assert signal.getsignal(number) is handlers[number]


def test_a_thread_that_is_not_the_main_one_trains_without_listening(handlers):
  seen = []

  def train():
    with interrupt.listening() as stop:
      seen.append((stop.signal_number, signal.getsignal(signal.SIGINT)))

  thread = threading.Thread(target=train)
  thread.start()
  thread.join()
  assert seen == [(None, handlers[signal.SIGINT])]


def test_the_exception_says_which_signal_and_where():
  stopped = interrupt.Interrupted(signal.SIGINT, 120)
  assert str(stopped) == "stopped by SIGINT at step 120"
  assert (stopped.signal_number, stopped.step) == (2, 120)


SMALL = (
  "train.py", "--model=logistic_regression", "--steps=60", "--batch_size=64",
  "--set=data.max_rows_per_table=100", "--set=log_every=5", "--set=eval_every=60",
  "--set=eval_examples=256", "--set=test_examples=256", "--set=baseline_steps=0",
)  # fmt: skip


@pytest.mark.nightly
def test_ctrl_c_in_a_terminal_leaves_workers_to_the_run_and_its_command_ends_with_the_same_bits(
  tmp_path,
):
  start = functools.partial(
    subprocess.Popen,
    cwd=repository.ROOT,
    env=run_helpers.environment(),
    text=True,
    stderr=subprocess.PIPE,
  )
  workdir = tmp_path / "run in here"
  command = [sys.executable, *SMALL, "--num_workers=2", "--workdir", str(workdir)]
  with start(command, stdout=subprocess.PIPE, start_new_session=True) as process:
    for line in process.stderr:
      if "ex/s" in line:
        break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    stdout, stderr = process.communicate(timeout=120)
  assert process.returncode == 130 and stdout == "", stderr
  stopped, resuming = stderr.strip().splitlines()
  assert re.fullmatch(r"stopped by SIGINT at step \d+; saved. To go on:", stopped)
  assert not (workdir / "result.json").exists()
  with start(["bash", "-c", resuming], stdout=subprocess.DEVNULL) as process:
    _, stderr = process.communicate(timeout=120)
  assert process.returncode == 0, stderr
  straight = [*SMALL[1:], f"--workdir={tmp_path / 'straight'}"]
  assert run_helpers.run(straight, tmp_path / "out").code == 0
  assert run_helpers.final_bits(workdir) == run_helpers.final_bits(tmp_path / "straight")
