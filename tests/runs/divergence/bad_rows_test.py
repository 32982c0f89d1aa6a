"""Tables that are no longer finite are noticed at the step that wrote them, and never saved."""

from __future__ import annotations

import contextlib
import re
import signal
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec import tables
from jaxrec.runs import loop, terminal
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.divergence import check
from jaxrec.runs.setup import run as run_lib
from jaxrec.training import state as state_lib
from tests.runs import run_helpers
from tests.runs.loop_test import LOGISTIC, cache, run, tiny  # noqa: F401


@pytest.mark.parametrize("table_optimizer", ["rowwise_adagrad", "sgd", "adam"])
def test_tables_that_are_no_longer_finite_are_never_saved(tmp_path, table_optimizer):
  path = tmp_path / "run"
  overrides = (
    f"optimizer.table={table_optimizer}", "optimizer.table_learning_rate=3e38", "log_every=1000",
    "eval_every=100", "checkpoint_every=1", "steps=6",
  )  # fmt: skip
  bad_at = 1 if table_optimizer == "rowwise_adagrad" else 2  # the others' first rows are just huge
  diverged = rf"diverged by step {bad_at} \(.*the tables are no longer finite: \d+ bad rows"
  for _ in range(2):  # the same command goes on from what is whole, and says the same
    with pytest.raises(check.DivergedError, match=f"diverged at step {bad_at}: ") as error:
      run(path, *overrides)
    assert re.search(diverged, str(error.value.__cause__))  # what the replay was made for
    assert run_helpers.committed(path) == [bad_at - 1] * (bad_at - 1)
    for step in run_helpers.committed(path):
      bits = dict(run_helpers.saved_bits(path, step))
      (values,) = (np.frombuffer(bits[name][2], np.float32) for name in bits if "values" in name)
      assert np.isfinite(values).all()


def test_ctrl_c_does_not_save_tables_that_are_no_longer_finite(tmp_path):
  settings = run_helpers.tiny_config("optimizer.table_learning_rate=3e38")
  workdir = workdir_lib.Workdir(tmp_path / "run")
  parts = run_lib.prepare(settings, workdir, terminal.silent())
  workdir.open(settings)
  asked = types.SimpleNamespace(signal_number=signal.SIGINT)  # as if before the first step
  refused = pytest.raises(check.DivergedError, match="by step 1 .*tables are no longer finite")
  with contextlib.closing(loop.Loop(parts)) as under_way, refused:
    under_way.train(asked)
  assert run_helpers.committed(workdir.path) == []


def test_after_tables_diverge_the_same_command_resumes_from_the_last_good_checkpoint(
  tmp_path, monkeypatch
):
  path, spoiled = tmp_path / "run", []
  apply = state_lib.apply_and_count

  def spoil_once(current, grads, row_grads, *, tx):
    huge = jnp.where(current.step == 8, jnp.float32(jnp.inf), 1.0) if not spoiled else 1.0
    return apply(current, grads, tables.scale(row_grads, huge), tx=tx)

  monkeypatch.setattr(state_lib, "apply_and_count", spoil_once)
  settings = ("steps=12", "checkpoint_every=4", "eval_every=12", "log_every=1000")
  with pytest.raises(check.DivergedError, match="diverged at step 9: ") as error:
    run(path, *LOGISTIC, *settings)
  assert "diverged by step 12 " in str(error.value.__cause__)
  assert run_helpers.committed(path) == [8]
  spoiled.append("no more")
  assert run(path, *LOGISTIC, *settings)["steps"] == 12
  assert run_helpers.committed(path) == [12]
