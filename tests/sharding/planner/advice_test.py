"""What a refusal says, and what stays with the hosts: each way out that is named is one."""

from __future__ import annotations

import ast
import collections
import dataclasses
import re

import pytest

from jaxrec import sharding
from jaxrec.config import ConfigError
from jaxrec.sharding.planner import advice, search
from tests.sharding.planner import cases as planner_cases

MLPERF = planner_cases.GOLDEN["mlperf_dcnv2_8_h100"]
TOO_LARGE = dict(
  features=planner_cases.tables(60_000, 400_000, 1_000_000),
  mesh={"data": 4},
  device=dataclasses.replace(
    planner_cases.SMALL_DEVICE, memory_bytes=100 * 10**6, host_bandwidth=1e6
  ),
  batch_size=256,
  moments=sharding.ADAM,
)


def refusal(**changes):
  with pytest.raises(ConfigError) as caught:
    sharding.find_plan(**(TOO_LARGE | changes))
  return str(caught.value)


def test_a_refusal_says_by_how_much():
  message = refusal()
  evaluate = planner_cases.problem.Problem(**TOO_LARGE, profiles={}).evaluator()
  best = search.best(evaluate, search.options_of(evaluate.demands, TOO_LARGE["mesh"])).cost
  assert f"{best.excess_bytes:,} bytes too many" in message
  assert message.startswith("planner: 3 tables do not fit on 4 small ({'data': 4}): the layout")


def capped(features, most):
  return [
    dataclasses.replace(
      f, table=dataclasses.replace(f.table, vocab_size=min(f.table.vocab_size, most))
    )
    for f in features
  ]


def followed(way, asked):
  """Which kind of advice ``way`` is, and the arguments of ``find_plan`` that it changes."""
  if found := re.fullmatch(r"\d+ devices, (\{.*\})", way):
    return "mesh", {"mesh": ast.literal_eval(found[1])}
  if found := re.fullmatch(r"at most ([\d,]+) rows a table, and profiles of these", way):
    most = int(found[1].replace(",", ""))
    profiles = {name: one.of_most_popular(most) for name, one in asked.profiles.items()}
    return "rows", {"features": capped(asked.features, most), "profiles": profiles}
  if re.fullmatch("allow_host=True, which leaves .* with the host", way):
    return "host", {"allow_host": True}
  changes = {}
  if "dtype='bfloat16'" in way:
    changes["features"] = [
      dataclasses.replace(f, table=dataclasses.replace(f.table, dtype="bfloat16"))
      for f in asked.features
    ]
  if "tables.rowwise_adagrad" in way:
    changes["moments"] = sharding.ROWWISE_ADAGRAD
  assert changes, way
  return "bytes", changes


def test_each_way_that_a_refusal_names_is_accepted_as_it_says():
  seen = collections.Counter()
  for seed in range(80):
    asked = planner_cases.random_problem(seed)
    memory = asked.device.memory_bytes
    device = dataclasses.replace(
      asked.device, memory_bytes=memory // (2 + seed % 2), host_memory_bytes=memory // 2
    )
    batch_size = asked.batch_size * (1, 3, 5)[seed % 3]
    asked = dataclasses.replace(asked, device=device, batch_size=batch_size)
    arguments = planner_cases.arguments(asked)
    try:
      sharding.find_plan(**arguments)
    except ConfigError as error:
      ways = str(error).split("What would do: ")[1].split("; or ")
      for way in ways if "nothing tried" not in ways[0] else ():
        kind, changes = followed(way, asked)
        seen[kind] += 1
        assert sharding.find_plan(**(arguments | changes)), (seed, way)
  assert set(seen) == {"mesh", "rows", "host", "bytes"} and min(seen.values()) >= 5, seen


def test_fewer_rows_are_tried_with_profiles_of_as_many():
  asked = planner_cases.random_problem(0)
  most = max(feature.table.vocab_size for feature in asked.features)
  for rows in (1, most - 1, most):
    planner_cases.problem.check(advice._capped(asked, rows))


def test_no_mesh_is_advised_that_cannot_share_the_batch():
  features = planner_cases.tables(3 * 10**8, 15 * 10**7, 5 * 10**7, 40_000, 100, dim=128)
  ask = dict(features=features, device=sharding.H100, moments=sharding.ADAM)
  for batch_size, count in ((65_536, 16), (65_520, 12)):
    with pytest.raises(ConfigError, match=rf"do: {count} devices, \{{'data': {count}\}}; or"):
      sharding.find_plan(mesh={"data": 8}, batch_size=batch_size, **ask)
    assert sharding.find_plan(mesh={"data": count}, batch_size=batch_size, **ask)


def with_tables(**changes):
  return [
    dataclasses.replace(f, table=dataclasses.replace(f.table, **changes))
    for f in TOO_LARGE["features"]
  ]


