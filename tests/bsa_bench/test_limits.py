"""Limits of a GPU: kernels in Triton's interpreter, figures from a clock that tells made-up times."""

import json

import pytest
import torch
from compile_cache import cache_folder
from typer.testing import CliRunner

from bsa_bench.cli.app import app
from bsa_bench.errors import EXIT_INFRASTRUCTURE, EXIT_NOTHING_MEASURED, BenchError, StoreError, UsageError
from bsa_bench.limits import measure as measuring
from bsa_bench.limits.ceilings import REPEATS
from bsa_bench.limits.file import Limit, Limits, read_limits, with_limits
from bsa_bench.limits.measure import Sizes, measure
from bsa_bench.limits.triton_limits import add_tiles, make_lists, read_tiles
from bsa_bench.static.devices import DEVICES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Sizes(working_sets_mib=(1, 2), programs=3, list_length=4, copy_mib=1, matmul=16, launches=5)


def tiles(count, rows=16, width=32):
    make = torch.Generator().manual_seed(2)
    return torch.randint(-9, 10, (count, rows, width), generator=make).to(DEVICE, torch.float16)


@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_lists_have_different_tiles_in_the_order_asked_for(length, ascending):
    items = make_lists(7, programs=9, length=length, ascending=ascending, device=DEVICE)
    assert items.shape == (9, length)
    assert all(len(set(row)) == length and set(row) <= set(range(7)) for row in items.tolist())
    assert all(row == sorted(row) for row in items.tolist()) or not ascending or length == 1
    assert length < 7 or ascending or any(row != sorted(row) for row in items.tolist())
    assert items.untyped_storage().nbytes() >= 4 * (items.numel() + 1)  # the kernel reads one item ahead


@pytest.mark.parametrize("length", [1, 5])
def test_reading_tiles_adds_up_what_is_listed(length):
    x = tiles(5)
    items = make_lists(5, programs=4, length=length, ascending=True, device=DEVICE)
    assert torch.equal(read_tiles(x, items), x.float()[items.long()].sum((1, 2)))


def test_adding_to_tiles_counts_how_often_each_is_listed():
    y = torch.zeros(6, 16, 32, device=DEVICE)
    items = make_lists(6, programs=8, length=3, ascending=False, device=DEVICE)
    add_tiles(y, items)
    counts = torch.bincount(items.flatten().long(), minlength=6)
    assert [set(tile.flatten().tolist()) for tile in y] == [{float(n)} for n in counts]


def clock(seconds):
    calls = []

    def tick(call, times):
        calls.append(times)
        for _ in range(times):
            call()
        return seconds

    tick.calls = calls
    return tick


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels that are compiled for a GPU do not run on a CPU")
def test_figures_are_what_was_moved_over_the_time_it_took():
    tick = clock(0.5)
    found = {limit.name: limit for limit in measure(DEVICE, tick, SMALL)}
    tile = 64 * 128 * 2
    assert found["HBM copy"].value == 2 * (1 << 20) / 0.5
    assert found["matrix product"].value == 2 * 16**3 / 0.5
    assert [name for name in found if name.startswith("L2 reads")] == [
        f"L2 reads, {mib} MiB, {order}" for mib in (1, 2) for order in ("ascending", "random")
    ]
    assert found["L2 reads, 2 MiB, random"].value == 3 * 4 * tile / 0.5
    assert found["fp32 additions to memory"].value == 3 * 4 * 2 * tile / 0.5
    assert found["launch"].value == 0.5
    assert "launch in a graph" not in found
    assert tick.calls.count(5) == REPEATS + 1
    assert {limit.unit for limit in found.values()} == {"B/s", "FLOP/s", "s"}


@pytest.mark.parametrize("kernel", ["read_tiles", "add_tiles"])
def test_a_kernel_that_is_wrong_is_not_timed(kernel, monkeypatch):
    right = getattr(measuring, kernel)

    def wrong(x, items):
        found = right(x, items)
        return found + 1 if kernel == "read_tiles" else x.add_(1)

    monkeypatch.setattr(measuring, kernel, wrong)
    tick = clock(1.0)
    with pytest.raises(BenchError, match="wrong sums; nothing was measured"):
        list(measure(DEVICE, tick, SMALL))
    assert tick.calls == []


def limits(device="NVIDIA H200", **values):
    reads = {"L2 reads, 8 MiB, random": 5e12, "L2 reads, 8 MiB, ascending": 6e12, "HBM copy": 4e12}
    found = [Limit(name=n, value=v, unit="B/s", detail=f"{n}!") for n, v in (reads | values).items()]
    return Limits(device_name=device, date="2026-11-21", packages={"torch": "2.11.0"}, limits=found)


