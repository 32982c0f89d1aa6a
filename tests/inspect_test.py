"""``python -m jaxrec.inspect``: what it reports of a tiny run is what is there."""

from __future__ import annotations

import collections
import json
import math
import re
import shutil
import types

import numpy as np
import pytest
from absl import app, flags
from absl.testing import flagsaver

from jaxrec import inspect as program
from jaxrec.data import registry
from jaxrec.runs import loop
from jaxrec.runs import workdir as workdir_lib
from jaxrec.runs.setup import run as run_lib
from tests import program_flags
from tests.data import tiny_clicks
from tests.runs import run_helpers

RUN = ("steps=12", "eval_every=6", "batch_size=16", "data.max_rows_per_table=25")


@pytest.fixture(scope="module", autouse=True)
def tiny():
  loaders = {**registry.LOADERS, "tiny": tiny_clicks.load}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(registry, "LOADERS", types.MappingProxyType(loaders))
    yield


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
  path = tmp_path_factory.mktemp("inspect") / "run"
  loop.run(run_helpers.tiny_config(*RUN), str(path))
  return path


def call(*words):
  """The program in this process: as the command line gives it its words."""
  program_flags.define(program)
  with flagsaver.flagsaver():
    return program.main(flags.FLAGS(["inspect", *map(str, words)]))


def test_a_report_equals_a_brute_force_over_the_run(workdir, capsys):
  assert call(workdir, "--json", "--batches=3", "--top=10") == 0
  report = json.loads(capsys.readouterr().out)
  config = run_helpers.tiny_config(*RUN)
  run = run_lib.build(config, workdir_lib.Workdir(workdir), None)
  first, last = run.initial_state().tables, saved_tables(run, workdir, 12)
  assert report["step"] == 12 and report["examples"] == 48
  assert [table["table"] for table in report["tables"]] == ["user", "item", "tag"]
  counts = counted(run, 3)
  for table in report["tables"]:
    before = np.asarray(first.table(table["table"]))
    after = np.asarray(last.table(table["table"]))
    is_touched = (before != after).any(axis=1)
    assert table["touched_rows"] == is_touched.sum() > 0
    assert table["dead_rows"] == (~is_touched).sum() and table["zero_rows"] == 0
    norms = np.linalg.norm(after.astype(np.float64), axis=1)
    assert table["mean_norm"] == pytest.approx(norms.mean(), rel=1e-12)
    assert table["max_norm"] == pytest.approx(norms.max(), rel=1e-12)
    assert (table["rows"], table["embedding_dim"], table["bytes"]) == (*after.shape, after.nbytes)
    seen = counts[table["table"]]
    top = sum(n for _, n in seen.most_common(math.ceil(len(seen) / 10)))
    assert table["top_share"] == pytest.approx(top / seen.total(), rel=1e-12)
    assert (table["lookups"], table["distinct_ids"]) == (seen.total(), len(seen))


def saved_tables(run, workdir, step):
  """The tables of a checkpoint, read without the reader under test."""
  bits = dict(run_helpers.saved_bits(workdir, step))
  like = run.initial_state().tables
  values = {}
  for name in like.values:
    (key,) = [key for key in bits if key == f"tables['values']['{name}']"]
    dtype, shape, data = bits[key]
    values[name] = np.frombuffer(data, dtype).reshape(shape)
  return like.replace(values=values)


def counted(run, num_batches):
  """Ids by table in the first batches of training."""
  found = collections.defaultdict(collections.Counter)
  for batch in run.train_batches(0, num_batches):
    for feature in run.spec.features:
      for bag in batch.ids[feature.name].to_lists():
        found[feature.table.name].update(bag)
  return found


def test_a_report_is_a_table_that_lines_up(workdir, capsys):
  assert call(workdir, "--batches=2") == 0
  out = capsys.readouterr().out.splitlines()
  assert out[0] == f"{workdir} at step 12"
  assert out[1].split()[:4] == ["table", "rows", "dim", "bytes"]
  assert [line.split()[:3] for line in out[2:5]] == [
    ["user", "25", "4"], ["item", "25", "4"], ["tag", "20", "4"]
  ]  # fmt: skip
  assert len({len(line) for line in out[1:5]}) == 1


def test_the_checkpoint_is_the_latest_a_named_one_or_the_best(workdir, tmp_path, capsys):
  steps = run_helpers.committed(workdir)
  best = json.loads((workdir / "result.json").read_text())["result"]["best_step"]
  for words, step in [((), 12), ((f"--step={steps[0]}",), steps[0]), (("--best",), best)]:
    assert call(workdir, "--json", "--batches=1", *words) == 0
    assert json.loads(capsys.readouterr().out)["step"] == step


def test_looking_changes_nothing_in_the_folder(workdir, capsys):
  unfinished = workdir / "checkpoints" / "99.orbax-checkpoint-tmp"
  unfinished.mkdir()  # a run that is saving at this moment
  before = {p: p.read_bytes() if p.is_file() else None for p in workdir.rglob("*")}
  assert call(workdir, "--batches=1") == 0
  assert {p: p.read_bytes() if p.is_file() else None for p in workdir.rglob("*")} == before
  unfinished.rmdir()


def spoiled(workdir, path, what):
  shutil.copytree(workdir, path)
  if what == "no checkpoint":
    shutil.rmtree(path / "checkpoints")
  elif what == "empty checkpoints":
    shutil.rmtree(path / "checkpoints")
    (path / "checkpoints").mkdir()
  elif what == "damaged":
    for file in (path / "checkpoints" / "12").rglob("*"):
      if file.is_file() and file.stat().st_size > 300:
        file.write_bytes(file.read_bytes()[:100])
  elif what == "damaged config":
    (path / "config.json").write_text('{"half')
  elif what == "another version":
    config = json.loads((path / "config.json").read_text())
    config["model"]["botom_mlp"] = [3]
    (path / "config.json").write_text(json.dumps(config))
  elif what == "another model":
    config = json.loads((path / "config.json").read_text())
    config["model"]["top_mlp"] = [9, 1]
    (path / "config.json").write_text(json.dumps(config))
  return path


@pytest.mark.parametrize(
  ("what", "message"),
  [
    ("no checkpoint", "has no checkpoint yet"),
    ("empty checkpoints", "has no checkpoint yet"),
    ("damaged", r"checkpoint .*checkpoints/12 cannot be read"),
    ("damaged config", r"cannot read .*config.json"),
    ("another version", "model.botom_mlp: no such field; did you mean 'bottom_mlp'"),
    ("another model", "damaged or from another configuration"),
  ],
)
def test_a_folder_that_cannot_be_looked_into_is_one_clear_message(
  workdir, tmp_path, capsys, what, message
):
  assert call(spoiled(workdir, tmp_path / "run", what)) == 1
  captured = capsys.readouterr()
  assert captured.out == "" and captured.err.startswith("error: ")
  assert re.search(message, captured.err), captured.err


def test_what_was_asked_for_and_is_not_there_is_named(workdir, tmp_path, capsys):
  assert call(tmp_path / "nowhere") == 1
  assert "nowhere: no such folder" in capsys.readouterr().err
  assert call(tmp_path) == 1
  assert "is not a run of jaxrec: it has no config.json" in capsys.readouterr().err
  assert call(workdir, "--step=7") == 1
  assert "has no checkpoint of step 7; it has" in capsys.readouterr().err
  for words in [(), (workdir, "more"), (workdir, "--batches=0"), (workdir, "--best", "--step=12")]:
    with pytest.raises(app.UsageError):
      call(*words)
