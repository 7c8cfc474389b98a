"""Run Gluon kernels for Hopper on a CPU: barriers, TMA, wgmma and warp specialisation, against an unkind scheduler.

Gluon has no interpreter. This runs the very functions of a kernel as Python, with the language replaced by torch
tensors, each partition of warps in a thread of its own, one at a time. At every point where another warp could get
ahead, a seeded generator says who goes on, so that many seeds are many interleavings. What is asynchronous may be late:
a TMA copy poisons its place with NaN when issued and writes it when the scheduler says so; a wgmma reads shared memory
when issued and again when it is waited for, and both must be equal. So it finds wrong results, races between copies and
reads, barriers that are signalled once too often, and deadlocks. It says nothing of speed, of layouts, or of what the
compiler makes of a kernel.

Only what `bsa_kernels` uses is here; anything else is an AttributeError.
"""

from __future__ import annotations

import inspect
import random
import threading
import types
from dataclasses import dataclass

import torch


class SimulationError(AssertionError):
    """The kernel did what hardware would not forgive."""


_HASTES = (1.0, 1.0, 0.1, 0.01)


class Scheduler:
    """Threads that take turns, and copies that are under way; the generator chooses who is next.

    It also makes some threads, and the copies, much slower than the rest. One thread runs at a time: it chooses the
    next, opens that one's gate and waits at its own.
    """

    def __init__(self, seed):
        self._random = random.Random(seed)
        self._haste = {}  # thread -> how likely it goes on
        self._copies_haste = self._random.choice(_HASTES)
        self._gates = {}  # thread -> a lock that is held while it must wait
        self._waiting = {}  # thread -> what it waits for
        self._copies = []
        self.error = None

    def run(self, partitions):
        threads = [
            threading.Thread(target=self._partition, args=(part,), name=str(number), daemon=True)
            for number, part in enumerate(partitions)
        ]
        self._haste = {thread: self._random.choice(_HASTES) for thread in threads}
        for thread in threads:
            self._waiting[thread] = lambda: True
            self._gates[thread] = threading.Lock()
            self._gates[thread].acquire()
        for thread in threads:
            thread.start()
        self._choose()
        for thread in threads:
            thread.join()
        if self.error is not None:
            raise self.error
        if self._copies:  # a copy that nobody waits for would write into the next program's memory
            raise SimulationError("the program ended with a copy under way")

    def copy(self, complete):
        self._copies.append(complete)

    def pause(self, is_ready=lambda: True):
        me = threading.current_thread()
        self._waiting[me] = is_ready
        self._choose()
        self._enter(me)

    @torch.no_grad()  # a setting of the thread
    def _partition(self, function):
        try:
            self._enter(threading.current_thread())
            function()
        except SystemExit:
            return
        except BaseException as error:  # noqa: BLE001  told to the test's own thread
            self._end(error)
        else:
            if self._waiting:
                self._choose()

    def _enter(self, thread):
        self._gates[thread].acquire()
        if self.error is not None:
            raise SystemExit

    def _end(self, error):
        """Let all who wait go, so that they end."""
        self.error = error
        while self._waiting:
            self._gates[self._waiting.popitem()[0]].release()

    def _choose(self):
        """Let a thread go on that can, perhaps after some copies have arrived."""
        while True:
            ready = [thread for thread, is_ready in self._waiting.items() if is_ready()]
            if not ready and not self._copies:
                count = len(self._waiting)
                self._end(SimulationError(f"deadlock: {count} partitions wait, and nothing is under way"))
                return
            ready.sort(key=lambda thread: thread.name)
            hastes = [self._haste[thread] for thread in ready] + [self._copies_haste] * len(self._copies)
            (choice,) = self._random.choices(range(len(hastes)), hastes)
            if choice < len(ready):
                del self._waiting[ready[choice]]
                self._gates[ready[choice]].release()
                return
            self._copies.pop(choice - len(ready))()


@dataclass
class Barrier:
    """An mbarrier: a phase ends when all arrivals and all bytes of it have come."""

    count: int = 0
    pending: int = 0
    bytes: int = 0
    phase: int = 0

    def arrive(self, count=1):
        if self.count == 0:
            raise SimulationError("arrival at a barrier that nobody initialised")
        self.pending -= count
        if self.pending < 0:
            raise SimulationError("more arrivals at a barrier than it counts")
        self._end_phase()

    def deliver(self, size):
        self.bytes -= size
        self._end_phase()

    def _end_phase(self):
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count


