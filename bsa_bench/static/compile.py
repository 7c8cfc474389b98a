"""Compile configurations of kernels in worker processes, side by side, cached by content."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bsa_bench.child_process import PACKAGE, child_environment
from bsa_bench.errors import StoreError, UsageError
from bsa_bench.measure.cpu_settings import usable_threads
from bsa_bench.static.config import ArchName, KernelConfig
from bsa_bench.static.removed import remedy_for

LIMIT_S = 300.0
"""How long one compilation may take."""
_WORKER = Path(__file__).with_name("compile_worker.py")
"""A file, not a module: another revision's package, put first, may have none."""
_LOG_BYTES = 4000
_COMPILER_SETTING = re.compile(
    r"TRITON_|(DISABLE_(LLVM_OPT|PTXAS_OPT|MMA_V\d)|PTXAS_OPTIONS|USE_IR_LOC|LLVM_PASS_PLUGIN_PATH"
    r"|ALLOW_LHS_TMEM_LAYOUT_CONVERSION)$"
)
"""Environment variables by which Triton compiles to something else."""

KernelSet = Literal["shipped", "candidates"]
FailureKind = Literal["no kernel", "signature", "compiler", "crash", "time limit", "unread"]


@dataclass(frozen=True)
class Toolchain:
    """What compiles: a Python with Triton, and folders that come before its own packages.

    `label` names it in tables; `first_paths` hold another Triton, or the sources of another revision.
    """

    label: str = "installed"
    python: str = sys.executable
    first_paths: tuple[Path, ...] = ()

    def environment(self) -> dict[str, str]:
        """The worker's environment: none of Triton's own settings but those set here, so that results compare."""
        environment = child_environment(first=[*self.first_paths, PACKAGE.parent])
        env = {key: value for key, value in environment.items() if not _COMPILER_SETTING.match(key)}
        # The default of floating-point fusion changes in Triton 3.10; each compilation states it; no warning.
        env["TRITON_DEFAULT_FP_FUSION"] = "1"
        return env


@dataclass(frozen=True)
class Settings:
    """How kernels are compiled. Floating-point fusion and line info are stated, never left to a default."""

    cache: Path
    use_cache: bool = True
    fp_fusion: bool = True
    line_info: bool = True
    processes: int = field(default_factory=usable_threads)
    toolchain: Toolchain = Toolchain()


@dataclass(frozen=True)
class Record:
    """What the compiler said of one compilation; `shared_bytes` is what a CTA asks for at launch."""

    kernel_name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_memory_columns: int
    num_warps: int
    cubin_bytes: int
    compile_s: float
    identity: dict[str, Any]

    @property
    def triton(self) -> str:
        """The version that compiled."""
        return str(self.identity["triton"])


