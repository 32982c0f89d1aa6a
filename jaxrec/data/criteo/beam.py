"""Preparing on many machines: the tasks of a stage as a Beam pipeline.

Each stage is a pipeline of its own, so the end of one is the start of the next, and the tasks are
those that one machine runs: what they make lies on a file system that all workers see, each result
whole or not there. A pipeline that fails or is killed is started again and makes what is missing.

    python -m jaxrec.data.criteo --data_dir=FOLDER --beam --runner=DirectRunner

Source: Apache Beam; TFDS's own Beam support would write the whole data set anew after a failure.
Read next: jaxrec/data/criteo/preparation.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

from jaxrec import config
from jaxrec.data.criteo import preparation, stages


@contextlib.contextmanager
def on_beam(options: Sequence[str] = ()) -> Iterator[preparation.RunTasks]:
  """An executor for ``prepare``; ``options`` are Beam's, such as ``--runner=...``.

  Raises:
    ConfigError: apache-beam is not installed.
  """
  try:
    import apache_beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise config.ConfigError(
      "preparing with Beam needs apache-beam: pip install 'jaxrec[beam]'"
    ) from error

  def run(task: preparation.Task, job: stages.Job, items: Sequence[int]) -> None:
    chosen = pipeline_options.PipelineOptions(list(options))
    with apache_beam.Pipeline(options=chosen) as pipeline:
      created = pipeline | "Tasks" >> apache_beam.Create(items)
      spread = created | "Spread" >> apache_beam.Reshuffle()
      _ = spread | task.__name__ >> apache_beam.Map(functools.partial(task, job))

  yield run
