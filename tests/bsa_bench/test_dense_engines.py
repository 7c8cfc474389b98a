import sys
from types import ModuleType

import pytest
import torch

from bsa_bench.engines.blocks import FLEX, GATHER, GLUON, TRITON, TRITON_TILED
from bsa_bench.engines.delta_rule import FLA
from bsa_bench.engines.dense import FLASH_ATTN, SDPA_CUDNN, SDPA_EFFICIENT, SDPA_FLASH, SDPA_MATH, XFORMERS
from bsa_bench.prepare import profiled_names

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCALE = 0.3


def tensors(length=70, dtype=torch.float64, heads=2, head_dim=16, batch=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, heads, length, head_dim, generator=generator, dtype=dtype) for _ in "qkv"]


def by_definition(q, k, v, scale=SCALE):
    return ((q.double() @ k.double().mT) * scale).softmax(-1) @ v.double()


@pytest.mark.parametrize("engine", [SDPA_MATH, SDPA_FLASH, GATHER], ids=lambda e: e.name)
def test_dense_attention_and_its_gradients_follow_the_definition(engine):
    q, k, v = (x.requires_grad_() for x in tensors())
    grad = torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(9))
    found, truth = engine.dense(q, k, v, scale=SCALE), by_definition(q, k, v)
    torch.testing.assert_close(found, truth)
    for a, b in zip(*(torch.autograd.grad(o, (q, k, v), grad) for o in (found, truth)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_length_that_fills_no_block_is_dense_all_the_same_on_a_plan_engine():
    q, k, v = tensors(length=13)
    torch.testing.assert_close(GATHER.dense(q, k, v, scale=SCALE), by_definition(q, k, v))


@pytest.mark.slow
def test_triton_in_its_interpreter_follows_the_definition():
    q, k, v = tensors(length=70, dtype=torch.float32, batch=1, heads=1)
    torch.testing.assert_close(
        TRITON.dense(q, k, v, scale=SCALE).double(), by_definition(q, k, v), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("engine", [SDPA_MATH, SDPA_FLASH], ids=lambda e: e.name)
def test_the_operators_of_a_profiled_call_name_the_backend_that_ran(engine):
    q, k, v = tensors(dtype=torch.float32)
    ops, kernels = profiled_names(lambda: engine.dense(q, k, v, scale=SCALE), cuda=False)
    assert ops & set(engine.expected_ops)
    other = SDPA_FLASH if engine is SDPA_MATH else SDPA_MATH
    assert not ops & set(other.expected_ops)
    assert kernels == set()


def test_a_pinned_backend_that_cannot_run_raises_and_does_not_fall_back():
    q, k, v = tensors(dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"No viable backend|No available kernel"):
        SDPA_CUDNN.dense(q, k, v, scale=SCALE)


def test_what_torch_refuses_becomes_a_reason_with_a_remedy(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    monkeypatch.setattr("bsa_bench.engines.dense.functional.scaled_dot_product_attention", refuse)
    reason = SDPA_FLASH.unsupported(CPU, torch.float32, 64, backward=True)
    assert reason == (
        "torch's FLASH_ATTENTION backend refuses torch.float32 with head size 64 on cpu: "
        "No available kernel. Aborting execution. Try another dtype or engine."
    )


@pytest.mark.parametrize("engine", [SDPA_MATH, SDPA_FLASH], ids=lambda e: e.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_cpu_backends_run_in_every_format(engine, dtype):
    assert engine.unsupported(CPU, dtype, 64, backward=True) is None
    assert engine.untimed(CPU) is None
    assert engine.version().startswith("torch ")


@pytest.mark.parametrize("engine", [SDPA_EFFICIENT, SDPA_CUDNN, FLASH_ATTN, XFORMERS], ids=lambda e: e.name)
def test_what_needs_a_gpu_says_so_on_a_cpu_and_what_to_use(engine):
    reason = engine.unsupported(CPU, torch.float32, 64, backward=False)
    assert "GPUs only" in reason
    assert "use sdpa-flash here" in reason


@pytest.mark.parametrize(("engine", "package"), [(FLASH_ATTN, "flash_attn"), (XFORMERS, "xformers")])
def test_a_missing_package_is_a_reason_with_the_line_that_installs_it(engine, package, monkeypatch):
    monkeypatch.setattr("bsa_bench.engines.dense.find_spec", lambda name: {package: None}[name])
    reason = engine.unsupported(CUDA, torch.bfloat16, 64, backward=False)
    assert "is not installed; pip install bsa-bench[cuda]" in reason


def test_flash_attn_takes_half_precision_and_head_sizes_up_to_256(monkeypatch):
    monkeypatch.setattr("bsa_bench.engines.dense.find_spec", lambda _: object())
    assert "set dtype=bfloat16" in FLASH_ATTN.unsupported(CUDA, torch.float32, 64, backward=False)
    assert "up to 256, not 512" in FLASH_ATTN.unsupported(CUDA, torch.float16, 512, backward=False)
    assert FLASH_ATTN.unsupported(CUDA, torch.float16, 256, backward=True) is None


def with_package(monkeypatch, name, function, home):
    """Install a fake package whose function takes [B, L, H, D], as the real one does."""
    seen = {}

    def attend(q, k, v, **options):
        seen.update(options, shape=tuple(q.shape))
        scale = options.get("softmax_scale", options.get("scale"))
        return by_definition(*(x.transpose(1, 2) for x in (q, k, v)), scale=scale).transpose(1, 2)

    module = ModuleType(home)
    setattr(module, function, attend)
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, home, module)
    return seen


@pytest.mark.parametrize(
    ("engine", "names", "option"),
    [
        (FLASH_ATTN, ("flash_attn", "flash_attn_func", "flash_attn"), "softmax_scale"),
        (XFORMERS, ("xformers", "memory_efficient_attention", "xformers.ops"), "scale"),
    ],
    ids=["flash-attn", "xformers"],
)
def test_packages_get_their_layout_and_the_scale(engine, names, option, monkeypatch):
    seen = with_package(monkeypatch, *names)
    q, k, v = tensors()
    out = engine.dense(q, k, v, scale=SCALE)
    assert seen == {option: SCALE, "shape": (2, 70, 2, 16)}
    torch.testing.assert_close(out, by_definition(q, k, v))


def test_a_version_names_the_package_or_is_null():
    assert FLASH_ATTN.version() is None or FLASH_ATTN.version().startswith("flash-attn ")
    assert TRITON.version().startswith("triton ")


def test_only_triton_is_untimed_on_a_cpu_and_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert [e.name for e in (GATHER, FLEX, TRITON) if e.untimed(CPU)] == ["triton"]
    assert "interpreter" in TRITON.untimed(CPU)
    assert TRITON.untimed(CUDA) is None


@pytest.mark.parametrize("engine", [TRITON, TRITON_TILED, GLUON, FLA], ids=lambda e: e.name)
def test_kernels_that_are_interpreted_on_a_gpu_are_not_timed(monkeypatch, engine):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert engine.untimed(CUDA) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert engine.untimed(CUDA).startswith("TRITON_INTERPRET is set: Triton ran in its interpreter")
    assert GATHER.untimed(CUDA) is None
