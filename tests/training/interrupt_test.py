"""The first Ctrl-C or SIGTERM is a request, the second is obeyed at once."""

from __future__ import annotations

import signal
import threading

import pytest

from jaxrec.training import interrupt

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
