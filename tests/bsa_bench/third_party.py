"""Engines of a made-up third party, each with one fault, found through entry points as a real one would be."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from bsa_bench.engines.dense import SDPA_MATH

ENGINES = ("exact", "wrong", "wrong-grad", "late", "cached", "crash", "hungry", "fallback", "impostor", "compiling")


class Late(torch.autograd.Function):
    """The identity; its gradient is a little off."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.01


class ThirdParty:
    """Dense attention by torch's math backend, then spoiled as `name` says."""

    offers = frozenset({"dense"})
    expected_ops = ()

    def __init__(self, name):
        self.name = name
        self.num_calls = 0
        self.remembered = None
        if name == "fallback":
            self.expected_ops = ("aten::_scaled_dot_product_cudnn_attention",)
        if name == "impostor":
            self.expected_ops = SDPA_MATH.expected_ops

    def version(self):
        return f"{self.name} 1.0"

    def unsupported(self, device, dtype, head_dim, *, backward):
        return f"needs heads [of 16], not {head_dim}." if head_dim == 8 else None

    def untimed(self, device):
        return None

    def executed_flop(self, contract, state, which):
        return SDPA_MATH.executed_flop(contract, state, which)

    def dense(self, q, k, v, *, scale):
        self.num_calls += 1
        out = SDPA_MATH.dense(q, k, v, scale=scale)
        if self.name == "compiling" and self.num_calls == 1:
            time.sleep(0.3)
        if self.name == "wrong":
            return out * 1.01
        if self.name == "wrong-grad":
            return SDPA_MATH.dense(q, Late.apply(k), v, scale=scale)
        if self.name == "late" and self.num_calls > 20:
            return out * 1.01
        if self.name == "cached":
            self.remembered = out.detach() if self.remembered is None else self.remembered
            return self.remembered
        if self.name == "crash":
            raise RuntimeError("an illegal memory access was encountered\nat line 3")
        if self.name == "hungry":
            return out + torch.empty(1 << 60, dtype=torch.uint8)[0]
        return out


def load(name):
    return SimpleNamespace(name=name, load=lambda: ThirdParty(name))


def entry_points(group):
    """Stands in for `importlib.metadata.entry_points` in one process."""
    return [load(name) for name in ENGINES] if group == "bsa_bench.engines" else []


def __getattr__(name):
    """`third_party:WRONG_GRAD` is the engine `wrong-grad`."""
    engine = name.lower().replace("_", "-")
    if engine not in ENGINES:
        raise AttributeError(name)
    return ThirdParty(engine)


def install(folder):
    """Make them installed for processes with `folder` on their path; returns that path's entries."""
    info = Path(folder) / "third_party-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    lines = [f"{name} = third_party:{name.upper().replace('-', '_')}" for name in ENGINES]
    (info / "entry_points.txt").write_text("\n".join(["[bsa_bench.engines]", *lines]) + "\n")
    return [str(folder), str(Path(__file__).parent), *sys.path]