class Pointer:
    """Addresses in a tensor's storage, in elements; a scalar or a tensor of them."""

    def __init__(self, tensor, offset=0):
        self.flat = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
        self.offset = offset

    @classmethod
    def to(cls, tensor):
        return cls(tensor, tensor.storage_offset())

    def __add__(self, other):
        return Pointer(self.flat, self.offset + other)

    def load(self, mask, other):
        if not isinstance(self.offset, torch.Tensor):
            return self.flat[self.offset].item()
        offset = self.offset
        if mask is None:
            return self.flat[offset]
        mask = mask.expand(offset.shape)
        return torch.where(mask, self.flat[torch.where(mask, offset, 0)], torch.tensor(other, dtype=self.flat.dtype))

    def store(self, value, mask):
        mask = torch.ones_like(self.offset, dtype=torch.bool) if mask is None else mask.expand(self.offset.shape)
        self.flat[self.offset[mask]] = value.expand(self.offset.shape)[mask].to(self.flat.dtype)


class Shared:
    """A descriptor of shared memory: a view, so that writes are seen through all others."""

    def __init__(self, content):
        self.content = content

    def index(self, index):
        return self.content[index] if isinstance(self.content, list) else Shared(self.content[index])

    def reshape(self, shape):
        return Shared(self.content.view(shape))

    def permute(self, order):
        return Shared(self.content.permute(order))


class Descriptor:
    """A TMA descriptor on the device."""

    def __init__(self, host):
        self.tensor = host.base.as_strided(host.shape, host.strides, host.base.storage_offset())
        self.block_type = types.SimpleNamespace(shape=list(host.block_shape))
        self.dtype = Dtype(host.base.dtype)
        self.layout = host.layout


@dataclass(frozen=True)
class Dtype:
    torch: torch.dtype

    @property
    def primitive_bitwidth(self):
        return self.torch.itemsize * 8


class Wgmma:
    """A product under way: its result when it was issued, and how to make it again."""

    def __init__(self, product):
        self._issued, self._again = product(), product
        self.is_done = False

    def finish(self):
        self.is_done = True
        if not torch.equal(self._again(), self._issued):
            raise SimulationError("an operand of a product changed, or was not there, while the product was under way")

    @property
    def result(self):
        """The product as a tensor, once it has been waited for."""
        return self._issued if self.is_done else self._used()

    def __getattr__(self, name):
        self._used()

    def _used(self):
        raise SimulationError("the result of a product is used that has not been waited for")


class _Anything:
    """Layouts: the compiler checks them."""

    def __init__(self, *_, **__):
        pass

    @staticmethod
    def get_default_for(*_):
        return None


def _as_torch(dtype):
    return dtype.torch if isinstance(dtype, Dtype) else dtype


