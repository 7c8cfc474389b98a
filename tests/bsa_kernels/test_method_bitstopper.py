"""BitStopper's simulation: against a loop over single pairs and bits, and the laws of its counters."""

import math
from itertools import pairwise

import pytest
import torch

from bsa_kernels.methods.bitstopper import Counters, quantisation_step, reference, simulate
from bsa_kernels.methods.bitstopper import simulation as simulation_module

SCALE = 0.3


def qkv(length, *, keys=None, head_dim=6, value_dim=5, batch=1, heads=2, size=1.0, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)

    def draw(tokens, dim):
        return torch.randn(batch, heads, tokens, dim, generator=make, dtype=torch.float64).to(dtype)

    keys = keys or length
    return draw(length, head_dim) * size, draw(keys, head_dim), draw(keys, value_dim)


def integers(x, bits):
    """Quantised values as nested lists of Python integers, and the step: from the definition, without the package."""
    top = 2 ** (bits - 1) - 1
    step = max(abs(value) for value in x.flatten().tolist()) / top
    return [[[round(v / step) for v in row] for row in head] for head in x.double().flatten(0, 1).tolist()], step


def pair_by_pair(q, k, v, *, scale=SCALE, bits=12, alpha=0.6, radius=5.0, causal=False):
    """Run every pair alone, in Python integers: planes fetched, survivors, bounds that contain the score, outputs."""
    q_int, q_step = integers(q, bits)
    k_int, k_step = integers(k, bits)
    unit = q_step * k_step * scale
    margin = alpha * radius / unit
    planes, survivors, outputs = [], [], []
    for h, (queries, keys) in enumerate(zip(q_int, k_int, strict=True)):
        for i, query in enumerate(queries):
            seen = range(i + 1 if causal else len(keys))
            score = {j: sum(a * b for a, b in zip(query, keys[j], strict=True)) for j in seen}
            partial, fetched = dict.fromkeys(seen, 0), dict.fromkeys(seen, 0)
            live = set(seen)
            low, high = sum(min(x, 0) for x in query), sum(max(x, 0) for x in query)
            for plane in range(bits):
                weight = 2 ** (bits - 1 - plane)
                for j in live:
                    # Two's complement: a negative number is 2^bits above itself.
                    ones = [(x % 2**bits) >> (bits - 1 - plane) & 1 for x in keys[j]]
                    dot = sum(a for a, bit in zip(query, ones, strict=True) if bit)
                    partial[j] += (-weight if plane == 0 else weight) * dot
                    fetched[j] += 1
                    assert partial[j] + (weight - 1) * low <= score[j] <= partial[j] + (weight - 1) * high
                best = max(partial[j] + (weight - 1) * low for j in live)
                live = {j for j in live if partial[j] + (weight - 1) * high >= best - margin}
            assert live == {j for j in seen if score[j] >= max(score.values()) - margin}
            weights = {j: math.exp((score[j] - max(score.values())) * unit) for j in live}
            values = v.double().flatten(0, 1)[h]
            outputs.append(sum(w * values[j] for j, w in weights.items()) / sum(weights.values()))
            planes += fetched.values()
            survivors.append(live)
    return torch.stack(outputs).view(*q.shape[:-1], -1), planes, survivors


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("bits", "size"), [(12, 3.0), (4, 1.0), (2, 1.0), (16, 5.0)])
def test_the_simulation_equals_pairs_run_one_by_one_in_python_integers(bits, size, causal):
    q, k, v = qkv(11, size=size)
    options = {"bits": bits, "alpha": 0.3, "causal": causal}
    o, counters = simulate(q, k, v, scale=SCALE, **options)
    want, planes, survivors = pair_by_pair(q, k, v, **options)
    torch.testing.assert_close(o, want)
    assert counters.num_pairs == len(planes)
    assert counters.planes_histogram == {n: planes.count(n) for n in range(1, bits + 1)}
    assert counters.num_survivors == counters.v_rows_fetched == sum(map(len, survivors))
    assert counters.mean_planes == pytest.approx(sum(planes) / len(planes))
    assert counters.k_bits_read == counters.one_bit_macs == sum(planes) * 6
    assert counters.survivor_share == counters.num_survivors / len(planes)


