import pytest

from bsa_bench.measure.cpu_settings import cpu_load, cpu_settings

CPUS = "sys/devices/system/cpu"


def write(folder, files):
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return folder


def test_settings_are_read_where_the_kernel_tells_them(tmp_path):
    root = write(
        tmp_path,
        {
            f"{CPUS}/cpu0/cpufreq/scaling_governor": "performance",
            f"{CPUS}/intel_pstate/no_turbo": "1",
            f"{CPUS}/smt/active": "1",
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "proc/sys/kernel/randomize_va_space": "2",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        },
    )
    assert cpu_settings(root) == {
        "governor": "performance",
        "turbo": "off",
        "smt": "on",
        "cpu_quota_cores": 1.5,
        "memory_limit_bytes": "unlimited",
        "aslr": 2,
        "transparent_huge_pages": "madvise",
    }


def test_a_system_that_tells_nothing_has_nulls(tmp_path):
    assert set(cpu_settings(tmp_path).values()) == {None}


@pytest.mark.parametrize(("boost", "turbo"), [("1", "on"), ("0", "off"), ("?", None)])
def test_turbo_of_the_generic_driver(tmp_path, boost, turbo):
    assert cpu_settings(write(tmp_path, {f"{CPUS}/cpufreq/boost": boost}))["turbo"] == turbo


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, "unlimited"),
        ({"sys/fs/cgroup/a/cpu.max": "400000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 4.0),
        ({"sys/fs/cgroup/a/cpu.max": "100000 100000", "sys/fs/cgroup/a/b/cpu.max": "300000 100000"}, 1.0),
        ({}, "unlimited"),
    ],
)
def test_the_quota_is_the_least_of_the_group_and_those_above_it(tmp_path, files, cores):
    root = write(tmp_path, {"proc/self/cgroup": "0::/a/b"} | files)
    assert cpu_settings(root)["cpu_quota_cores"] == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", "unlimited"), ("50000", 0.5)])
@pytest.mark.parametrize("inner", ["", "/x"])
@pytest.mark.parametrize("second", ["", "\n0::/"])
def test_the_quota_of_the_older_control_groups_and_of_both_versions_together(tmp_path, quota, cores, inner, second):
    folder = f"sys/fs/cgroup/cpu{inner}"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    root = write(tmp_path, {"proc/self/cgroup": f"5:memory:/y\n4:cpu,cpuacct:/x{second}"} | files)
    assert cpu_settings(root)["cpu_quota_cores"] == cores


def test_this_machine_has_the_same_settings_a_moment_later_and_a_load():
    assert cpu_settings() == cpu_settings()
    load = cpu_load()
    assert load["load_average"] >= 0
    assert load["steal_share"] is None or 0 <= load["steal_share"] < 1
