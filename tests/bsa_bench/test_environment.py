import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from bsa_bench.measure import environment
from bsa_bench.measure.environment import collect_environment, device_kind
from bsa_bench.measure.process_start import ProcessStart
from bsa_bench.run.resume import environment_changes


def test_an_environment_names_the_processor_the_versions_and_the_threads():
    found = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert found.device_kind == "cpu"
    assert found.device_name == found.cpu["model"]
    assert found.cpu["threads"] == 2
    assert found.cpu["memory_bytes"] > 1 << 30
    assert found.packages["torch"].startswith(torch.__version__.split("+")[0])
    assert found.packages["xformers"] is None or found.packages["xformers"][0].isdigit()
    assert found.python == ".".join(map(str, sys.version_info[:3]))


def test_the_hash_is_the_same_a_moment_later():
    assert (
        collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash
        == collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash
    )


def test_the_hash_changes_with_threads_versions_and_variables_that_matter(monkeypatch):
    hashes = [
        collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash,
        collect_environment(started=ProcessStart.now(), threads=1, kind="cpu").hash,
    ]
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    changed = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert changed.variables["MKL_CBWR"] == "AVX2"
    hashes.append(changed.hash)
    monkeypatch.setattr(environment, "version", lambda _: "0")
    hashes.append(collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash)
    assert len(set(hashes)) == 4


def test_the_load_is_recorded_and_does_not_change_the_hash(monkeypatch):
    monkeypatch.setattr(environment, "cpu_load", lambda: {"load_average": 0.1, "steal_share": 0.0})
    quiet = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    monkeypatch.setattr(environment, "cpu_load", lambda: {"load_average": 9.0, "steal_share": 0.2})
    busy = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert (busy.cpu["load_average"], busy.cpu["steal_share"]) == (9.0, 0.2)
    assert busy.hash == quiet.hash


@pytest.mark.parametrize(("key", "value"), [("governor", "powersave"), ("smt", "?"), ("cpu_quota_cores", 1.5)])
def test_a_setting_of_the_machine_changes_the_hash(monkeypatch, key, value):
    before = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    monkeypatch.setattr(environment, "cpu_settings", lambda: before.cpu | {key: value})
    assert collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash != before.hash


def test_malloc_tunables_are_stored(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert (
        collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").variables["GLIBC_TUNABLES"]
        == "glibc.malloc.hugetlb=1"
    )


def test_a_variable_that_does_not_matter_is_not_stored(monkeypatch):
    before = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert "SECRET_TOKEN" not in found.variables
    assert found.hash == before


@pytest.mark.parametrize(
    "name", ["TMPDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME"]
)
def test_a_folder_of_temporary_files_or_caches_is_recorded_and_changes_neither_the_hash_nor_a_resumption(
    monkeypatch, name
):
    monkeypatch.delenv(name, raising=False)
    before = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    monkeypatch.setenv(name, "/scratch/job-17")
    found = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert found.variables[name] == "/scratch/job-17"
    assert found.hash == before.hash
    assert environment_changes(before, found.model_copy(update={"python": "4"})) == f"python: {before.python} -> 4"


@pytest.mark.parametrize("name", ["TRITON_OVERRIDE_DIR", "TRITON_PTXAS_PATH", "CUDA_HOME", "TORCHDYNAMO_DISABLE"])
def test_what_replaces_a_compiler_or_its_code_changes_the_hash(monkeypatch, name):
    before = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    monkeypatch.setenv(name, "/somewhere/else")
    assert collect_environment(started=ProcessStart.now(), threads=2, kind="cpu").hash != before.hash


def test_what_is_set_after_the_start_by_a_library_or_by_ourselves_is_no_part_of_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    started = ProcessStart.now()
    before = collect_environment(started=started, threads=2, kind="cpu")
    for name, value in {"OMP_NUM_THREADS": "2", "KMP_DUPLICATE_LIB_OK": "TRUE", "TRITON_INTERPRET": "1"}.items():
        monkeypatch.setenv(name, value)
    found = collect_environment(started=started, threads=2, kind="cpu")
    assert found.variables["OMP_NUM_THREADS"] == "3"
    assert found.variables.keys().isdisjoint({"KMP_DUPLICATE_LIB_OK", "TRITON_INTERPRET"} - started.variables.keys())
    assert found.hash == before.hash


def test_the_commit_does_not_change_the_hash(monkeypatch):
    monkeypatch.setattr(environment, "_git", lambda: ("abc", False))
    one = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    monkeypatch.setattr(environment, "_git", lambda: ("def", True))
    two = collect_environment(started=ProcessStart.now(), threads=2, kind="cpu")
    assert (one.git_commit, two.git_dirty) == ("abc", True)
    assert one.hash == two.hash


def test_the_commit_is_that_of_the_checkout_and_says_whether_it_was_changed(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    module = tmp_path / "environment.py"
    module.write_text("one\n")
    monkeypatch.setattr(environment, "__file__", str(module))
    assert environment._git() == (None, None)
    git("init", "--quiet")
    assert environment._git() == (None, None)  # a package installed into somebody else's repository
    git("add", "environment.py")
    git("commit", "--quiet", "-m", "one")
    assert environment._git() == (git("rev-parse", "HEAD"), False)
    module.write_text("two\n")
    assert environment._git() == (git("rev-parse", "HEAD"), True)


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment._git() == (None, None)


def test_a_gpu_is_described_by_torch_and_nvml(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, L2_cache_size=50 << 20, total_memory=140 << 30,
        uuid="abc",
    )  # fmt: skip
    nvml = ModuleType("pynvml")
    nvml.NVMLError, nvml.NVML_CLOCK_SM = type("NVMLError", (Exception,), {}), "sm"
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-abc": 1}[uuid]
    nvml.nvmlSystemGetDriverVersion = lambda: b"570.1"
    nvml.nvmlDeviceGetEnforcedPowerLimit = lambda _: 700_000
    nvml.nvmlDeviceGetMaxClockInfo = lambda _, __: 1980
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = collect_environment(started=ProcessStart.now(), threads=None, kind="cuda")
    assert found.device_name == "NVIDIA H200"
    assert found.device_details["num_sms"] == 132
    assert found.device_details["l2_bytes"] == 50 << 20
    assert found.device_details["driver"] == "570.1"
    assert found.device_details["power_limit_w"] == 700
    assert found.device_details["max_sm_clock_hz"] == 1980e6
    assert found.device_details["ecc"] is None  # this NVML does not tell
    nvml.nvmlDeviceGetEccMode = lambda _: [1, 0]
    other = collect_environment(started=ProcessStart.now(), threads=None, kind="cuda")
    assert other.device_details["ecc"] is True
    assert other.hash != found.hash

    def refuse():
        raise nvml.NVMLError("Driver Not Loaded")

    nvml.nvmlInit = refuse
    details = collect_environment(started=ProcessStart.now(), threads=None, kind="cuda").device_details
    assert details["nvml_error"] == "Driver Not Loaded"
    assert "driver" not in details


@pytest.mark.parametrize(("there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_measured_where_there_is_one(monkeypatch, there, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_kind() == kind