def test_more_devices_do_as_a_refusal_says():
  count = int(re.search(r"(\d+) devices, \{'data': \1\}", refusal())[1])
  assert count == 8 and sharding.find_plan(**(TOO_LARGE | {"mesh": {"data": count}}))
  assert " devices, " not in refusal(batch_size=4)  # which more devices cannot share


def test_fewer_rows_do_as_a_refusal_says():
  rows = int(re.search(r"at most ([\d,]+) rows a table", refusal())[1].replace(",", ""))
  features = TOO_LARGE["features"]
  assert sharding.find_plan(**(TOO_LARGE | {"features": capped(features, rows)}))
  assert "bytes too many" in refusal(features=capped(features, int(rows * 1.05)))


def test_narrower_rows_or_moments_are_advised_where_they_do():
  assert "dtype" not in refusal() and "rowwise_adagrad, which keeps 4 bytes a row" in refusal()
  assert sharding.find_plan(**(TOO_LARGE | {"moments": sharding.ROWWISE_ADAGRAD}))
  # With memory for less than float32 rows, neither does alone, and both do.
  little = dataclasses.replace(TOO_LARGE["device"], memory_bytes=40 * 10**6)
  message = refusal(device=little)
  assert "dtype='bfloat16' together with tables.rowwise_adagrad" in message
  both = {
    "features": with_tables(dtype="bfloat16"),
    "moments": sharding.ROWWISE_ADAGRAD,
    "device": little,
  }
  assert sharding.find_plan(**(TOO_LARGE | both))
  # With SGD there are no moments to save.
  message = refusal(device=little, moments=sharding.SGD)
  assert "dtype='bfloat16' for the tables" in message and "rowwise" not in message
  assert sharding.find_plan(**(TOO_LARGE | both | {"moments": sharding.SGD}))


def test_tables_stay_with_the_host_only_where_that_is_allowed_and_needed():
  named = re.search(r"allow_host=True, which leaves (.*?) with the host", refusal())[1]
  found = sharding.find_plan(**TOO_LARGE, allow_host=True)
  assert found.host_tables == tuple(named.split(", ")) == ("t2",)
  assert found.held_bytes <= found.available_bytes
  assert {t.name for s in found.plan.sharded for t in s.stack.tables} == {"t0", "t1"}
  assert found.plan.tables.place("t2") is None
  assert found.stacks[-1].name == "host" and found.stacks[-1].table_bytes == 0
  assert re.search(r"^host +t2 +1,000,000 ", str(found), re.MULTILINE)
  fits = TOO_LARGE | {"moments": sharding.ROWWISE_ADAGRAD}
  assert sharding.find_plan(**fits, allow_host=True).host_tables == ()


def test_of_tables_of_one_size_those_asked_least_stay_with_the_host():
  found = sharding.find_plan(**(MLPERF | {"mesh": {"data": 2}, "allow_host": True}))
  assert "C1" in found.host_tables  # 3 ids an example
  assert not {"C21", "C22"} & set(found.host_tables)  # 100 and 27, and as many rows


def test_all_tables_may_stay_with_the_host():
  tiny = dataclasses.replace(TOO_LARGE["device"], memory_bytes=10**6)
  found = sharding.find_plan(**(TOO_LARGE | {"device": tiny}), allow_host=True)
  assert found.host_tables == ("t0", "t1", "t2") and found.plan.sharded == ()


def test_hosts_hold_only_what_their_memory_holds():
  def ask(host_memory_bytes):
    device = dataclasses.replace(TOO_LARGE["device"], host_memory_bytes=host_memory_bytes)
    return {"device": device, "allow_host": True}

  share = 1_000_000 * 32 * (4 + 8) // 4  # of table t2 with Adam's moments
  assert sharding.find_plan(**(TOO_LARGE | ask(share))).host_tables == ("t2",)
  assert sharding.find_plan(**(TOO_LARGE | ask(share - 1))).host_tables == ("t0", "t1")
  for room in (0, 10**6):
    assert "bytes too many" in refusal(**ask(room))
    assert "allow_host" not in refusal(**ask(room) | {"allow_host": False})
  tiny = dataclasses.replace(ask(share - 1)["device"], memory_bytes=200)
  message = refusal(device=tiny, allow_host=True)
  assert re.search(r"the hosts would keep 0.1 GiB a device, and 91.6 MiB are there", message)


@pytest.mark.parametrize("name", ["CPU", "H100", "H200", "V5E", "V5P", "V6E"])
def test_hosts_of_published_devices_have_more_memory_than_a_device(name):
  device = getattr(sharding, name)
  assert device.memory_bytes <= device.host_memory_bytes < 10 * device.memory_bytes
  with pytest.raises(ConfigError, match=rf"{device.name}'?: reserve_bytes must lie in \[0, "):
    dataclasses.replace(device, reserve_bytes=device.memory_bytes)


def test_a_refusal_lists_only_what_was_tried_and_does():
  hopeless = dataclasses.replace(TOO_LARGE["device"], memory_bytes=200)
  assert "nothing tried here alone" in refusal(device=hopeless, allow_host=True)
