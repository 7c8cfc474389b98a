import pytest
import torch
from run_factory import case

from bsa_bench.catalog import build_operator
from bsa_bench.errors import BenchError
from bsa_bench.measure.passes import Subject, Timers, pass_call, time_pass
from bsa_bench.measure.sampling import Protocol
from bsa_bench.result import PASSES, CrossCheck

PROTOCOL = Protocol(warmup_cap_s=0.0, min_samples=4, max_samples=4, seconds=0.0, verify_after=False)
FORWARD = {"permute": 1.0, "select": 2.0, "plan": 4.0, "attend": 8.0, "fill": 16.0}
BACKWARD = {"fill_backward": 32.0, "attend_backward": 64.0, "permute_backward": 128.0}


class ScriptedTimer:
    """Makes the calls and returns scripted seconds."""

    times_phases = True

    def __init__(self, name="host", cache="warm", scale=1.0):
        self.name, self.cache, self.scale = name, cache, scale
        self.num_calls = 0
        self.graph = []
        self.dispatch_s = self.ran_dry = None

    def bind(self, make, *, inputs_bytes):
        self.inputs_bytes = inputs_bytes
        return make(0)

    def sample(self, call):
        self.num_calls += 1
        out = call()
        self.graph.append(torch.is_tensor(out) and out.requires_grad)
        return float(self.num_calls) * self.scale

    def sample_phases(self, call):
        spans = {}
        call(lambda name: spans.__setitem__(name, (FORWARD | BACKWARD)[name]))
        return spans


def subject_of(one, which):
    w = one.workload
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, w.heads, w.num_tokens, w.head_dim, generator=generator) for _ in range(4))
    operator = build_operator(one, scale=0.2)
    return Subject(operator, {"q": q, "k": k, "v": v}, ("q", "k", "v"), None if which == "forward" else grad)


def timed(which, implementation="bsa@gather", timer=None, **others):
    timer = timer or ScriptedTimer()
    subject = subject_of(case(implementation, passes=which), which)
    timers = Timers(timer, **others)
    return time_pass(subject, which=which, timers=timers, protocol=PROTOCOL, first_call_s=0.25), timer


@pytest.mark.slow
@pytest.mark.parametrize("which", PASSES)
def test_warm_up_samples_are_not_among_the_samples_which_stay_in_order(which):
    timing, _ = timed(which)
    assert timing.samples == [2.0, 3.0, 4.0, 5.0]
    assert timing.first_call_s == 0.25
    assert not timing.settled
    assert (timing.timer, timing.cache) == ("host", "warm")


@pytest.mark.slow
def test_a_forward_has_the_phases_of_the_forward_and_their_totals():
    timing, timer = timed("forward")
    assert list(timing.phases) == list(FORWARD)
    assert set(timing.attend_only) == {8.0}
    assert set(timing.attend_select) == {8.0 + 2 + 4}
    assert not any(timer.graph)


@pytest.mark.slow
def test_a_backward_has_only_its_own_phases_and_selects_nothing():
    timing, _ = timed("backward")
    assert list(timing.phases) == list(BACKWARD)
    assert set(timing.attend_only) == set(timing.attend_select) == {64.0}


@pytest.mark.slow
def test_both_together_have_all_phases():
    timing, _ = timed("forward+backward")
    assert list(timing.phases) == [*FORWARD, *BACKWARD]
    assert set(timing.attend_only) == {72.0}
    assert set(timing.attend_select) == {78.0}


@pytest.mark.slow
@pytest.mark.parametrize("which", PASSES)
def test_each_phase_has_a_sample_for_each_sample_of_the_totals(which):
    timing, _ = timed(which)
    lengths = {len(s) for s in timing.phases.values()}
    assert lengths == {len(timing.attend_only)} == {len(timing.attend_select)}
    assert lengths.pop() >= 3


@pytest.mark.parametrize(("which", "name"), [("forward", "attend"), ("backward", "attend_backward")])
def test_the_one_phase_of_dense_attention_is_the_whole(which, name):
    timing, _ = timed(which, "full@sdpa-math")
    assert timing.phases == {name: timing.samples}
    assert timing.attend_only == timing.attend_select == timing.samples


@pytest.mark.slow
def test_dense_forward_and_backward_are_told_apart():
    timing, _ = timed("forward+backward", "full@sdpa-math")
    assert list(timing.phases) == ["attend", "attend_backward"]
    assert set(timing.attend_only) == {72.0}


def counting_operator():
    """Dense attention that counts its forwards and backwards."""
    counts = {"forward": 0, "backward": 0}

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            counts["forward"] += 1
            ctx.save_for_backward(q, k, v)
            return q + k + v

        @staticmethod
        def backward(ctx, grad):
            counts["backward"] += 1
            return grad, grad, grad

    class Counting:
        def forward(self, tensors):
            return Attend.apply(*tensors.values())

    return Counting(), counts


