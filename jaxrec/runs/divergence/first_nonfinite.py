"""Which number was the first that was none.

When training has diverged, the loss says so some steps late, and everything is NaN by then. But a
run is deterministic: replayed from its last checkpoint, step by step, with each step watched, it
diverges again, and the first bad number in order of computation names its step and its layer or
table. Nothing of this costs anything before a run fails, and the replayed state is never saved.

At no time are there more than two copies of the tables: the diverged ones are dropped first, and a
watched step returns no state. What was trained on a mesh is replayed on one of its devices, to the
last bits of sums; if it does not fit there, the error stays as it was.

Source: the habit of bisecting NaNs by hand. JAX's own ``debug_nans`` names a primitive, not a
layer, and slows the run that has not failed yet.
Read next: jaxrec/runs/divergence/watched_step.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import features
from jaxrec import tables as tables_lib
from jaxrec.data.pipeline.prefetch import prefetch
from jaxrec.inputs import row_plan, table_plan
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.divergence import check, watched_step
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import state

_BY_UPDATE = "the optimizer's update made it so, all gradients were finite"


class Stopped(Protocol):
  """A loop that has stopped: ``loop.Loop``."""

  run: run_lib.Run
  state: state.TrainState
  checkpoints: checkpoint.Checkpoints
  progress: checkpoint.Progress


@dataclasses.dataclass(frozen=True)
class Culprit:
  """The first number of a run that is not finite.

  Attributes:
    step: the update it belongs to; the first is 1.
    what: names it.
    value: it.
    micro_batch: which part of an accumulated step, the first is 1; None: of the whole step.
    why: what can be said beyond that.
  """

  step: int
  what: str
  value: float
  micro_batch: int | None = None
  why: str = ""

  def __str__(self) -> str:
    part = "" if self.micro_batch is None else f", micro-batch {self.micro_batch}"
    return (
      f"training diverged at step {self.step}{part}: {self.what} is the first that is not finite "
      f"({self.value}){self.why}"
    )


@contextlib.contextmanager
def naming_the_culprit(loop: Stopped) -> Iterator[None]:
  """Lets a DivergedError that passes say where the first bad number came from.

  If the replay finds nothing or fails in any way, the error is what it was.
  """
  try:
    yield
  except check.DivergedError as error:
    if jax.process_count() > 1:  # none of them has all of a batch
      raise
    _release(error)
    del loop.state
    try:
      culprit = _replay(loop)
    except Exception as failure:
      first_line = (str(failure).splitlines() or [""])[0]
      loop.run.terminal.line(f"the replay failed: {type(failure).__name__}: {first_line}")
      raise error from None
    if culprit is None:
      raise
    raise check.DivergedError(f"{culprit}. {check.ADVICE}") from error


def _release(error: BaseException | None) -> None:
  """Frees what the frames of ``error`` hold: its tracebacks would keep the tables alive."""
  while error is not None:
    traceback.clear_frames(error.__traceback__)
    error = error.__cause__ or error.__context__


def _replay(loop: Stopped) -> Culprit | None:
  # On one device, wherever it was trained: there a row has one number and an example one place.
  run, checkpoints = dataclasses.replace(loop.run, placement=None), loop.checkpoints
  checkpoints.wait()
  latest = checkpoints.latest_step()
  reached = checkpoint.Progress()
  run.terminal.line(
    f"diverged by step {loop.progress.step}; replaying from step {latest or 0} to name the first "
    "number that is not finite"
  )
  if latest is None:
    start = run.initial_state()
  else:
    start, _, reached = checkpoints.restore(latest, run.state_shapes())
  return find(Examiner(run), start, reached, loop.progress.step)


def find(
  examiner: Examiner, start: state.TrainState, reached: checkpoint.Progress, last_step: int
) -> Culprit | None:
  """The first number that is not finite in the steps after ``reached``, up to ``last_step``.

  Args:
    examiner: of the run.
    start: the state at ``reached``; it is donated to the first step.
    reached: where ``start`` stands.
    last_step: of the replay.
  """
  current, num_steps = start, last_step - reached.step
  culprit = examiner.parameters(current, reached.step + 1, "it was so as the step began")
  if culprit is not None or not num_steps:
    return culprit
  with prefetch(examiner.run.train_batches(reached.examples, num_steps), 2) as feed:
    for step, batch in enumerate(feed, start=reached.step + 1):
      culprit = examiner.rows(current, batch, step, "it was so when the step read it")
      if culprit is None:
        culprit = examiner.step(current, batch, step)
      if culprit is None:
        current = examiner.advance(current, batch)
        culprit = examiner.parameters(current, step, _BY_UPDATE)
      if culprit is None:
        culprit = examiner.rows(current, batch, step, _BY_UPDATE)
      if culprit is not None:
        return culprit
  return None


class Examiner:
  """Programs that look at a step and its state, compiled once for one run."""

  def __init__(self, run: run_lib.Run):
    self.run, self._recorder = run, watched_step.Recorder()
    model: Any = watched_step.WatchedModel(run.model, self._recorder)
    tx = watched_step.watched_optimizers(run.tx, self._recorder)
    watched = dataclasses.replace(run, model=model, tx=tx).step_fn()
    single_config = dataclasses.replace(run.config, accumulate_steps=1)
    single = dataclasses.replace(run, config=single_config).step_fn()
    self._watched = jax.jit(lambda current, batch: watched(current, batch)[1].loss_sum)
    self._loss = jax.jit(lambda current, batch: single(current, batch)[1].loss_sum)
    self._step_fn = jax.jit(run.step_fn(), donate_argnums=0)  # the very step that was trained

  def advance(self, current: state.TrainState, batch: features.Batch) -> state.TrainState:
    """The state after the step; ``current`` is donated to it."""
    return self._step_fn(current, batch)[0]

  def parameters(self, current: state.TrainState, step: int, why: str) -> Culprit | None:
    """The first dense parameter that is not finite."""
    found = jax.tree_util.tree_leaves_with_path(current.params)
    for (path, _), place, value in zip(found, *_looked_at([x for _, x in found]), strict=True):
      if place >= 0:
        return Culprit(
          step, f"parameter {watched_step.parameter_name(path)!r}", value, why=f": {why}"
        )
    return None

  def rows(
    self, current: state.TrainState, batch: features.Batch, step: int, why: str
  ) -> Culprit | None:
    """The first row that the batch names and that is not finite."""
    plan = current.tables.plan
    ids = {name: jnp.reshape(rows.rows, -1) for name, rows in (batch.rows or {}).items()}
    found = _read_rows(current.tables, ids)
    for name, place, value in zip(found, *_looked_at(list(found.values())), strict=True):
      if place >= 0:
        table = _row_name(plan, name, int(ids[name][place]), self._parts(batch))
        return Culprit(step, table, value, why=f": {why}")
    return None

  def step(self, current: state.TrainState, batch: features.Batch, step: int) -> Culprit | None:
    """The first number that is not finite within the step."""
    self._recorder.clear()
    loss = float(self._watched(current, batch))
    jax.effects_barrier()
    first, parts = next(iter(self._recorder.findings), None), self._parts(batch)
    # A micro-batch's loss comes after its forward pass and before its gradients.
    num_losses = len(parts)
    if first is not None and first.micro_batch >= 0:
      num_losses = first.micro_batch + (first.stage not in ("embedding", "output"))
    for number in range(0 if math.isfinite(loss) else num_losses):
      value = float(self._loss(current, parts[number]))
      if not math.isfinite(value):
        return Culprit(step, "the loss", value, self._number(number))
    if first is not None:
      part = self._number(first.micro_batch)
      return Culprit(step, self._what(first, current.tables.plan, parts), first.value, part)
    if not math.isfinite(loss):
      return Culprit(step, "the loss, summed over the batch,", loss)
    return None

  def _what(
    self, found: watched_step.Finding, plan: table_plan.TablePlan, parts: list[features.Batch]
  ) -> str:
    if found.stage == "output":
      return f"the output of {found.name!r}" if found.name else "the output of the model"
    if found.stage in ("gradient", "summed gradient"):
      return f"the {found.stage} of {found.name!r}"
    if found.stage == "summed row gradient":
      row = _summed_rows(parts, found.name)[found.place]
      return f"the summed gradient of {_row_name(plan, found.name, int(row), parts)}"
    (table,) = {f.table.name for f in plan.features if f.name == found.name}
    bag = parts[found.micro_batch].ids[found.name].to_lists()[found.place]
    ids = f", id {bag[0]}" if len(bag) == 1 else f", ids {bag}" if bag else ""
    if found.stage == "embedding":
      return f"the embedding of feature {found.name!r} (table {table!r}{ids})"
    return f"the gradient of table {table!r} (feature {found.name!r}{ids})"

  def _parts(self, batch: features.Batch) -> list[features.Batch]:
    """The batch's micro-batches, on the host."""
    host = jax.tree.map(np.asarray, batch)
    count = self.run.config.accumulate_steps
    if count == 1:
      return [host]
    return [jax.tree.map(lambda leaf, k=k: leaf[k], host) for k in range(count)]

  def _number(self, micro_batch: int) -> int | None:
    is_one_of_many = self.run.config.accumulate_steps > 1 and micro_batch >= 0
    return micro_batch + 1 if is_one_of_many else None


