"""Limits of processor time and memory, of control groups of both versions as containers and batch systems nest them."""

import resource
from pathlib import Path

import pytest
import report_factory as made
from run_factory import case

from bsa_bench.measure import control_groups, cpu_settings, device_state
from bsa_bench.measure.control_groups import MemoryLimit, cpu_quota, memory_limits, throttled_ns
from bsa_bench.measure.device_state import DeviceWatch
from bsa_bench.result import DeviceState
from bsa_bench.run import cpu, estimate
from bsa_bench.run.estimate import DeviceModel, available_memory_bytes
from bsa_bench.run.order import memory_reason
from bsa_bench.store.derive import derive

GIB = 1 << 30
FIRST = "34 31 0:30 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,{names}"
SECOND = "35 31 0:31 {root} {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"


def write(folder, files):
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return folder


def slurm(tmp_path):
    """A step of a Slurm job, version 1: limits stand at the job, levels above the step; half of its use is cache."""
    group = "slurm/uid_1000/job_42"
    memory = f"sys/fs/cgroup/memory/{group}"
    return write(
        tmp_path,
        {
            "proc/self/cgroup": f"4:memory:/{group}/step_0/task_0\n3:cpu,cpuacct:/{group}/step_0\n0::/",
            "proc/self/mountinfo": FIRST.format(root="/", mount="/sys/fs/cgroup/memory", names="memory")
            + "\n"
            + FIRST.format(root="/", mount="/sys/fs/cgroup/cpu,cpuacct", names="cpu,cpuacct"),
            f"{memory}/memory.limit_in_bytes": 8 * GIB,
            f"{memory}/memory.usage_in_bytes": 6 * GIB,
            f"{memory}/memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * GIB}\ntotal_active_file {GIB}",
            f"{memory}/step_0/task_0/memory.limit_in_bytes": 9223372036854771712,
            f"{memory}/step_0/task_0/memory.usage_in_bytes": GIB,
            f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us": 350000,
            f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us": 100000,
            f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.stat": "nr_periods 9\nnr_throttled 2\nthrottled_time 5000",
        },
    )


def docker(tmp_path):
    """A container without a namespace of its own, version 2: its path is the host's, its group is what is mounted."""
    return write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/docker-ab.scope/inner",
            "proc/self/mountinfo": SECOND.format(root="/system.slice/docker-ab.scope", mount="/sys/fs/cgroup"),
            "sys/fs/cgroup/cpu.max": "250000 100000",
            "sys/fs/cgroup/cpu.stat": "usage_usec 77\nnr_throttled 0\nthrottled_usec 0",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/memory.high": 4 * GIB,
            "sys/fs/cgroup/memory.current": GIB,
            "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB // 4}",
            "sys/fs/cgroup/inner/cpu.stat": "nr_throttled 3\nthrottled_usec 1234",
            "sys/fs/cgroup/inner/memory.max": 2 * GIB,
            "sys/fs/cgroup/inner/memory.current": GIB // 2,
        },
    )


def hybrid(tmp_path):
    """systemd's hybrid: version 2 is mounted somewhere of its own and has no controllers, memory is of version 1."""
    return write(
        tmp_path,
        {
            "proc/self/cgroup": "9:memory:/a b/c\n1:name=systemd:/x\n0::/user.slice",
            "proc/self/mountinfo": SECOND.format(root="/", mount="/sys/fs/cgroup/unified")
            + "\n"
            + FIRST.format(root="/a\\040b", mount="/groups/memory", names="memory"),
            "groups/memory/c/memory.limit_in_bytes": GIB,
            "groups/memory/c/memory.usage_in_bytes": 3 * GIB,
            "sys/fs/cgroup/unified/user.slice/cpu.max": "max 100000",
        },
    )


