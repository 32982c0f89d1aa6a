"""A container's memory is what its control groups allow."""

from __future__ import annotations

import os

import pytest

from jaxrec.runs.process import host

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def write(tmp_path):
  def write(path, text):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)

  return write


def test_without_control_groups_it_is_the_machines(tmp_path):
  assert host.memory_bytes(tmp_path) == PHYSICAL


def test_version_2_takes_the_least_of_a_group_and_those_above_it(tmp_path, write):
  write("proc/self/cgroup", "0::/jobs/one\n")
  write("sys/fs/cgroup/jobs/one/memory.max", "max\n")
  assert host.memory_bytes(tmp_path) == PHYSICAL
  write("sys/fs/cgroup/jobs/memory.max", "3000000\n")
  write("sys/fs/cgroup/memory.max", "4000000\n")
  assert host.memory_bytes(tmp_path) == 3_000_000


def test_version_1_is_read_at_its_own_place_or_at_the_containers_top(tmp_path, write):
  write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/box/a1\n0::/\n")
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
  assert host.memory_bytes(tmp_path) == PHYSICAL
  write("sys/fs/cgroup/memory/box/a1/memory.limit_in_bytes", "2000000\n")
  assert host.memory_bytes(tmp_path) == 2_000_000


def test_a_gpu_is_told_to_repeat_its_bits_unless_the_user_says_otherwise(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  host.repeat_bits_on_gpu()
  assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
  host.repeat_bits_on_gpu()
  assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=true"
  monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=d")
  host.repeat_bits_on_gpu()
  assert os.environ["XLA_FLAGS"] == "--xla_dump_to=d --xla_gpu_deterministic_ops=true"
  monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
  host.repeat_bits_on_gpu()
  assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=false"
