"""On one TPU tables lie in lines without being asked to, and nothing above them can tell."""

from __future__ import annotations

import contextlib

import jax
import pytest

from jaxrec import tables
from jaxrec.runs import loop, open_run
from tests.runs import run_helpers
from tests.runs.loop_test import cache, tiny  # noqa: F401
from tests.sharding import cases
from tests.tables import in_lines

DEEP = (
  "model.name=deep",
  "model.embedding_dim=16",
  "optimizer.dense=adagrad",
  "log_every=2",
  "eval_every=6",
  "checkpoint_every=0",
)


def test_a_state_is_laid_out_as_suits_the_platform(monkeypatch):
  inputs, tx = cases.features(), cases.optimizers("sgd")
  for platform, is_in_lines in (("tpu", True), ("gpu", False), ("cpu", False)):
    monkeypatch.setattr(jax, "default_backend", lambda found=platform: found)
    found = jax.eval_shape(lambda: cases.fresh(inputs, tx)).tables
    assert found.placement == tables.one_device(found.plan, platform)
    (array,) = found.values.values()
    assert (array.shape == (16, 128)) == is_in_lines
    asked = jax.eval_shape(lambda: cases.fresh(inputs, tx, tables.OneDevice())).tables
    assert asked.placement == tables.OneDevice()


@pytest.mark.parametrize(
  "optimizer", ["rowwise_adagrad", pytest.param("adam", marks=pytest.mark.nightly)]
)
def test_a_run_that_goes_into_lines_or_out_of_them_leaves_the_same_bits(
  optimizer,
  tmp_path,
  tiny,  # noqa: F811
):
  by_row = contextlib.nullcontext
  for steps, layouts in ((6, (in_lines.as_on_a_tpu, by_row)), (12, (by_row, in_lines.as_on_a_tpu))):
    config = run_helpers.tiny_config(*DEEP, f"optimizer.table={optimizer}", f"steps={steps}")
    found = []
    for name, layout in zip(("lines first", "rows first"), layouts, strict=True):
      path = tmp_path / name
      with layout():
        result = loop.run(config, str(path)) | {"workdir": "", "examples_per_s": 0}
        final = open_run.reopen(path).state
      assert result["steps"] == steps
      found.append((result, (path / "metrics.jsonl").read_bytes(), final))
    (*figures, ours), (*expected, theirs) = found
    assert figures == expected
    assert ours.tables.placement != theirs.tables.placement
    ours = in_lines.laid_out(ours, theirs.tables.placement)
    in_lines.assert_same_bits(in_lines.as_words(ours), in_lines.as_words(theirs))