def test_measured_figures_take_the_place_of_published_ones(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(limits().model_dump_json())
    assert read_limits(path) == limits()
    h200, a100 = DEVICES["H200-SXM"], DEVICES["A100-SXM-80GB"]
    ours, other = with_limits([h200, a100], read_limits(path))
    assert other == a100
    assert ours.l2_bytes_per_s.value == 6e12
    assert ours.l2_bytes_per_s.measured
    assert ours.l2_bytes_per_s.source == "L2 reads, 8 MiB, ascending!; bsa-bench limits on NVIDIA H200, 2026-11-21"
    assert ours.hbm_copy_bytes_per_s.value == 4e12
    assert ours.matmul_flop_per_s == h200.matmul_flop_per_s  # not among these limits
    assert ours.l2_added_bytes_per_s is None
    assert with_limits([h200], limits(**{"fp32 additions to memory": 3e12}))[0].l2_added_bytes_per_s.value == 3e12
    assert ours.hbm_bytes_per_s == h200.hbm_bytes_per_s


def test_limits_of_another_device_are_refused():
    with pytest.raises(UsageError, match=r"measured on NVIDIA B200, expected one of H200-SXM; see --device"):
        with_limits([DEVICES["H200-SXM"]], limits("NVIDIA B200"))
    with pytest.raises(UsageError, match="measured on AMD"):
        with_limits([DEVICES["H200-SXM"]], limits("AMD"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "expected what `bsa-bench limits --out` wrote"),
        ("{}", "expected what `bsa-bench limits --out` wrote"),
        (limits(**{"HBM copy": 1e12}).model_dump_json().replace("1000000000000.0", "0.0"), "got: 1 validation error"),
    ],
)
def test_a_file_that_is_none_is_named(content, message, tmp_path):
    path = tmp_path / "limits.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        read_limits(path)
    assert str(path) in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_code_says_so(tmp_path):
    done = CliRunner().invoke(app, ["limits", "--out", str(tmp_path / "limits.json")])
    assert done.exit_code == EXIT_NOTHING_MEASURED
    assert "torch sees no NVIDIA GPU here" in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_found_out_before_anything_is_measured(tmp_path):
    from bsa_bench.cli.limits_command import limits as command

    with pytest.raises(StoreError, match="expected a file in a folder that can be written") as error:
        command(tmp_path / "gone" / "limits.json", as_json=False)
    assert error.value.exit_code == EXIT_INFRASTRUCTURE


@pytest.mark.slow
def test_static_takes_the_figures_for_its_ceilings(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(limits().model_dump_json())
    wanted = ["static", "--only", "attend-bf16-d128-k64", "--arch", "sm_90", "--json", "--limits", str(path)]
    done = CliRunner().invoke(app, [*wanted, "--cache", str(cache_folder())])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["devices"]["H200-SXM"]["l2_bytes_per_s"]["value"] == 6e12
    (row,) = document["configurations"]
    (ceiling,) = row["ceilings"]
    assert ceiling["limited_by"] == "L2"
    # 64 rows x 64 keys x 128 numbers a trip, for 32 KiB of K and V and the next item.
    assert ceiling["overlapped_flop_per_s"] == pytest.approx(6e12 / (2 * 64 * 128 * 2 + 4) * 4 * 64 * 64 * 128)


@pytest.mark.slow
def test_additions_limit_the_fused_backward_where_their_rate_is_known(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(limits(**{"fp32 additions to memory": 2e12}).model_dump_json())
    wanted = ["static", "--only", "grad_fused-bf16-d128-k32", "--arch", "sm_90", "--json", "--limits", str(path)]
    done = CliRunner().invoke(app, [*wanted, "--cache", str(cache_folder())])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["configurations"]
    assert row["traffic"]["added_bytes"] == 32 * 128 * 4  # dq of 32 rows a trip
    (ceiling,) = row["ceilings"]
    assert ceiling["limited_by"] == "additions to memory"
    assert ceiling["overlapped_flop_per_s"] == pytest.approx(row["flop_per_trip"] * 2e12 / (32 * 128 * 4))


@pytest.mark.gpu
def test_a_gpu_has_limits(capsys, tmp_path):
    from bsa_bench.cli.limits_command import limits as command

    assert command(tmp_path / "limits.json", as_json=False) == 0
    found = {each.name: each.value for each in read_limits(tmp_path / "limits.json").limits}
    assert found["HBM copy"] > 1e11
    assert found["L2 reads, 8 MiB, ascending"] > found["HBM copy"] / 2
    assert 0 < found["launch in a graph"] < found["launch"] < 1e-3
    assert "TB/s" in capsys.readouterr().out