@dataclass(frozen=True)
class Compiled:
    """One compiled configuration; its texts lie in the cache."""

    config: KernelConfig
    arch: ArchName
    record: Record
    folder: Path
    was_cached: bool

    @cached_property
    def listing(self) -> str:
        """The disassembly with line info."""
        return self._read("kernel.sass")

    @cached_property
    def ttgir(self) -> str:
        """Triton's last representation with loops and tensors."""
        return self._read("kernel.ttgir")

    @cached_property
    def ttir(self) -> str:
        """Triton's first representation, where loops have all that the source asks of them; empty for Gluon."""
        return self._read("kernel.ttir")

    @cached_property
    def ptx(self) -> str:
        """What ptxas got."""
        return self._read("kernel.ptx")

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Failure:
    """A configuration that gave no code: `message` in the compiler's own words, `log` what else it wrote.

    `unread` ones did compile, but to something that this version cannot read.
    """

    config: KernelConfig
    arch: ArchName
    kind: FailureKind
    message: str
    log: str


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/bsa-bench/static`, by default below `~/.cache`.

    Raises:
        UsageError: the user has no home folder.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bsa-bench" / "static"
    except RuntimeError as error:
        raise UsageError(
            "cache: the user has no home folder to keep compiled code in; set HOME or XDG_CACHE_HOME, or give --cache"
        ) from error


def list_configs(
    kernel_set: KernelSet,
    shape: dict[str, Any],
    archs: Sequence[ArchName],
    *,
    dtype: str,
    toolchain: Toolchain,
    workers: Workers | None = None,
) -> dict[ArchName, list[KernelConfig]]:
    """Ask the toolchain's sources for the configurations that they declare, by architecture.

    Args:
        kernel_set, shape, archs, dtype: which kernels, for which launch.
        toolchain: whose sources.
        workers: of this toolchain, to ask one of them and keep it for `compile_all`; without, one for this call.

    Raises:
        UsageError: these sources declare none (an older revision).
    """
    with _borrowed(workers, toolchain) as own:
        (worker,) = own.take(1)
        answer = worker.ask({"action": "list", "set": kernel_set, "shape": shape, "dtype": dtype, "archs": list(archs)})
    if "error" in answer:
        error = answer["error"]
        raise UsageError("\n".join(filter(None, (f"{toolchain.label}: {error['message']}", error["log"]))))
    found: dict[ArchName, list[dict[str, Any]]] = answer["configs"]
    return {arch: [KernelConfig.model_validate(config) for config in configs] for arch, configs in found.items()}


def compile_all(
    jobs: Sequence[tuple[KernelConfig, ArchName]],
    settings: Settings,
    *,
    workers: Workers | None = None,
    on_done: Callable[[Compiled | Failure], None] = lambda _: None,
) -> list[Compiled | Failure]:
    """Compile each configuration for its architecture, `settings.processes` at a time; results in the order of jobs.

    Args:
        jobs: configurations and architectures.
        settings: how.
        workers: of the settings' toolchain, to use those that there are and keep them; without, some for this call.
        on_done: told about each result.

    Raises:
        StoreError: the cache folder cannot be written.
    """
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    stop = threading.Event()

    def run(job: tuple[KernelConfig, ArchName]) -> Compiled | Failure | None:
        if stop.is_set():
            return None
        worker = idle.get()
        try:
            done = _compile_one(worker, *job, settings)
        finally:
            idle.put(worker)
        on_done(done)
        return done

    with _borrowed(workers, settings.toolchain) as own:
        taken = own.take(max(1, min(settings.processes, len(jobs))))
        for worker in taken:
            idle.put(worker)
        pool = ThreadPoolExecutor(len(taken))
        try:
            return [done for done in pool.map(run, jobs) if done is not None]
        except BaseException:
            stop.set()
            for worker in taken:
                worker.kill()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compile_one(worker: _Worker, config: KernelConfig, arch: ArchName, settings: Settings) -> Compiled | Failure:
    if failure := worker.failed_import(config):
        return _failure(config, arch, {**failure, "kind": "no kernel"})
    request = {
        "action": "compile",
        "config": {**config.model_dump(mode="json"), "aligned": list(config.aligned)},
        "arch": arch,
        "fp_fusion": settings.fp_fusion,
        "line_info": settings.line_info,
        "cache": str(settings.cache),
        "use_cache": settings.use_cache,
    }
    answer = worker.ask(request)
    if error := answer.get("error"):
        if error["kind"] == "import":
            worker.note_failed_import(config, error)
            error = {**error, "kind": "no kernel"}
        if error["kind"] == "cache":
            raise StoreError(error["message"])
        return _failure(config, arch, error)
    folder = Path(answer["folder"])
    record = Record(**json.loads((folder / "record.json").read_text(encoding="utf-8")))
    return Compiled(config, arch, record, folder, answer["cached"])


def _failure(config: KernelConfig, arch: ArchName, error: dict[str, Any]) -> Failure:
    remedy = remedy_for(error["message"])
    message = "\n".join(filter(None, (error["message"], remedy)))
    return Failure(config, arch, error["kind"], message, error["log"])


class Workers:
    """The worker processes of one toolchain, for as long as the context lasts: each loads torch and Triton once."""

    def __init__(self, toolchain: Toolchain) -> None:
        self.toolchain = toolchain
        self._failed_imports: dict[str, dict[str, str]] = {}
        self._stack = contextlib.ExitStack()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take(self, number: int) -> list[_Worker]:
        """The first workers; those that were not there yet, or were killed, start when they are first asked."""
        self._workers = [worker for worker in self._workers if not worker.is_over]
        while len(self._workers) < number:
            self._workers.append(self._stack.enter_context(_Worker(self.toolchain, self._failed_imports)))
        return self._workers[:number]


@contextlib.contextmanager
def _borrowed(workers: Workers | None, toolchain: Toolchain) -> Iterator[Workers]:
    """The workers given, which stay, or new ones, which end with the context."""
    if workers is not None:
        assert workers.toolchain == toolchain
        yield workers
        return
    with Workers(toolchain) as own:
        yield own


class _Worker:
    """One worker process, started when first asked and again after a crash or an import that failed.

    `failed_imports` are the errors of kernels' modules and files, shared by all workers of a toolchain: a process in
    which an import failed keeps what was loaded on the way, with which a second try may succeed.
    """

    def __init__(self, toolchain: Toolchain, failed_imports: dict[str, dict[str, str]]) -> None:
        self._toolchain = toolchain
        self._failed_imports = failed_imports
        self._process: subprocess.Popen[str] | None = None
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
            # Triton's own cache: what it keeps is of no use, but it cannot do without.
            self._scratch = tempfile.TemporaryDirectory(prefix="bsa-bench-triton-", ignore_cleanup_errors=True)
        except OSError as error:
            raise StoreError(f"no temporary folder can be written ({error.strerror}); set TMPDIR to one") from error
        self.is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._log.close()
        self._scratch.cleanup()

    def kill(self) -> None:
        """End the process; nothing is started after this."""
        self.is_over = True
        if self._process is not None:
            _end(self._process)
            self._process.wait()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer; a crash and a compilation without end are answers too."""
        if self._process is None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        is_late, log_start = threading.Event(), os.fstat(self._log.fileno()).st_size

        def end() -> None:
            is_late.set()
            _end(process)

        timer = threading.Timer(LIMIT_S, end)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process = None
        code = process.wait()
        kind, message = "crash", f"the compiler's process ended with {_exit_text(code)}"
        if is_late.is_set():
            kind, message = "time limit", f"the compiler took more than {LIMIT_S:.0f} s"
        return {"error": {"kind": kind, "message": message, "log": self._tail(log_start)}}

    def failed_import(self, config: KernelConfig) -> dict[str, str] | None:
        """The error of an earlier import of the kernel's module or file."""
        return self._failed_imports.get(config.kernel.rpartition(":")[0])

    def note_failed_import(self, config: KernelConfig, error: dict[str, str]) -> None:
        """Keep an error as the answer to all that import the same, and end the process, in which it half happened."""
        self._failed_imports.setdefault(config.kernel.rpartition(":")[0], error)
        if self._process is not None:
            _end(self._process)
            self._process.wait()
            self._process = None

    def _start(self) -> None:
        assert not self.is_over
        self._process = subprocess.Popen(
            [self._toolchain.python, "-P", str(_WORKER)],
            env=self._toolchain.environment() | {"TRITON_CACHE_DIR": self._scratch.name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )

    def _tail(self, start: int) -> str:
        self._log.seek(start)
        return self._log.read().decode(errors="replace")[-_LOG_BYTES:].strip()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a worker with the assembler that it may have started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name
