"""What a call does on the host while no kernel is launched: launches asked for, Python calls, torch operators, bytes.

`record_launches` puts a recorder in the place of the launch of every compiled Triton kernel, so that a call on CPU
tensors goes the whole way of one on a GPU and computes nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from bsa_bench.gate.counters_record import HostCost, Launch
from bsa_bench.measure.sampling import collector_at_rest
from bsa_bench.workload import short_digest

_OWN = ("bsa_kernels", "bsa_bench")
_WARM_CALLS = 2
_CACHED = type(lru_cache(maxsize=1)(lambda: None))


class UnsteadyError(Exception):
    """Two calls in a row did different things, so that nothing can be compared with them."""


@dataclass
class Recorder:
    """The launches asked for while it listens; otherwise it does nothing, so that it is no part of what is counted."""

    launches: list[Launch] = field(default_factory=list)
    listens: bool = False

    def listen(self, call: Callable[[], object]) -> tuple[Launch, ...]:
        """The launches of a call."""
        self.launches.clear()
        self.listens = True
        try:
            call()
        finally:
            self.listens = False
        return tuple(self.launches)


@contextmanager
def record_launches() -> Iterator[Recorder]:
    """Note launches in place of making them, until the context ends; only kernels that are compiled, not interpreted.

    What a kernel would have written stays as it was allocated. So that indices in it are indices, memory is allocated
    as zeros meanwhile; that calls no operator of torch.
    """
    from triton.runtime.jit import JITFunction

    recorder = Recorder()

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not warmup, "nothing here compiles a kernel beforehand"
        if recorder.listens:
            recorder.launches.append(describe_launch(self, args, kwargs, grid))

    places: list[tuple[Any, str, Any]] = [
        (JITFunction, "run", note),
        *((torch, name, _zeroed(getattr(torch, name))) for name in ("empty", "empty_like", "empty_strided")),
        *((Tensor, name, _zeroed(getattr(Tensor, name))) for name in ("new_empty", "new_empty_strided")),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, function in places:
            setattr(owner, name, function)
        yield recorder
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def describe_launch(kernel: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], grid: Any) -> Launch:
    """Describe a launch.

    Args:
        kernel: a `triton.JITFunction`.
        args, kwargs: as it was called with; what is no parameter among them is an option of the compiler.
        grid: its programs, or what gives them for the arguments by name.
    """
    parameters = {each.name: each for each in kernel.params}
    given = {**dict(zip(parameters, args, strict=False)), **kwargs}
    bound = {name: each.default for name, each in parameters.items() if each.has_default} | given
    constants = {name: each.is_constexpr for name, each in parameters.items()}
    options = {name: _plain(value) for name, value in bound.items() if constants.get(name, True)}
    others = {name: _describe(value) for name, value in bound.items() if not constants.get(name, True)}
    return Launch(
        kernel=f"{kernel.fn.__module__.removeprefix('bsa_kernels.')}:{kernel.fn.__name__}",
        grid=tuple(grid(bound)) if callable(grid) else tuple(grid),
        options=dict(sorted(options.items())),
        arguments=short_digest(others),
    )


def forget_caches(package: str = "bsa_kernels") -> None:
    """Empty every `lru_cache` of a package's modules.

    A hit compares keys, which calls Python functions unless they are the very same objects; so what a call costs would
    depend on who filled the cache.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == package:
            for value in vars(module).values():
                if isinstance(value, _CACHED):
                    value.cache_clear()


def count_host(call: Callable[[], object], recorder: Recorder) -> tuple[tuple[Launch, ...], HostCost]:
    """Count what a call does once caches are warm.

    Raises:
        UnsteadyError: it does not do the same twice; names what differs.
    """
    for _ in range(_WARM_CALLS):
        call()
    first, second = _count_once(call, recorder), _count_once(call, recorder)
    if first != second:
        pairs = {"launches": (first[0], second[0])}
        pairs |= {name: (getattr(first[1], name), getattr(second[1], name)) for name in HostCost.model_fields}
        told = [f"{name}: {a}, then {b}" for name, (a, b) in pairs.items() if a != b]
        raise UnsteadyError(f"two calls in a row differ in {'; '.join(told)}")
    return first


def _count_once(call: Callable[[], object], recorder: Recorder) -> tuple[tuple[Launch, ...], HostCost]:
    launches = recorder.listen(call)
    by_module = count_python_calls(call)
    ops, peak = profile_torch(call)
    return launches, HostCost(
        python_calls=sum(by_module.values()), calls_by_module=by_module, torch_ops=ops, peak_bytes=peak
    )


def count_python_calls(call: Callable[[], object]) -> dict[str, int]:
    """Calls of Python functions on this thread, by module; what this file puts in the place of a launch left out."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename != __file__:
            module = str(frame.f_globals.get("__name__", "unknown"))
            package = module.partition(".")[0]
            found[module if package in _OWN else package] += 1

    with collector_at_rest():
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)
    return dict(sorted(found.items()))


def profile_torch(call: Callable[[], object]) -> tuple[dict[str, int], int]:
    """The torch operators of a call by name, nested ones included, and the peak of what it allocates on the CPU."""
    from torch.autograd.profiler import profile

    with collector_at_rest(), profile(use_kineto=True, profile_memory=True) as profiler:
        result = call()
        del result
    assert profiler.kineto_results is not None
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    ops = Counter(event.name() for event in events if "::" in event.name())
    allocated = peak = 0
    for event in events:
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return dict(sorted(ops.items())), peak


def _zeroed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        x = make(*args, **kwargs)
        if x.device.type == "cpu":
            ctypes.memset(x.data_ptr(), 0, x.untyped_storage().nbytes())
        return x

    return made


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _describe(value: Any) -> Any:
    """An argument without what memory it happens to lie in."""
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), list(value.stride())]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if hasattr(value, "block_shape"):  # a tensor descriptor
        return [_describe(value.base), list(value.shape), list(value.strides), list(value.block_shape)]
    raise TypeError(f"launch: expected tensors, numbers and descriptors as arguments, got {type(value).__name__}")