@pytest.mark.parametrize(
    ("machine", "quota", "waited_ns", "limits"),
    [
        (slurm, 3.5, 5000, [MemoryLimit(8 * GIB, 3 * GIB)]),
        (docker, 2.5, 1_234_000, [MemoryLimit(4 * GIB, GIB * 3 // 4), MemoryLimit(2 * GIB, GIB // 2)]),
        (hybrid, "unlimited", None, [MemoryLimit(GIB, 3 * GIB)]),
        (lambda folder: folder, None, None, None),
    ],
    ids=["slurm", "docker", "hybrid", "none"],
)
def test_limits_of_the_group_and_of_those_above_it_are_found(tmp_path, machine, quota, waited_ns, limits):
    root = machine(tmp_path)
    assert cpu_quota(root) == quota
    assert throttled_ns(root) == waited_ns
    assert memory_limits(root) == limits


def test_what_is_left_of_a_limit_is_never_negative():
    assert MemoryLimit(5, 3).free_bytes == 2
    assert MemoryLimit(3, 5).free_bytes == 0


@pytest.mark.parametrize(("quota", "threads"), [(0.5, 1), (1.9, 1), (2.0, 2), (9.0, 4), ("unlimited", 4), (None, 4)])
def test_threads_are_as_many_as_the_quota_keeps_busy_unless_they_are_given(monkeypatch, quota, threads):
    pinned = []
    monkeypatch.setattr(cpu_settings, "cpu_quota", lambda: quota)
    for module in (cpu_settings, cpu):
        monkeypatch.setattr(module, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(cpu, "_pin", pinned.append)
    monkeypatch.setattr(cpu, "keep_memory_mapped", lambda _: None)
    assert cpu.set_up_cpu(None) == threads == len(pinned[0])
    assert cpu.set_up_cpu(3) == 3
    assert DeviceModel.cpu().flop_per_s == threads * DeviceModel.cpu(threads=1).flop_per_s


@pytest.mark.parametrize("limited", ["control group", "address space"])
def test_a_case_that_a_limit_has_no_room_for_is_skipped(monkeypatch, limited):
    large = case("full@sdpa-math", tokens=4096)
    assert memory_reason(large, DeviceModel.cpu()) is None
    if limited == "control group":
        monkeypatch.setattr(estimate, "memory_limits", lambda: [MemoryLimit(GIB, GIB - (1 << 20))])
    else:
        monkeypatch.setattr(estimate, "address_space_limit", lambda: (2 << 30) + (1 << 20))
    assert available_memory_bytes() == 1 << 20
    assert "922 KiB can be used" in memory_reason(large, DeviceModel.cpu())


def test_a_limit_of_the_address_space_is_one_of_memory(monkeypatch, tmp_path):
    found = {resource.RLIMIT_AS: (4 * GIB, -1), resource.RLIMIT_DATA: (resource.RLIM_INFINITY, -1)}
    monkeypatch.setattr(control_groups.resource, "getrlimit", found.get)
    assert cpu_settings.memory_limit(tmp_path) == 4 * GIB
    assert cpu_settings.memory_limit(docker(tmp_path)) == 2 * GIB
    found[resource.RLIMIT_AS] = (resource.RLIM_INFINITY, -1)
    assert cpu_settings.memory_limit(tmp_path / "nothing there") is None


def test_waiting_for_the_quota_is_counted_while_a_case_is_timed(monkeypatch):
    readings = iter([1_000, 8_000])
    monkeypatch.setattr(device_state, "throttled_ns", lambda: next(readings))
    with DeviceWatch("cpu") as watch:
        pass
    assert watch.state.throttle_ns == {"cpu_quota": 7_000}
    monkeypatch.setattr(device_state, "throttled_ns", lambda: None)
    with DeviceWatch("cpu") as watch:
        pass
    assert watch.state.throttle_ns is None


def test_a_row_that_waited_for_the_quota_is_marked():
    state = DeviceState(throttle_ns={"cpu_quota": 30_000_000})
    (row,) = derive([made.measured(made.case("full@sdpa-flash", 4096), state=state)])
    assert row.quota_wait_s == 0.03
    assert row.doubts == ("held back",)
    calm_state = DeviceState(throttle_ns={"cpu_quota": 0})
    (calm,) = derive([made.measured(made.case("full@sdpa-flash", 4096), state=calm_state)])
    assert calm.doubts == ()


def test_the_machine_that_runs_this_has_limits_that_make_sense():
    if not Path("/proc/self/cgroup").is_file():
        pytest.skip("no control groups here")
    assert cpu_settings.usable_threads() >= 1
    assert available_memory_bytes() > 0
