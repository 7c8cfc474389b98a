"""Timers and cache states as they are asked for, stored, and held against a run that is resumed."""

import re

import pytest
from run_factory import Bench, case, environment

from bsa_bench.errors import EXIT_INFRASTRUCTURE, MachineError, UsageError
from bsa_bench.measure.choice import TimerSetting, choose_timer, timer_of_run
from bsa_bench.result import Ceiling
from bsa_bench.run.resume import environment_changes
from bsa_bench.store.reader import read_run
from bsa_bench.suite import load_suite, override

CPU = environment()
GPU = CPU.model_copy(update={"device_kind": "cuda", "device_name": "NVIDIA H200"})
COPY = Ceiling(name="copy", value=1e10, unit="B/s", detail="128 MiB")


def choose(timer="auto", cache=None, *, here=GPU, profile="quick"):
    return choose_timer(timer, cache, environment=here, profile=profile)


def test_a_cpu_has_the_host_timer_and_warm_caches():
    for timer in ("auto", "host"):
        for cache in (None, "warm"):
            for profile in ("quick", "report"):
                assert choose(timer, cache, here=CPU, profile=profile) == TimerSetting("host", "warm")


@pytest.mark.parametrize(
    ("timer", "cache", "said"),
    [
        ("event", None, "--timer event"),
        ("device-span", "warm", "--timer device-span"),
        ("auto", "cold", "--cache cold"),
        ("graph", "both", "--timer graph --cache both"),
    ],
)
def test_what_a_cpu_lacks_is_refused_with_what_is_there(timer, cache, said):
    expected = f"{said}: this run measures a CPU (a CPU), expected --timer auto or host and --cache warm"
    with pytest.raises(UsageError, match=re.escape(expected)):
        choose(timer, cache, here=CPU)


def test_a_gpu_is_timed_by_events_cold_and_for_a_report_in_both_states():
    assert choose() == TimerSetting("event", "cold")
    assert choose(profile="report") == TimerSetting("event", "both")
    assert choose("device-span", "warm", profile="report") == TimerSetting("device-span", "warm")
    assert str(choose("graph")) == "timer graph, cache cold"


def test_a_suite_and_an_override_name_timer_and_cache():
    suite = load_suite("quick", device_kind="cuda")
    assert (suite.timer, suite.cache) == ("auto", None)
    changed = override(suite, ["timer=device-span", "cache=both"])
    assert (changed.timer, changed.cache) == ("device-span", "both")
    assert changed.digest != suite.digest
    with pytest.raises(UsageError, match="sundial"):
        override(suite, ["timer=sundial"])


def test_the_runs_line_has_what_was_used_and_the_ceilings(tmp_path):
    bench = Bench(tmp_path)
    bench.run([case()], timing=TimerSetting("host", "warm"), ceilings=(COPY,))
    (line,) = read_run(bench.results / "r").run_lines
    assert (line.timer, line.cache, line.ceilings) == ("host", "warm", [COPY])
    assert timer_of_run(line) == TimerSetting("host", "warm")


def test_a_run_of_before_there_was_a_choice_is_read_and_resumed_with_the_usual_timer(tmp_path):
    bench = Bench(tmp_path)
    bench.run([case()])
    (line,) = read_run(bench.results / "r").run_lines
    assert line.timer is line.cache is None
    assert timer_of_run(line) == TimerSetting("host", "warm")
    of_gpu = line.model_copy(update={"environment": GPU})
    assert timer_of_run(of_gpu) == TimerSetting("event", "cold")
    bench.run([case()], resume=True, timing=TimerSetting("host", "warm"))
    assert len(bench.begun) == 1


def test_a_run_is_not_resumed_with_another_timer_or_cache_state(tmp_path):
    bench = Bench(tmp_path)
    bench.run([case()], timing=TimerSetting("event", "cold"))
    for other in (TimerSetting("graph", "cold"), TimerSetting("event", "both")):
        with pytest.raises(UsageError, match=f"measured with timer event, cache cold, asked for {other}; start a new"):
            bench.run([case()], resume=True, timing=other)
    bench.run([case()], resume=True, timing=TimerSetting("event", "cold"))
    assert len(bench.begun) == 1


def gpu(digest, **details):
    return GPU.model_copy(update={"hash": digest, "device_details": details})


def test_a_gpu_that_was_set_otherwise_meanwhile_is_the_machines_fault(tmp_path):
    bench = Bench(tmp_path)
    bench.run([case()], env=gpu("a", ecc=True, power_limit_w=700.0, driver="570"))
    with pytest.raises(MachineError, match=r"device_details.power_limit_w: 700.0 -> 500.0") as caught:
        bench.run([case()], resume=True, env=gpu("b", ecc=True, power_limit_w=500.0, driver="570"))
    assert caught.value.exit_code == EXIT_INFRASTRUCTURE
    with pytest.raises(UsageError, match=r"device_details.driver: 570 -> 580"):
        bench.run([case()], resume=True, env=gpu("c", ecc=False, power_limit_w=700.0, driver="580"))


def test_the_load_is_no_change_of_the_environment():
    quiet = CPU.model_copy(update={"cpu": {"load_average": 0.1, "steal_share": 0.0, "governor": "performance"}})
    busy = quiet.model_copy(
        update={"cpu": {"load_average": 8.0, "steal_share": 0.5, "governor": "powersave"}, "hash": "b"}
    )
    assert environment_changes(quiet, busy) == "cpu.governor: performance -> powersave"
