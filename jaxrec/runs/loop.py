"""The training loop.

Dispatch a step, then look at the one before it; evaluate, save, resume, stop on request. All
arithmetic is in the step; this file only decides when.

Order at a checkpoint: metrics of every step up to it are on disk, then the checkpoint is committed.
So a run killed anywhere resumes from a checkpoint, cuts its metrics back to it, and ends with the
same bits as a run that was never disturbed.

Read next: jaxrec/training/step.py.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data import pipeline
from jaxrec.data.pipeline.prefetch import prefetch
from jaxrec.data.views import view
from jaxrec.inputs import batch_checks
from jaxrec.runs import metrics_writer, saved_transforms, step_trace, throughput, warm_start
from jaxrec.runs import terminal as terminal_lib
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.checkpoints import checkpoint
from jaxrec.runs.divergence import check, first_nonfinite
from jaxrec.runs.process import collectives, interrupt, supervisor
from jaxrec.runs.results import results
from jaxrec.runs.setup import num_steps
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import metrics, state

_MAX_STEPS_IN_FLIGHT = 2

ERRORS = (  # of a run, whose messages say what to do
  config_lib.ConfigError,
  workdir_lib.WorkdirError,
  checkpoint.CheckpointError,
  check.DivergedError,
  batch_checks.BadExampleError,
)


def run(
  config: experiment_lib.ExperimentConfig,
  path: str,
  *,
  dataset: pipeline.Source | None = None,
  terminal: terminal_lib.Terminal | None = None,
  trace: step_trace.TraceWindow | None = None,
) -> dict[str, Any]:
  """Trains ``config`` in the folder ``path``, from where it stands there, to its result.

  ``dataset``, one made in Python, stands in for the one that the config names; ``trace`` names
  steps to record with JAX's profiler.

  Raises:
    ConfigError, WorkdirError, CheckpointError, DivergedError, BadExampleError: saying what to do.
    Interrupted: on Ctrl-C or SIGTERM, after saving.
  """
  workdir = workdir_lib.Workdir(path)
  workdir.check(config)
  done = workdir.result(config)
  if done is not None:
    return done
  with supervisor.own_folder(workdir) as workdir:
    parts = run_lib.prepare(config, workdir, terminal or terminal_lib.silent(), dataset)
    if config.refit:  # what cannot be refitted is refused now, and not hours later
      num_steps.refit(parts.config, parts.dataset, 1)
      if dataset is not None:
        raise config_lib.ConfigError(
          "refit: a data set made in Python cannot be read anew; omit it"
        )
    collectives.wait_for_all("setup")  # who fails in it is named, not what fails without them
    with trained(parts, config, trace) as loop:
      return results.finish(parts, loop.test, loop.progress, loop.speed, loop.writer)


@contextlib.contextmanager
def trained(
  parts: run_lib.Run,
  config: experiment_lib.ExperimentConfig,
  trace: step_trace.TraceWindow | None = None,
) -> Iterator[Loop]:
  """Trains ``parts`` in its folder to the end, from where it stands there; ``config`` as asked."""
  workdir = parts.workdir
  with workdir.locked():
    done = checkpoint.latest_step(workdir.checkpoints_path)
    workdir.check_steps(done, parts.config.steps)
    dataset = view.original(parts.dataset)
    saved_transforms.check(dataset, workdir.path)
    first = None if done or not parts.config.warm_start else _warm_state(parts)
    workdir.open(config)  # nothing is written for a config that cannot be run
    saved_transforms.keep(dataset, workdir, parts.terminal)
    with contextlib.closing(Loop(parts, first)) as loop:
      with first_nonfinite.naming_the_culprit(loop), interrupt.listening() as stop:
        loop.train(stop, trace)
      yield loop


class Loop:
  """A run under way: its state, and what has been seen since the last line of metrics."""

  def __init__(self, run: run_lib.Run, first: state.TrainState | None = None):
    """``first`` is the state that a run without a checkpoint begins with, if not a fresh one."""
    self.run = run
    self.checkpoints = checkpoint.Checkpoints(run.workdir.checkpoints_path)
    self.speed = throughput.Speed(run.config.batch_size)
    self.progress = checkpoint.Progress()
    latest = self.checkpoints.latest_step()
    if latest is None:
      self.state = run.initial_state() if first is None else first
      self.window = run.empty_window()
    else:
      self.state, self.window, self.progress = self._restore(latest)
      run.terminal.line(f"resuming {run.workdir.path} from step {latest}")
    self.checkpoints.tidy(self.progress)
    run.workdir.keep_metrics_until(self.progress.step)
    self.writer = metrics_writer.MetricsWriter(run.workdir, start=self.progress.step)

  def close(self) -> None:
    """Returns when the checkpoint under way is on disk."""
    self.writer.close()
    self.checkpoints.close()

  def train(self, stop: interrupt.StopRequest, trace: step_trace.TraceWindow | None = None) -> None:
    """Steps until the last, or until evaluations no longer improve, or until asked to stop."""
    config, steps_left = self.run.config, self.run.config.steps - self.progress.step
    if self._is_over():
      return
    host_batches = self.run.train_batches(self.progress.examples, steps_left)
    with (
      prefetch(host_batches, config.data.prefetch_depth, self.run.batch_sharding) as feed,
      step_trace.recording(trace, self.run.terminal) as wrap,
    ):
      first = next(feed)
      step_fn = wrap(run_lib.compile_step(self.run, self.state, first), self.progress.step)
      in_flight: collections.deque[jax.Array] = collections.deque()
      self.speed.start(feed.stats)
      for batch in itertools.chain([first], feed):
        self.state, seen = step_fn(self.state, batch)
        self.window = _merge(self.window, seen)
        in_flight.append(seen.loss_sum)
        if len(in_flight) >= _MAX_STEPS_IN_FLIGHT:
          in_flight.popleft().block_until_ready()
        self.progress = self.progress.trained(config.batch_size)
        self.speed.num_steps += 1
        self._after_step(stop)
        if self._is_over():
          break
    self.checkpoints.wait()

  def best_state(self) -> state.TrainState:
    """The state of the best evaluation."""
    best = self.progress.best_step
    if best is None or best == self.progress.step:
      return self.state
    del self.state  # two copies of the tables may not fit
    return self._restore(best)[0]

  def _restore(self, step: int) -> tuple[state.TrainState, metrics.WindowMetrics, Any]:
    shapes, num_labels = self.run.state_shapes(), len(self.run.spec.labels)
    return self.checkpoints.restore(step, shapes, num_labels=num_labels)

  def _is_over(self) -> bool:
    patience, stale = self.run.config.early_stop_patience, self.progress.stale_evaluations
    return self.progress.step >= self.run.config.steps or 0 < patience <= stale

  def test(self) -> run_lib.Tested:
    """Figures of the test split: of the best state or, to refit, of one trained on val too."""
    run = self.run
    if not run.config.refit:
      return run.test(self.best_state())
    config = num_steps.refit(run.config, run.dataset, self.progress.best_step or self.progress.step)
    run.terminal.line(f"refit on train and val together, {config.epochs:.2f} epochs")
    del self.state
    parts = run_lib.prepare(config, run.workdir.folder(workdir_lib.REFIT), run.terminal)
    with trained(parts, config) as refitted:
      return parts.test(refitted.state)

  def _after_step(self, stop: interrupt.StopRequest) -> None:
    config, step = self.run.config, self.progress.step
    if step % config.log_every == 0 or step == config.steps:
      self._log()
    is_eval = step % config.eval_every == 0 or step == config.steps
    is_due = bool(config.checkpoint_every) and step % config.checkpoint_every == 0
    asked = collectives.agreed_at(step % config.log_every == 0, stop.signal_number)
    if is_eval or is_due or asked is not None:
      with self.speed.paused():
        self._check_finite()
        if is_eval:
          self._evaluate()
        self.checkpoints.save(self.state, self.window, self.progress)
    if asked is not None:
      self.checkpoints.wait()
      raise interrupt.Interrupted(asked, step)

  def _log(self) -> None:
    step, steps = self.progress.step, self.run.config.steps
    self._check_finite()
    figures = self.window.compute(self.run.spec.labels)
    if self.run.placement is not None:
      figures["extra_rounds"] = float(self.window.num_extra_rounds)
    self.window = self.run.empty_window()
    self.writer.write(step, "train", figures)
    self.run.terminal.training(step, steps, figures | self.speed.figures(steps - step))

  def _check_finite(self) -> None:
    window, step = self.window, self.progress.step
    check.check(window.loss_sum, self.state.params, step, num_bad_rows=window.num_bad_rows)

  def _evaluate(self) -> None:
    run, step = self.run, self.progress.step
    if run.dataset.num_examples("val") == 0:  # all examples train, and the last state is the best
      self.progress = self.progress.judged(math.nan)
      return
    with check.noticed_at(step):
      figures = run.evaluate(self.state, "val", run.config.eval_examples)
    self.progress = self.progress.judged(figures["auc"])
    self.writer.write(step, "val", figures)
    run.terminal.evaluation(step, figures, is_best=self.progress.best_step == step)


def _warm_state(run: run_lib.Run) -> state.TrainState:
  """A state that goes on from the earlier model that the config names."""
  earlier = run.config.warm_start or ""
  try:
    warm, report = warm_start.warm_start(run, earlier)
  except workdir_lib.WorkdirError as error:
    if run.workdir.path.name != workdir_lib.REFIT:
      raise
    raise workdir_lib.WorkdirError(
      f"the refit starts from {earlier} as the run did, and now {error}. What was trained is safe "
      f"in {run.workdir.path.parent}: bring that folder back and repeat the command"
    ) from error
  run.terminal.line(f"warm start from {earlier}; rows by table:")
  for line in warm_start.describe(report):
    run.terminal.line(line)
  return warm


_merge = jax.jit(metrics.WindowMetrics.merge)
