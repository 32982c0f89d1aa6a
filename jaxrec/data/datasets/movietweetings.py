"""MovieTweetings: does a person who tweets about a movie rate it 8 or better?

141,695 ratings of 2013 by 21,081 people, with each movie's year and genres; half of them are 8 or
better. How often the person and the movie have been rated before (how often, not how well) says
more. The latest fifth of the ratings tests, and of the others the latest tenth chooses.

Source: Dooms, De Pessemier and Martens, "MovieTweetings: a movie rating dataset collected from
Twitter" (CrowdRec 2013), MIT licence.
Read next: jaxrec/data/prepared/from_table.py.
"""

from __future__ import annotations

import gzip
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from jaxrec.config import experiment
from jaxrec.data.prepared import from_table, prepared_table
from jaxrec.data.readers import files
from jaxrec.data.readers import reader as reader_lib
from jaxrec.features.schema import Column, Schema

RATINGS, MOVIES = "movietweetings_141695.csv.gz", "movietweetings_movies.dat.gz"
LIKED = 8
_TITLE = re.compile(r"^(?P<id>\d+)::.*\((?P<year>\d{4})[^)]*\)::(?P<genres>.*)$")


def ratings(ratings_path: str, movies_path: str) -> pa.Table:
  """The ratings in order of time, with ``year`` and ``genres`` of their movies and ``liked``."""
  found = pa_csv.read_csv(
    ratings_path, convert_options=pa_csv.ConvertOptions(column_types={"movie": pa.int64()})
  )
  movies = _movies(movies_path)
  unknown: tuple[int | None, list[str]] = (None, [])
  known = [movies.get(movie, unknown) for movie in found["movie"].to_pylist()]
  liked = found["rating"].to_numpy() >= LIKED
  return pa.table({
    "user": found["user"],
    "movie": found["movie"],
    "user_earlier": earlier(found["user"].to_numpy()),
    "movie_earlier": earlier(found["movie"].to_numpy()),
    "year": pa.array([year for year, _ in known], pa.int32()),
    "genres": pa.array([genres for _, genres in known], pa.list_(pa.string())),
    "ts": found["ts"],
    "liked": pa.array(liked.astype(np.int8)),
  })  # fmt: skip


def earlier(values: np.ndarray) -> np.ndarray:
  """i64[N]: how often each value has stood before it."""
  order = np.argsort(values, kind="stable")
  sorted_values = values[order]
  starts = np.flatnonzero(np.diff(sorted_values, prepend=sorted_values[0] - 1))
  lengths = np.diff(np.append(starts, len(values)))
  counts = np.empty(len(values), np.int64)
  counts[order] = np.arange(len(values)) - np.repeat(starts, lengths)
  return counts


def schema(config: experiment.DataConfig) -> Schema:
  """User, movie, year and genres; people and movies rated seldom share a row."""
  return Schema(
    {"liked": None},
    {
      "user": Column("categorical", min_count=config.min_count),
      "movie": Column("categorical", min_count=config.min_count),
      "user_earlier": Column("numeric", buckets=config.num_buckets),
      "movie_earlier": Column("numeric", buckets=config.num_buckets),
      "year": Column("numeric", buckets=config.num_buckets),
      "genres": Column("list"),
    },
    groups=("user",),
    time="ts",
  )


def load(config: experiment.DataConfig, embedding_dim: int) -> prepared_table.StoredTable:
  """``--dataset=movietweetings``: the split by time."""
  paths = tuple(files.find(config, name) for name in (RATINGS, MOVIES))
  reader = reader_lib.ArrowTable(ratings(*paths), "movietweetings", paths)
  return from_table.make(reader, schema(config), config, embedding_dim)


def _movies(path: str) -> dict[int, tuple[int | None, list[str]]]:
  """Year and genres by movie."""
  found: dict[int, tuple[int | None, list[str]]] = {}
  with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
    for line in lines:
      if match := _TITLE.match(line.rstrip("\n")):
        genres = [genre for genre in match["genres"].split("|") if genre]
        found[int(match["id"])] = int(match["year"]), genres
  return found
