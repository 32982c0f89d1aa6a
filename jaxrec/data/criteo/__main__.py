"""Prepares Criteo's raw files without training: ``python -m jaxrec.data.criteo --data_dir=FOLDER``.

``train.py --dataset=criteo`` does the same before it trains. The flags are the fields of
CriteoConfig, and those of DataConfig that matter here. The last line of standard output is one JSON
object that names the prepared folder. With ``--beam``, flags that are none of these go to Beam.

Read next: jaxrec/data/criteo/preparation.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from jaxrec import config as config_lib
from jaxrec.config import experiment as experiment_lib
from jaxrec.data.criteo import beam, preparation
from jaxrec.inputs import batch_checks


def main(argv: list[str]) -> int:
  """Runs the command line; the exit code."""
  parser = argparse.ArgumentParser(prog="python -m jaxrec.data.criteo", description=__doc__)
  parser.add_argument("--data_dir", required=True, help="folder of the raw files")
  parser.add_argument("--on_bad_row", default="error", help="error or skip")
  parser.add_argument("--max_rows_per_table", type=int, help="dlrm: raw ids modulo this")
  fields = dataclasses.fields(experiment_lib.CriteoConfig)
  for field in fields:
    kind = str if field.default is None else type(field.default)
    parser.add_argument(f"--{field.name}", type=kind, default=field.default)
  parser.add_argument("--beam", action="store_true", help="run the tasks as Beam pipelines")
  flags, beam_options = parser.parse_known_args(argv)
  if beam_options and not flags.beam:
    parser.error(f"unknown: {' '.join(beam_options)} (Beam's options need --beam)")

  def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

  try:
    data = experiment_lib.DataConfig(
      dataset="criteo",
      data_dir=flags.data_dir,
      on_bad_row=flags.on_bad_row,
      max_rows_per_table=flags.max_rows_per_table,
      criteo=experiment_lib.CriteoConfig(**{f.name: getattr(flags, f.name) for f in fields}),
    )
    executor = beam.on_beam(beam_options) if flags.beam else None
    folder = preparation.prepare(data, executor=executor, report=report)
  except (config_lib.ConfigError, batch_checks.BadExampleError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(json.dumps({"prepared": str(folder), **preparation.read_meta(folder)}))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
