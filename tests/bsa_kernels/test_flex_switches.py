"""The engine flex compiles, or it does not run: whatever switches `torch.compile` off, nothing eager has its name."""

import pytest
import torch

from bsa_kernels import bsa_attention
from bsa_kernels.engines import flex, flex_needs

CPU = torch.device("cpu")


def qkv():
    return [torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def attend(q, k, v):
    return bsa_attention(q, k, v, grid=(4, 4, 4), engine="flex")


def by_variable(name):
    def switch(monkeypatch):
        monkeypatch.setenv(name, "1")

    return pytest.param(switch, f"switched off by {name}=1", id=name)


def by_stance(*stance, said, **options):
    def switch(monkeypatch):
        torch.compiler.set_stance(*stance, **options)

    return pytest.param(switch, said, id=said)


def by_config(monkeypatch):
    torch._dynamo.config.disable = True  # undone below: to undo it, monkeypatch would delete it


SWITCHES = [
    by_variable("TORCH_COMPILE_DISABLE"),
    by_variable("TORCHDYNAMO_DISABLE"),
    pytest.param(by_config, r"switched off by torch._dynamo.config.disable", id="config"),
    by_stance("force_eager", said="set_stance('force_eager')"),
    by_stance("eager_on_recompile", said="set_stance('eager_on_recompile')"),
    by_stance("eager_then_compile", said="set_stance('eager_then_compile')"),
    by_stance("default", force_backend="eager", said="set_stance(force_backend='eager')"),
]


@pytest.fixture(autouse=True)
def default_stance():
    import torch._dynamo

    yield
    torch.compiler.set_stance("default")
    torch._dynamo.config.disable = False


@pytest.mark.parametrize(("switch", "said"), SWITCHES)
def test_each_switch_is_named_and_nothing_runs(monkeypatch, switch, said):
    assert flex.unsupported(CPU, torch.float32, 32, backward=False) is None
    switch(monkeypatch)
    reason = flex.unsupported(CPU, torch.float32, 32, backward=False)
    assert said in reason
    assert reason.endswith("use the engine gather.")
    with pytest.raises(ValueError, match=r"engine 'flex': torch\.compile ") as error:
        attend(*qkv())
    assert said in str(error.value)
    with pytest.raises(ValueError, match="FlexAttention uncompiled is another program"):  # dense attention too
        flex.compiled_flex_attention()(*qkv())


def test_a_stance_that_compiles_or_fails_is_no_switch(monkeypatch):
    torch.compiler.set_stance("fail_on_recompile")
    assert flex_needs.compiler_off() is None


def test_what_is_not_compiled_for_an_unknown_reason_raises_all_the_same(monkeypatch):
    flex.compiled_flex_attention.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    try:
        with pytest.raises(ValueError, match=r"torch\.compile ran FlexAttention uncompiled"):
            flex.compiled_flex_attention()(*qkv())
    finally:
        flex.compiled_flex_attention.cache_clear()
