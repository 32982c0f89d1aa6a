"""MovieLens comes through the stock builder, here over files in its raw form."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.config import ConfigError, experiment
from jaxrec.data import registry


def write_100k(folder) -> list[tuple[int, int, int, int]]:
  """The three files of MovieLens 100k, smaller; user, movie, rating and time of each rating."""
  rng = np.random.default_rng(0)
  ratings = [
    (int(rng.integers(1, 30)), int(rng.integers(1, 50)), int(rng.integers(1, 6)), 880_000_000 + t)
    for t in rng.permutation(600).tolist()
  ]
  folder = folder / "ml-100k"
  folder.mkdir(parents=True)
  lines = ["\t".join(map(str, rating)) for rating in ratings]
  (folder / "u.data").write_text("\n".join(lines) + "\n")
  genres = [["1" if g in (m % 19, m % 7) else "0" for g in range(19)] for m in range(50)]
  movies = [
    f"{m}|Film {m} (1995)|01-Jan-1995||http://x|{'|'.join(genres[m])}" for m in range(1, 50)
  ]
  (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="ISO-8859-1")
  people = [f"{u}|{20 + u}|M|technician|85711" for u in range(1, 30)]
  (folder / "u.user").write_text("\n".join(people) + "\n")
  return ratings


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  return tmp_path


@pytest.mark.filterwarnings("ignore")  # of tensorflow-datasets' own
def test_the_stock_builder_without_tensorflow_yields_ratings_in_order_of_time(cache, monkeypatch):
  import tensorflow_datasets as tfds

  ratings = write_100k(cache / "raw")
  monkeypatch.setattr(
    tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(cache / "raw")
  )
  config = experiment.DataConfig("movielens", test_fraction=0.2)
  found = registry.load(config, embedding_dim=4)
  sizes = [found.num_examples(split) for split in ("train", "val", "test")]
  assert sizes == [432, 48, 120]
  ratings.sort(key=lambda rating: rating[3])
  batch = found.read(np.arange(432))
  assert batch.labels["liked"].tolist() == [float(r >= 4) for _, _, r, _ in ratings[:432]]
  users = found.transforms.rows["user"].names()
  assert [users[k] for k in batch.ids["user"].values] == [str(u) for u, _, _, _ in ratings[:432]]
  genres = found.transforms.rows["genres"].names()
  raw = [
    "Unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
  ]
  for (_, movie, _, _), bag in zip(ratings, batch.ids["genres"].to_lists(), strict=False):
    assert {genres[k] for k in bag} == {raw[movie % 19], raw[movie % 7]}


@pytest.mark.filterwarnings("ignore")
def test_without_a_network_it_says_so(cache, monkeypatch):
  import tensorflow_datasets as tfds

  def fail(self, url):
    raise OSError("Name or service not known")

  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
  with pytest.raises(ConfigError, match=r"movielens/1m-ratings cannot be had .* needs a network"):
    registry.load(experiment.DataConfig("movielens", "1m"), embedding_dim=4)