@pytest.mark.parametrize("causal", [False, True])
def test_survivors_are_the_keys_within_the_margin_of_the_best(causal):
    q, k, v = qkv(70, head_dim=16, size=2, batch=2)
    v = torch.eye(70, dtype=torch.float64).expand(2, 2, 70, 70)  # so that o shows the weights
    o, counters = simulate(q, k, v, scale=SCALE, causal=causal)
    q_step, k_step = q.abs().max() / 2047, k.abs().max() / 2047
    score = (q / q_step).round() @ (k / k_step).round().mT
    if causal:
        score = score.masked_fill(torch.ones(70, 70, dtype=torch.bool).triu(1), -math.inf)
    oracle = score >= score.amax(-1, keepdim=True) - 0.6 * 5.0 / float(q_step * k_step * SCALE)
    assert torch.equal(o > 0, oracle)
    assert counters.num_survivors == int(oracle.sum())
    assert (o.gather(-1, score.argmax(-1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("mode", ["adaptive", "fixed", "exact"])
def test_an_infinite_margin_is_dense_attention_over_integers(mode):
    q, k, v = qkv(20, keys=33)
    alpha = math.inf if mode != "exact" else 0.1
    o, counters = simulate(q, k, v, scale=SCALE, alpha=alpha, mode=mode)
    q_int, q_step = integers(q, 12)
    k_int, k_step = integers(k, 12)
    logits = torch.tensor(q_int).double() @ torch.tensor(k_int).double().mT * (q_step * k_step * SCALE)
    torch.testing.assert_close(o[0], logits.softmax(-1) @ v[0])
    assert counters.planes_histogram == dict.fromkeys(range(1, 12), 0) | {12: 2 * 20 * 33}
    assert counters.survivor_share == counters.k_traffic_share == counters.modelled_speedup == 1
    assert counters.modelled_dram_bytes == counters.dense_dram_bytes


def test_many_bits_and_an_infinite_margin_approach_dense_attention():
    q, k, v = qkv(20)
    want = (q @ k.mT * SCALE).softmax(-1) @ v
    errors = [float((simulate(q, k, v, scale=SCALE, bits=b, mode="exact")[0] - want).norm()) for b in (4, 8, 12, 16)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2] > 512 * errors[3] > 0


def test_planes_and_survivors_grow_with_alpha():
    q, k, v = qkv(60, size=3)
    found = [simulate(q, k, v, scale=SCALE, alpha=a)[1] for a in (0, 0.1, 0.3, 0.6, 1, 3)]
    for less, more in pairwise(found):
        assert less.num_planes < more.num_planes
        assert less.num_survivors < more.num_survivors
        assert less.modelled_speedup > more.modelled_speedup
        assert less.modelled_dram_bytes < more.modelled_dram_bytes
    assert found[0].num_survivors >= 120  # the best of each row, always


def test_one_decision_after_fixed_planes_keeps_the_same_survivors_and_fetches_all_or_few():
    q, k, v = qkv(60, size=3)
    o, adaptive = simulate(q, k, v, scale=SCALE)
    for planes in (1, 5, 12):
        same, fixed = simulate(q, k, v, scale=SCALE, mode="fixed", fixed_planes=planes)
        torch.testing.assert_close(same, o)
        assert fixed.num_survivors == adaptive.num_survivors
        assert {n for n, pairs in fixed.planes_histogram.items() if pairs} <= {planes, 12}
        assert fixed.num_planes >= adaptive.num_planes


@pytest.mark.slow
def test_the_block_of_rows_in_work_changes_nothing(monkeypatch):
    q, k, v = qkv(17, size=2)
    for causal in (False, True):
        want = simulate(q, k, v, scale=SCALE, causal=causal)
        for pairs in (1, 40, 17 * 16):
            monkeypatch.setattr(simulation_module, "PAIRS_IN_WORK", pairs)
            got = simulate(q, k, v, scale=SCALE, causal=causal)
            torch.testing.assert_close(got[0], want[0])
            assert got[1] == want[1]
        monkeypatch.undo()


@pytest.mark.parametrize(("head_dim", "burst_bytes"), [(64, 64), (128, 64), (16, 64), (24, 9), (24, 2), (8, 3)])
def test_bursts_are_those_that_hold_a_plane_of_a_live_key(head_dim, burst_bytes):
    q, k, v = qkv(29, head_dim=head_dim, size=3, heads=1)
    _, counters = simulate(q, k, v, scale=head_dim**-0.5, burst_bytes=burst_bytes)
    q_int, k_int = (torch.tensor(integers(x, 12)[0][0]) for x in (q, k))
    unit = integers(q, 12)[1] * integers(k, 12)[1] * head_dim**-0.5
    live, keys = torch.ones(29, 29, dtype=torch.bool), max(1, burst_bytes * 8 // head_dim)
    bursts_of_key = 1 if keys > 1 else math.ceil(head_dim / (8 * burst_bytes))
    for plane, found in enumerate(counters.bursts_per_plane):
        touched = [(row, key // keys) for row, key in live.nonzero().tolist()]
        assert found == len(set(touched)) * bursts_of_key
        m = 2 ** (11 - plane) - 1
        partial = q_int @ ((k_int >> (11 - plane)) << (11 - plane)).mT
        low, high = q_int.clamp(max=0).sum(-1, keepdim=True), q_int.clamp(min=0).sum(-1, keepdim=True)
        best = (partial + m * low).amax(-1, keepdim=True)
        live &= partial + m * high >= best - 3.0 / unit
    rows = counters.num_survivors * math.ceil(5 * 12 / (8 * burst_bytes))
    assert counters.modelled_dram_bytes == (sum(counters.bursts_per_plane) + rows) * burst_bytes
    assert counters.modelled_dram_bytes <= counters.dense_dram_bytes


def test_figures_follow_from_the_counts():
    counters = Counters(
        bits=4,
        key_dim=8,
        value_dim=16,
        burst_bytes=2,
        num_pairs=10,
        planes_histogram={1: 4, 2: 3, 3: 1, 4: 2},
        bursts_per_plane=(7, 5, 3, 2),
        num_survivors=2,
    )
    figures = counters.as_dict()
    assert figures["num_planes"] == 4 + 6 + 3 + 8
    assert figures["mean_planes"] == 2.1
    assert figures["k_bits_read"] == figures["one_bit_macs"] == 21 * 8
    assert figures["k_traffic_share"] == 2.1 / 4
    assert figures["survivor_share"] == 0.2
    assert figures["modelled_speedup"] == 10 * (8 + 16) * 4 / (21 * 8 + 2 * 16 * 4)
    assert figures["modelled_dram_bytes"] == 17 * 2 + 2 * 8
    assert figures["dense_dram_bytes"] == 7 * 4 * 2 + 10 * 8
    assert figures["pairs_with_3_planes"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["adaptive", "exact"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_equals_the_simulation_up_to_the_rounding_of_the_output(dtype, mode, causal):
    q, k, v = qkv(50, size=2, dtype=dtype)
    o, _ = simulate(q, k, v, scale=SCALE, mode=mode, causal=causal)
    tokens = torch.tensor([49, 0, 7])
    steps = {"q_step": quantisation_step(q), "k_step": quantisation_step(k)}
    got = reference(q[0, 1], k[0, 1], v[0, 1], scale=SCALE, tokens=tokens, mode=mode, causal=causal, **steps)
    assert o.dtype == dtype
    assert got.dtype == torch.float64
    bound = torch.finfo(dtype).eps * 2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(o[0, 1, tokens].double(), got, rtol=bound, atol=bound)
    # Nothing else gives it: not another head's rows, not all keys where some were stopped.
    other = reference(q[0, 0], k[0, 0], v[0, 0], scale=SCALE, tokens=tokens, mode=mode, causal=causal, **steps)
    assert (o[0, 1, tokens].double() - other).abs().max() > 0.1


def test_the_reference_of_a_head_alone_takes_that_heads_steps():
    q, k, v = qkv(9, heads=1)
    want, _, _ = pair_by_pair(q, k, v)
    torch.testing.assert_close(reference(q[0, 0], k[0, 0], v[0, 0], scale=SCALE), want[0, 0])


def test_all_of_a_tensor_shares_one_step():
    q, k, v = qkv(9)
    louder = q.clone()
    louder[0, 0] *= 1000  # the other head is left with a few levels
    fine, coarse = (simulate(x, k, v, scale=SCALE, mode="exact")[0][0, 1] for x in (q, louder))
    assert (fine - coarse).abs().max() > 1e-3
    assert quantisation_step(louder) == pytest.approx(float(louder.abs().max()) / 2047)


def test_zeros_are_quantised_and_every_key_survives():
    q, k, v = (torch.zeros_like(x) for x in qkv(5))
    o, counters = simulate(q, k, v, scale=SCALE)
    assert not o.any()
    assert counters.survivor_share == 1
    assert quantisation_step(q) == 1


def test_the_output_takes_no_part_in_autograd():
    q, k, v = (x.requires_grad_() for x in qkv(5))
    assert not simulate(q, k, v, scale=SCALE)[0].requires_grad
    assert not reference(q[0, 0], k[0, 0], v[0, 0], scale=SCALE).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "greedy"}, "mode: expected one of adaptive, exact, fixed; got 'greedy'"),
        ({"bits": 1}, "bits: expected 2 to 16, got 1"),
        ({"mode": "fixed", "fixed_planes": 13}, "fixed_planes: expected 1 to bits = 12, got 13"),
        ({"alpha": -0.1}, "alpha: expected a number of at least 0, got -0.1"),
        ({"alpha": math.nan}, "alpha: expected"),
        ({"radius": 0.0}, "radius: expected a finite number above 0, got 0.0"),
        ({"scale": -1.0}, "scale: expected a finite number above 0"),
        ({"burst_bytes": 0}, "burst_bytes: expected at least 1, got 0"),
    ],
)
def test_an_option_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(*qkv(5), **({"scale": SCALE} | options))


def test_shapes_that_do_not_fit_and_values_that_are_not_finite_are_named():
    q, k, v = qkv(5)
    with pytest.raises(ValueError, match=r"k: expected shape \[1, 2, 'Lk', 6\], got \[1, 2, 5, 4\]"):
        simulate(q, k[..., :4], v, scale=SCALE)
    with pytest.raises(ValueError, match=r"k: expected shape \[1, 2, 5, 6\], got \[1, 2, 4, 6\]"):
        simulate(q, k[:, :, :4], v[:, :, :4], scale=SCALE, causal=True)
    with pytest.raises(ValueError, match=r"v: expected shape \[1, 2, 5, 'Dv'\], got \[1, 2, 4, 5\]"):
        simulate(q, k, v[:, :, :4], scale=SCALE)
    with pytest.raises(ValueError, match="q: expected one head"):
        reference(q, k, v, scale=SCALE)
    with pytest.raises(ValueError, match="expected finite values to quantise, got nan"):
        simulate(q * math.nan, k, v, scale=SCALE)