def _looked_at(arrays: list[jax.Array]) -> tuple[list[int], list[float]]:
  if not arrays:
    return [], []
  places, values = _first_of_each(arrays)
  return np.asarray(places).tolist(), np.asarray(values).tolist()


@jax.jit
def _first_of_each(arrays: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
  places, values = zip(*map(watched_step.first_not_finite, arrays), strict=True)
  return jnp.stack(places), jnp.stack(values)


_read_rows = jax.jit(tables_lib.read_rows)


def _summed_rows(parts: list[features.Batch], stack: str) -> np.ndarray:
  """i32[U]: the stacked rows of a summed gradient, in the order in which they were summed."""
  plans = [part.rows[stack] for part in parts if part.rows is not None]
  rows = np.concatenate([plan.rows[: int(plan.num_rows)] for plan in plans])
  return row_plan.unique_in_order(rows)[0]


def _row_name(
  plan: table_plan.TablePlan, stack_name: str, row: int, parts: list[features.Batch]
) -> str:
  """A stacked row as its table, its id, and a feature of the batch that names it."""
  (stack,) = (stack for stack in plan.stacks if stack.name == stack_name)
  table, first = next(
    (table, offset)
    for table, offset in zip(stack.tables, stack.offsets, strict=True)
    if offset <= row < offset + table.vocab_size
  )
  readers = [feature.name for feature in plan.features if feature.table.name == table.name]
  named = next(
    name for part in parts for name in readers if (part.ids[name].values == row - first).any()
  )
  return f"row {row - first} of table {table.name!r} (feature {named!r})"