@pytest.mark.parametrize(
    ("which", "forwards", "backwards"), [("forward", 3, 0), ("backward", 1, 3), ("forward+backward", 3, 3)]
)
def test_a_backward_repeats_on_one_graph_and_both_together_make_it_anew(which, forwards, backwards):
    operator, counts = counting_operator()
    q, k, v, grad = (torch.randn(1, 1, 4, 2) for _ in range(4))
    tensors = {"q": q, "k": k, "v": v}
    call = pass_call(Subject(operator, tensors, ("q", "k", "v"), None if which == "forward" else grad), which)
    for _ in range(3):
        call()
    assert counts == {"forward": forwards, "backward": backwards}


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_copy_of_a_subject_has_its_values_in_memory_of_its_own(which):
    subject = subject_of(case("full@sdpa-math", passes=which), which)
    copy = subject.copy()
    assert copy.inputs_bytes == subject.inputs_bytes == (3 if which == "forward" else 4) * 4 * 256 * 32
    for name, x in subject.tensors.items():
        assert torch.equal(copy.tensors[name], x)
        assert copy.tensors[name].data_ptr() != x.data_ptr()
    assert (copy.grad is None) == (which == "forward")
    assert copy.grad is None or copy.grad.data_ptr() != subject.grad.data_ptr()


def dense(timer, **others):
    return timed("forward", "full@sdpa-math", timer, **others)[0]


@pytest.mark.slow
def test_the_other_cache_state_has_samples_of_its_own():
    warm = ScriptedTimer("event", "warm", scale=0.5)
    timing = dense(ScriptedTimer("event", "cold"), warm=warm)
    assert timing.cache == "cold"
    assert timing.warm == [1.0, 1.5, 2.0, 2.5]  # the first call brought the caches to the state
    assert dense(ScriptedTimer()).warm is None


@pytest.mark.slow
def test_another_timer_gives_a_median_and_one_far_off_is_a_flag():
    agreeing = dense(ScriptedTimer("event", "cold"), check=ScriptedTimer("device-span", "cold"))
    assert agreeing.cross_check == CrossCheck(timer="device-span", median_s=3.5, num_samples=4)
    assert agreeing.timer_disagreement == 0
    assert not agreeing.timers_disagree
    far = dense(ScriptedTimer("event", "cold"), check=ScriptedTimer("device-span", "cold", scale=0.96))
    assert far.timer_disagreement == pytest.approx(-0.04)
    assert far.timers_disagree
    short = dense(ScriptedTimer("event", "cold", 1e-5), check=ScriptedTimer("device-span", "cold", 2e-5))
    assert short.timer_disagreement is None
    assert not short.timers_disagree
    assert not dense(ScriptedTimer()).timers_disagree


def test_another_timer_that_cannot_time_leaves_its_reason_and_the_samples_stand():
    class Broken(ScriptedTimer):
        def sample(self, call):
            raise BenchError("CUPTI is in use")

    timing = dense(ScriptedTimer("event", "cold"), check=Broken("device-span", "cold"))
    assert timing.samples == [2.0, 3.0, 4.0, 5.0]
    assert timing.cross_check == CrossCheck(timer="device-span", reason="CUPTI is in use")
    assert timing.timer_disagreement is None


def test_an_error_of_the_operator_under_another_timer_is_raised():
    class Failing(ScriptedTimer):
        def sample(self, call):
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        dense(ScriptedTimer("event", "cold"), check=Failing("device-span", "cold"))


@pytest.mark.parametrize(("dry", "gaps"), [([True, True, True, False], True), ([True, True, False, False], False)])
def test_the_hosts_part_is_the_median_of_the_samples_alone(dry, gaps):
    class Telling(ScriptedTimer):
        def sample(self, call):
            seconds = super().sample(call)
            # The first sample is of the warm-up.
            self.dispatch_s = seconds / 10
            self.ran_dry = [True, *dry][self.num_calls - 1]
            return seconds

    timing = dense(Telling("event", "cold"))
    assert timing.host_s == pytest.approx(0.35)
    assert timing.host_gaps is gaps


@pytest.mark.slow
def test_a_timer_without_phases_has_none_but_the_one_that_is_the_whole():
    class Whole(ScriptedTimer):
        times_phases = False

        def sample_phases(self, call):
            raise AssertionError("not to be asked")

    assert dense(Whole("graph", "cold")).phases == {"attend": [2.0, 3.0, 4.0, 5.0]}
    sparse, _ = timed("forward", timer=Whole("graph", "cold"))
    assert sparse.phases == {}
    assert sparse.attend_only is sparse.attend_select is None