@dataclass
class Machine:
    """One SM, running one program at a time; `language` is what kernels see in place of Gluon."""

    seed: int
    program: int = 0
    flop: int = 0  # of all products

    def __post_init__(self):
        self.scheduler = None
        self._under_way = threading.local()  # products of each partition

    def pause(self, is_ready=lambda: True):
        if self.scheduler is not None:
            self.scheduler.pause(is_ready)

    # What kernels call.

    def warp_specialize(self, partitions, worker_warps, worker_registers):
        assert len(worker_warps) == len(worker_registers) == len(partitions) - 1
        self.scheduler = Scheduler(self.seed * 7919 + self.program)
        self.scheduler.run([lambda f=function, a=args: f(*a) for function, args in partitions])
        self.scheduler = None

    def allocate(self, dtype, shape, _layout):
        if shape[1:] == [1] and dtype is torch.int64:
            return Shared([Barrier() for _ in range(shape[0])])
        return Shared(torch.full(shape, float("nan"), dtype=_as_torch(dtype)))

    def init(self, barrier, count):
        barrier.count = barrier.pending = count

    def wait(self, barrier, phase):
        self.pause(lambda: barrier.phase != phase)

    def expect(self, barrier, size):
        self.pause()
        barrier.bytes += size
        barrier.arrive()

    def arrive(self, barrier):
        self.pause()
        barrier.arrive()

    def tma_load(self, desc, coordinates, barrier, target):
        self.pause()
        shape = target.content.shape
        assert list(shape) == desc.block_type.shape
        target.content.fill_(float("nan"))
        size = target.content.numel() * target.content.element_size()

        def complete():
            box = torch.zeros(shape, dtype=target.content.dtype)
            ends = [
                min(start + side, end) for start, side, end in zip(coordinates, shape, desc.tensor.shape, strict=True)
            ]
            part = desc.tensor[tuple(slice(start, end) for start, end in zip(coordinates, ends, strict=True))]
            box[tuple(slice(0, side) for side in part.shape)] = part
            target.content.copy_(box)
            barrier.deliver(size)

        self.scheduler.copy(complete)

    def warpgroup_mma(self, a, b, acc, *, use_acc=True, is_async=False):
        assert is_async, "only asynchronous products are simulated"
        self.pause()
        acc = acc.result if isinstance(acc, Wgmma) else acc

        def product():
            left, right = (x.content if isinstance(x, Shared) else x for x in (a, b))
            return left.float() @ right.float() + (acc if use_acc else 0)

        rows, inner = a.shape
        self.flop += 2 * rows * inner * b.content.shape[1]
        made = Wgmma(product)
        self._under_way.products = [*self._products(), made]
        return made

    def warpgroup_mma_wait(self, outstanding, deps):
        """End the oldest products but so many; what is under way still stays so."""
        self.pause()
        products = self._products()
        while len(products) > outstanding:
            products.pop(0).finish()
        found = [x.result if isinstance(x, Wgmma) and x.is_done else x for x in deps]
        return found[0] if len(found) == 1 else tuple(found)

    def _products(self):
        return getattr(self._under_way, "products", [])

    def load(self, pointer, mask=None, other=0):
        return pointer.load(mask, other)

    def store(self, pointer, value, mask=None):
        pointer.store(value, mask)

    def language(self):
        scalar = lambda x: x if isinstance(x, torch.Tensor) else torch.tensor(x)  # noqa: E731
        return types.SimpleNamespace(
            constexpr=lambda x: x,
            int32=torch.int32,
            int64=torch.int64,
            float32=torch.float32,
            BlockedLayout=_Anything,
            SliceLayout=_Anything,
            DotOperandLayout=_Anything,
            NVMMADistributedLayout=_Anything,
            static_range=range,
            to_tensor=lambda x: x,
            program_id=lambda _: _Int(self.program),
            allocate_shared_memory=self.allocate,
            warp_specialize=self.warp_specialize,
            load=self.load,
            store=self.store,
            arange=lambda start, end, _=None: torch.arange(start, end),
            full=lambda shape, value, dtype, _=None: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda x, _: x,
            maximum=torch.maximum,
            max=lambda x, axis: x.amax(axis),
            sum=lambda x, axis: x.sum(axis),
            where=lambda c, a, b: (
                torch.where(c, scalar(a), scalar(b)) if isinstance(c, torch.Tensor) else (a if c else b)
            ),
            exp2=torch.exp2,
            log2=torch.log2,
            gather=lambda x, index, axis: x.gather(axis, index.long()),
        )

    def functions(self, module):
        """The module's kernels as Python functions that see this machine."""
        own = {
            "gl": self.language(),
            "mbarrier": types.SimpleNamespace(
                init=self.init, wait=self.wait, expect=self.expect, arrive=self.arrive, MBarrierLayout=_Anything
            ),
            "tma_load": self.tma_load,
            "warpgroup_mma": self.warpgroup_mma,
            "warpgroup_mma_wait": self.warpgroup_mma_wait,
            "fence_async_shared": lambda: None,
            "__builtins__": __builtins__,
        }
        for name, value in vars(module).items():
            if hasattr(value, "fn"):
                own[name] = types.FunctionType(value.fn.__code__, own, name, value.fn.__defaults__)
            elif type(value).__name__ == "constexpr":
                own[name] = value.value
        return own


class _Int(int):
    """A scalar of a kernel: an integer that can be converted as tensors are."""

    def to(self, _dtype):
        return int(self)

    def __floordiv__(self, other):
        return _Int(int(self) // other)

    def __mod__(self, other):
        return _Int(int(self) % other)

    def __add__(self, other):
        return _Int(int(self) + other)

    def __radd__(self, other):
        return _Int(other + int(self))


class SimulatedKernel:
    """Takes the place of a kernel among the functions of its module: `kernel[(programs,)](*args, **constants)`."""

    def __init__(self, module, kernel, seed=0):
        self._machine = Machine(seed)
        self._function = types.FunctionType(kernel.fn.__code__, self._machine.functions(module))
        self._names = list(inspect.signature(kernel.fn).parameters)
        self.programs = 0

    @property
    def flop(self):
        """FLOP of the matrix products so far."""
        return self._machine.flop

    def __getitem__(self, grid):
        def launch(*args, num_warps, **constants):
            assert num_warps == 4
            bound = dict(zip(self._names, args, strict=False)) | constants
            assert sorted(bound) == sorted(self._names)
            for program in range(grid[0]):
                self._machine.program = program
                self._function(**{name: _on_device(value) for name, value in bound.items()})
                self.programs += 1

        return launch


def _on_device(value):
    if isinstance(value, torch.Tensor):
        return Pointer.to(value)
    return Descriptor(value) if hasattr(value, "block_shape") else value
