"""Writes a small run for later versions to open: ``python make.py CHECKOUT``, by CHECKOUT's Python.

Into the folder it is called in: ``clicks.csv``, a ``run`` of 6 steps, the folder ``prepared`` of
its data, and ``resumed``, the same run after 12 steps. Packed beside this file, by commit.
"""

from __future__ import annotations

import csv
import os
import pathlib
import random
import shutil
import subprocess
import sys

FLAGS = (
  "--dataset=table", "--data_dir=clicks.csv", "--label=click", "--time=day", "--model=dlrm",
  "--batch_size=32", "--table_optimizer=adam", "--set=model.embedding_dim=4",
  "--set=model.bottom_mlp=4", "--set=model.top_mlp=4,1", "--set=model.dropout=0.2",
  "--set=eval_every=6", "--set=checkpoint_every=6", "--set=log_every=2", "--set=baseline_steps=0",
)  # fmt: skip
# The tests' own flags: programs that are compiled alike give the same bits.
XLA_FLAGS = (
  "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 "
  "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_max_isa=AVX"
)


def write_clicks(path: pathlib.Path) -> None:
  rng = random.Random(0)
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["click", "user", "item", "age", "day"])
    for row in range(400):
      user, item = rng.randrange(20), rng.randrange(8)
      click = rng.random() < 0.15 + 0.6 * (user * item % 3 == 0)
      age = rng.randrange(15, 80) if row % 9 else ""
      writer.writerow([int(click), f"u{user}", f"i{item}", age, f"2024-01-{1 + row // 20:02d}"])


def train(checkout: pathlib.Path, workdir: str, steps: int) -> None:
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu", "NPROC": "16", "XLA_FLAGS": XLA_FLAGS, "JAXREC_CACHE": "cache",
    "PYTHONPATH": str(checkout),
  }  # fmt: skip
  words = [str(checkout / "train.py"), *FLAGS, f"--steps={steps}", f"--workdir={workdir}"]
  subprocess.run([sys.executable, *words], check=True, env=environment)


def main(checkout: pathlib.Path) -> None:
  write_clicks(pathlib.Path("clicks.csv"))
  train(checkout, "run", 6)
  shutil.copytree("run", "resumed")
  train(checkout, "resumed", 12)
  (prepared,) = pathlib.Path("cache/tables").iterdir()
  prepared.rename("prepared")
  for workdir in (pathlib.Path("run"), pathlib.Path("resumed")):
    shutil.rmtree(workdir / "tensorboard")
    (workdir / "curves.png").unlink()
    for path in (*workdir.rglob("commit_success.txt"), workdir / "result.json"):
      path.write_text(path.read_text().replace(f"{os.getcwd()}/", ""))  # where it was made


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]).resolve())
