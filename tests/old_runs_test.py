"""What an earlier version wrote opens and goes on: runs with their checkpoints, prepared folders.

``old_runs/COMMIT.tar.gz`` holds what ``old_runs/make.py`` wrote with that commit.
"""

from __future__ import annotations

import pathlib
import platform
import shutil
import tarfile

import jax
import numpy as np
import pytest

from jaxrec import data
from jaxrec.runs import open_run
from tests import repository
from tests.old_runs import make
from tests.runs import run_helpers

COMMITS = sorted(
  path.name.removesuffix(".tar.gz") for path in (repository.ROOT / "tests/old_runs").glob("*.gz")
)
# Programs of another compiler, or for another processor, round otherwise.
HAS_THEIR_COMPILER = jax.__version__ == "0.10.2" and platform.machine() == "x86_64"


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("commit", COMMITS)
def test_a_run_of_an_earlier_version_goes_on_with_the_same_bits(
  commit, tmp_path, monkeypatch, capsys
):
  with tarfile.open(repository.ROOT / "tests" / "old_runs" / f"{commit}.tar.gz") as archive:
    archive.extractall(tmp_path, filter="data")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  config = open_run.config_of("run")
  prepared = data.load(config.data, embedding_dim=4).folder
  assert bytes_of(prepared) == bytes_of(pathlib.Path("prepared"))
  shutil.rmtree(prepared)
  shutil.copytree("prepared", prepared)

  outcome = run_helpers.run_here([*make.FLAGS, "--steps=12", "--workdir=run"], capsys)
  assert outcome.code == 0, outcome.stderr
  if HAS_THEIR_COMPILER:
    metrics = (pathlib.Path(name, "metrics.jsonl").read_bytes() for name in ("run", "resumed"))
    assert len(set(metrics)) == 1
  ours, theirs = (dict(run_helpers.saved_bits(tmp_path / name, 12)) for name in ("run", "resumed"))
  assert ours.keys() == theirs.keys() and len(theirs) > 20
  assert ours.pop("progress") == theirs.pop("progress")
  for name, (dtype, shape, values) in theirs.items():
    assert ours[name][:2] == (dtype, shape), name
    if HAS_THEIR_COMPILER:
      assert ours[name][2] == values, name
    else:
      found, expected = (np.frombuffer(x, dtype) for x in (ours[name][2], values))
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=name)
