"""Writes the metrics of a run as they come: a line each, and TensorBoard's files.

Read next: jaxrec/runs/results/results.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from jaxrec.runs import workdir as workdir_lib


class MetricsWriter:
  """One line a reading to ``metrics.jsonl``, and the same figures to TensorBoard.

  Not by tensorboardX's SummaryWriter: a full disk would end its thread, and then block the run.
  """

  def __init__(self, workdir: workdir_lib.Workdir, *, start: int):
    """``start``: steps made before; TensorBoard forgets what an earlier start wrote after them."""
    self._workdir = workdir
    self._folder = workdir.path / "tensorboard"
    with workdir_lib.writing(self._folder):
      self._folder.mkdir(exist_ok=True)
      self._events = event_file_writer.EventsWriter(str(self._folder / "events"), f".{start}")
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=restart))

  def write(self, step: int, split: str, figures: dict[str, float]) -> None:
    known = {name: or_null(value) for name, value in figures.items()}
    self._workdir.append_metrics({"step": step, "split": split, **known})
    self._add(
      *(
        event_pb2.Event(
          wall_time=time.time(), step=step, summary=summary.scalar(f"{split}/{name}", value)
        )
        for name, value in known.items()
        if value is not None
      )
    )

  def close(self) -> None:
    with contextlib.suppress(OSError):  # nothing is unwritten but what has failed to be
      self._events.close()

  def _add(self, *events: event_pb2.Event) -> None:
    with workdir_lib.writing(self._folder):
      for event in events:
        self._events.write_event(event)
      self._events.flush()


def or_null(value: Any) -> Any:
  """``value``, or None for a number that JSON has not."""
  return None if isinstance(value, float) and not math.isfinite(value) else value
