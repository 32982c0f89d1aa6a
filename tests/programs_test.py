"""The programs beside train.py as one types them: figures on standard output and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jaxrec.runs import loop
from tests import repository
from tests.runs import run_helpers

SETTINGS = (
  "data.dataset=synthetic", "data.max_rows_per_table=50", "model.name=logistic_regression",
  "steps=2", "batch_size=8", "eval_examples=8", "test_examples=64",
)  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("programs") / "run"
  loop.run(run_helpers.tiny_config(*SETTINGS), str(path))
  return path


@pytest.mark.parametrize(
  ("words", "first", "third"),
  [
    (["jaxrec.inspect", "--batches=1"], "at step 2", "C1 "),
    (
      ["jaxrec.evaluate", "--split=train", "--num_examples=24"],
      "at step 2, split train",
      "logloss",
    ),
  ],
)
def test_a_program_prints_its_table_and_nothing_else(workdir, words, first, third):
  program, *options = words
  done = subprocess.run(
    [sys.executable, "-m", program, str(workdir), *options],
    cwd=repository.ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert (done.returncode, done.stderr) == (0, "")
  lines = done.stdout.splitlines()
  assert lines[0] == f"{workdir} {first}" and lines[2].startswith(third)
