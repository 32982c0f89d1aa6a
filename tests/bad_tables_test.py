"""train.py on bad tables: one clear message, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import pytest

from tests.data import tables
from tests.runs import run_helpers

GOOD = b"age,city,click\n" + b"".join(
  b"%d,c%d,%d\n" % (20 + k % 60, k % 5, k % 2) for k in range(200)
)
FAULTS = {
  "malformed line": (GOOD + b"1,2\n", r"x.csv, line 202: Expected Number of Columns: 3 Found: 2"),
  "mixed types": (GOOD + b"young,c1,1\n", "line 202: column 'age': expected a number, got 'young'"),
  "not UTF-8": (GOOD + b"7,\xff\xfe,1\n", "line 202: Invalid unicode"),
  "unlabeled": (
    GOOD.replace(b",1\n", b",-1\n"),
    "x.csv, line 3: label 'click': expected 0 or 1, got '-1'",
  ),
  "empty": (b"", "x.csv: is empty"),
  "no rows": (b"age,city,click\n", "no column is left to learn from"),
  "no such column": (GOOD.replace(b"click", b"clack"), "no column 'click'; did you mean 'clack'"),
}


def train(tmp_path, *more):
  args = ["--dataset=table", "--label=click", "--set=baseline_steps=0", "--epochs=1", *more]
  return run_helpers.run([*args, f"--workdir={tmp_path}/run"], tmp_path / "out")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_ends_the_run_before_it_begins(tmp_path, fault):
  content, message = FAULTS[fault]
  (tmp_path / "x.csv").write_bytes(content)
  outcome = train(tmp_path, f"--data_dir={tmp_path}/x.csv", "--set=data.min_count=1")
  assert outcome.code == 1 and outcome.stdout == ""
  (line,) = outcome.stderr.splitlines()
  assert line.startswith("error: ") and message in line
  assert not (tmp_path / "run").exists()
  assert not [path for path in (tmp_path / "cache").glob("**/*") if path.is_file()]


def test_bad_rows_that_are_skipped_are_counted_and_the_run_ends_well(tmp_path):
  (tmp_path / "x.csv").write_bytes(GOOD + b"1,2\nyoung,c1,1\n8,c1,0\n")
  outcome = train(tmp_path, f"--data_dir={tmp_path}/x.csv", "--on_bad_row=skip")
  assert outcome.code == 0, outcome.stderr
  listed = tmp_path / "run" / "bad_rows.txt"
  assert f"\n2 bad rows left out, listed in {listed}\n" in outcome.stderr
  schema = tmp_path / "run" / "schema.json"
  said = f"schema, inferred; to change it, edit {schema} and start a new run with --schema={schema}"
  assert said in outcome.stderr.splitlines()


def test_a_column_gone_from_the_test_files_is_named(tmp_path):
  tables.write(tables.clicks(), tmp_path / "a.csv")
  gone = tables.clicks(60, seed=2).drop_columns(["city"])
  tables.write(gone, tmp_path / "b.csv")
  outcome = train(tmp_path, f"--data_dir={tmp_path}/a.csv", f"--set=data.test_dir={tmp_path}/b.csv")
  assert outcome.code == 1 and "b.csv: no column 'city'" in outcome.stderr
  assert not (tmp_path / "run").exists()
