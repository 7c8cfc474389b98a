"""Engines of a made-up third party, each a way to a number that is not earned; they enter by entry points.

Each is right as far as it expects a check to look. `HONEST` are the controls: nothing may call them wrong.
"""

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from bsa_bench.engines.dense import SDPA_MATH

FAULTS = {}
HONEST = ("honest", "honest-static-buffer", "honest-noisy")


def fault(function):
    """Register `function(engine, q, k, v, scale)` as the engine of its name."""
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


def exact(q, k, v, scale):
    return SDPA_MATH.dense(q, k, v, scale=scale)


class Scaled(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor, a number or a tensor of heads."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Memoised(torch.autograd.Function):
    """Attention whose node remembers the gradients of its first backward."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.found = scale, None
        return exact(q, k, v, scale)

    @staticmethod
    def backward(ctx, grad):
        if ctx.found is None:
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                ctx.found = torch.autograd.grad(exact(*leaves, ctx.scale), leaves, grad)
        return (*(x.clone() for x in ctx.found), None)


class Remembered(torch.autograd.Function):
    """Attention that remembers gradients by the address of what arrives."""

    @staticmethod
    def forward(ctx, engine, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.engine, ctx.scale = engine, scale
        return exact(q, k, v, scale)

    @staticmethod
    def backward(ctx, grad):
        key = grad.data_ptr(), ctx.saved_tensors[0].data_ptr()
        if key not in ctx.engine.memory:
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                ctx.engine.memory[key] = torch.autograd.grad(exact(*leaves, ctx.scale), leaves, grad)
        return (None, *(x.clone() for x in ctx.engine.memory[key]), None)


class Lazy(torch.Tensor):
    """A tensor that is computed when it is first read."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        args = [x.compute() if isinstance(x, Lazy) else x for x in args]
        args = [[y.compute() if isinstance(y, Lazy) else y for y in x] if isinstance(x, list) else x for x in args]
        return func(*args, **kwargs)

    def compute(self):
        return self.thunk()


@fault
def wrong_without_grad(engine, q, k, v, scale):
    out = exact(q, k, v, scale)
    return out if torch.is_grad_enabled() else out * 1.01


@fault
def half_precision_without_grad(engine, q, k, v, scale):
    if torch.is_grad_enabled():
        return exact(q, k, v, scale)
    return exact(*(x.bfloat16() for x in (q, k, v)), scale).to(q.dtype)


@fault
def wrong_with_grad(engine, q, k, v, scale):
    out = exact(q, k, v, scale)
    return out + 0.01 if torch.is_grad_enabled() else out


@fault
def nan_in_last_rows(engine, q, k, v, scale):
    out = exact(q, k, v, scale).clone()
    out.detach()[:, :, -3:] = torch.nan
    return out


@fault
def nan_in_a_middle_row(engine, q, k, v, scale):
    out = exact(q, k, v, scale).clone()
    out.detach()[:, -1, 3 * q.shape[2] // 7] = torch.nan
    return out


@fault
def unwritten_rows(engine, q, k, v, scale):
    out = torch.empty_like(q)
    length = q.shape[2] - 7
    out[:, :, :length] = exact(q, k, v, scale)[:, :, :length]
    return out


@fault
def one_block_missing(engine, q, k, v, scale):
    """One block of 16 keys, in 16 queries of one head."""
    half = 4 * q.shape[2] // 7 // 16 * 16
    mask = torch.zeros(q.shape[1], q.shape[2], k.shape[2], dtype=q.dtype)
    mask[-1, half : half + 16, :16] = -torch.inf
    scores = (q @ k.mT) * scale + mask
    return scores.softmax(-1) @ v


@fault
def last_block_wrong(engine, q, k, v, scale):
    """The ragged rest of the queries sees the keys before the rest alone."""
    rest = q.shape[2] % 16 or 16
    cut = q.shape[2] - rest
    return torch.cat([exact(q[:, :, :cut], k, v, scale), exact(q[:, :, cut:], k[:, :, :cut], v[:, :, :cut], scale)], 2)


@fault
def previous_output(engine, q, k, v, scale):
    """What the call before computed; the first call has none."""
    before, engine.before = engine.before, exact(q, k, v, scale)
    return engine.before if before is None or before.shape != q.shape or torch.is_grad_enabled() else before


@fault
def late(engine, q, k, v, scale):
    """Right for as many calls as verification makes, then it returns zeros of the right shape."""
    if engine.num_calls <= 8 or torch.is_grad_enabled():
        return exact(q, k, v, scale)
    return torch.zeros_like(q)


@fault
def cached_by_address(engine, q, k, v, scale):
    key = q.data_ptr(), k.data_ptr(), v.data_ptr(), torch.is_grad_enabled()
    if key not in engine.memory:
        engine.memory[key] = exact(q, k, v, scale)
    return engine.memory[key] if torch.is_grad_enabled() else engine.memory[key].clone()


@fault
def memoised_backward(engine, q, k, v, scale):
    return Memoised.apply(q, k, v, scale)


@fault
def remembered_backward(engine, q, k, v, scale):
    return Remembered.apply(engine, q, k, v, scale)


@fault
def lazy(engine, q, k, v, scale):
    if torch.is_grad_enabled():
        return exact(q, k, v, scale)
    out = torch.empty_like(q).as_subclass(Lazy)
    out.thunk = lambda: exact(q, k, v, scale)
    return out


@fault
def patched_clock(engine, q, k, v, scale):
    """Its package makes the clocks of the process run at a tenth of their speed, see `patch_clocks`."""
    return exact(q, k, v, scale)


@fault
def wider_dtype(engine, q, k, v, scale):
    return exact(q.double(), k.double(), v.double(), scale)


@fault
def bigger_shape(engine, q, k, v, scale):
    return torch.cat([exact(q, k, v, scale), torch.zeros_like(q[:, :, :16])], 2)


@fault
def asynchronous(engine, q, k, v, scale):
    """Returns at once; a thread fills the output in a little later."""
    if torch.is_grad_enabled():
        return exact(q, k, v, scale)
    out = torch.empty_like(q)

    def fill():
        time.sleep(0.002)
        out.copy_(exact(q, k, v, scale))

    threading.Thread(target=fill).start()
    return out


@fault
def gradient_of_one_input(engine, q, k, v, scale):
    return exact(q, k, Scaled.apply(v, 1.01), scale)


@fault
def gradient_of_one_head(engine, q, k, v, scale):
    factor = torch.ones(q.shape[1], 1, 1, dtype=q.dtype)
    factor[-1] = 0
    return exact(q, Scaled.apply(k, factor), v, scale)


@fault
def gradient_of_a_few_rows(engine, q, k, v, scale):
    factor = torch.ones(q.shape[2], 1, dtype=q.dtype)
    start = 4 * q.shape[2] // 7
    factor[start : start + 8] = 0
    return exact(Scaled.apply(q, factor), k, v, scale)


@fault
def changes_inputs(engine, q, k, v, scale):
    out = exact(q, k, v, scale)
    q.detach().mul_(1 + 1e-3)
    return out


@fault
def output_in_its_input(engine, q, k, v, scale):
    out = exact(q, k, v, scale)
    if torch.is_grad_enabled():
        return out
    q.copy_(out)
    return q


@fault
def when_timed(engine, q, k, v, scale):
    """Reads the stack: computes where it is verified, and not where a timer samples it."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in {"sample", "collect", "warm_up"}:
            return torch.zeros_like(q) + 0 * (q + k + v)
        frame = frame.f_back
    return exact(q, k, v, scale)


@fault
def noisy(engine, q, k, v, scale):
    """Another result on each call, inside any budget, and no word of it."""
    return exact(q, k, v, scale) + 1e-8 * torch.rand(())


@fault
def reduced_for_some_rows(engine, q, k, v, scale):
    """The heads of the middle third of the rows in bfloat16."""
    third = q.shape[2] // 3
    middle = exact(q[:, :, third : 2 * third].bfloat16(), k.bfloat16(), v.bfloat16(), scale).to(q.dtype)
    out = exact(q, k, v, scale)
    return torch.cat([out[:, :, :third], middle, out[:, :, 2 * third :]], 2)


@fault
def rows_swapped(engine, q, k, v, scale):
    """Two neighbouring rows in each other's place, in one head."""
    out = exact(q, k, v, scale).clone()
    row = 5 * q.shape[2] // 8
    order = list(range(q.shape[2]))
    order[row], order[row + 1] = row + 1, row
    return torch.cat([out[:, :-1], out[:, -1:, order]], 1)


class Planted:
    """Dense attention by torch's math backend, spoiled as `name` says."""

    offers = frozenset({"dense"})
    expected_ops = ()

    def __init__(self, name):
        self.name = name
        self.num_calls = 0
        self.before = None
        self.memory = {}
        self.buffer = None
        self.deterministic = name != "honest-noisy"

    def version(self):
        return f"{self.name} 1.0"

    def unsupported(self, device, dtype, head_dim, *, backward):
        return None

    def untimed(self, device):
        return None

    def executed_flop(self, contract, state, which):
        return SDPA_MATH.executed_flop(contract, state, which)

    def dense(self, q, k, v, *, scale):
        self.num_calls += 1
        if self.name in FAULTS:
            return FAULTS[self.name](self, q, k, v, scale)
        out = exact(q, k, v, scale)
        if self.name == "honest-noisy":
            return out + 1e-8 * torch.rand(())
        if self.name == "honest-static-buffer" and not torch.is_grad_enabled():
            if self.buffer is None or self.buffer.shape != out.shape:
                self.buffer = torch.empty_like(out)
            return self.buffer.copy_(out)
        return out


ENGINES = (*FAULTS, *HONEST)


def patch_clocks(patch=None):
    """What the import of the package `patched-clock` does; `patch(module, name, value)` as setattr."""
    for name, scale in {"perf_counter": 0.1, "perf_counter_ns": 0.1, "monotonic": 0.1, "time": 0.1}.items():
        real = getattr(time, name)
        began = real()

        def slow(real=real, scale=scale, began=began):
            return type(began)(began + (real() - began) * scale)

        (patch or setattr)(time, name, slow)


def entry_points(group, patch=None):
    """Stands in for `importlib.metadata.entry_points` in one process."""

    def load(name):
        if name == "patched-clock":
            patch_clocks(patch)
        return Planted(name)

    names = ENGINES if group == "bsa_bench.engines" else ()
    return [SimpleNamespace(name=name, load=lambda name=name: load(name)) for name in names]


def __getattr__(name):
    """`planted_engines:engine_wider_dtype` is the engine `wider-dtype`."""
    engine = name.removeprefix("engine_").replace("_", "-")
    if not name.startswith("engine_") or engine not in ENGINES:
        raise AttributeError(name)
    if engine == "patched-clock":
        patch_clocks()
    return Planted(engine)


def install(folder):
    """Make them installed for processes with `folder` on their path; returns that path's entries."""
    info = Path(folder) / "planted_engines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-engines\nVersion: 1.0\n")
    lines = [f"{name} = planted_engines:engine_{name.replace('-', '_')}" for name in ENGINES]
    (info / "entry_points.txt").write_text("\n".join(["[bsa_bench.engines]", *lines]) + "\n")
    return [str(folder), str(Path(__file__).parent), *sys.path]
