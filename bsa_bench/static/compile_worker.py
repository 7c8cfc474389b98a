"""The process that compiles: reads one request a line from stdin, writes one JSON answer a line to stdout.

Its stderr is a file of the parent's, so that what a compiler wrote before it crashed is not lost.

A process of its own, because a process whose kernels run in Triton's interpreter cannot compile them, because another
revision or another Triton is another set of imports, and because the compiler may abort. It needs of this package
nothing but this file's imports, so that it also runs with an older Triton put before the installed one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

SCHEMA = 2
"""Part of each cache key: raise it when the content of an entry changes."""
FILES = ("kernel.sass", "kernel.ttgir", "kernel.ttir", "kernel.ptx", "record.json")
_SCALAR = r"(?:i1|i8|i16|i32|i64|u8|u16|u32|u64|fp8e4nv|fp8e5|fp8e4b15|fp8e4b8|fp8e5b16|fp16|bf16|fp32|fp64)"
_TYPE = re.compile(rf"\*?k?{_SCALAR}|tensordesc<{_SCALAR}\[[\d, ]+\].*>")
_LOG_BYTES = 4000


class RequestError(Exception):
    """What was asked for cannot be compiled as asked; `kind` is `no kernel`, `import`, `signature` or `cache`.

    After an import that failed the process is no longer as new: its parent ends it.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _OwnModulesOnly(importlib.abc.MetaPathFinder):
    """A package of these folders has the modules that lie in it, and no others.

    Where the project is installed in editable mode, its finder would give a revision that lacks a module the one of
    the checkout.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = [Path(folder).resolve() for folder in folders if folder]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As of any finder; raises ModuleNotFoundError instead of letting a later finder answer."""
        places = [Path(place).resolve() for place in path or ()]
        if not places or not all(any(p.is_relative_to(f) for f in self._folders) for p in places):
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if found is None:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return found


def main() -> None:
    """Answer requests until stdin ends."""
    sys.meta_path.insert(0, _OwnModulesOnly(os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what imported modules print must not break the protocol
    for line in sys.stdin:
        request = json.loads(line)
        answer = _answer(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"list": _list, "compile": _compile}
    start = os.fstat(2).st_size
    try:
        return actions[request["action"]](request)
    except RequestError as error:
        return {"error": {"kind": error.kind, "message": str(error), "log": ""}}
    except Exception as error:  # noqa: BLE001  the one boundary: a compiler may raise anything, which is its answer
        # Triton's own errors point at the kernel's line; of others the trace tells more.
        points_at_line = type(error).__module__ == "triton.compiler.errors"
        trace = "" if points_at_line else "".join(traceback.format_exception(error))[-_LOG_BYTES:]
        return {"error": {"kind": "compiler", "message": _words(error), "log": _written_since(start) or trace}}


def _words(error: BaseException) -> str:
    """The message of an error and of its innermost cause, with their types."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    words = f"{type(error).__name__}: {error}"
    return words if str(cause) in words else f"{words}\n{type(cause).__name__}: {cause}"


def _written_since(start: int) -> str:
    """The end of what was written to stderr, a file, from there on; the compiler's C++ parts write to it too."""
    sys.stderr.flush()
    end = os.fstat(2).st_size
    start = max(start, end - _LOG_BYTES)
    return os.pread(2, end - start, start).decode(errors="replace").strip()


def _list(request: dict[str, Any]) -> dict[str, Any]:
    """The configurations that the project's kernels declare for a shape, by architecture."""
    try:
        module = _catalogue()
    except ImportError as error:
        raise RequestError("no kernel", f"these sources declare no configurations: {error}") from error
    declare, shape = getattr(module, request["set"]), module.Shape(**request["shape"])
    # Before tiles were chosen by architecture, there was one list for all.
    by_arch = "arch" in inspect.signature(declare).parameters
    configs = {
        arch: declare(shape, dtype=request["dtype"], **({"arch": arch} if by_arch else {})) for arch in request["archs"]
    }
    return {"configs": {arch: [asdict(config) for config in found] for arch, found in configs.items()}}


def _catalogue() -> ModuleType:
    """The module that lists all configurations; sources of older revisions have it among the attention's."""
    try:
        return importlib.import_module("bsa_kernels.configurations")
    except ModuleNotFoundError as error:
        if error.name != "bsa_kernels.configurations":
            raise
    return importlib.import_module("bsa_kernels.block_sparse.configurations")


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    import triton

    config, capability = request["config"], int(request["arch"].removeprefix("sm_"))
    function = _function(config["kernel"])
    signature, constants = _arguments(function, config)
    aligned = [i for i, name in enumerate(function.arg_names) if name in set(config["aligned"])]
    options = {key: config[key] for key in ("num_warps", "num_stages", "num_ctas")}
    if config["maxnreg"] is not None:
        options["maxnreg"] = config["maxnreg"]
    options["enable_fp_fusion"] = request["fp_fusion"]
    identity = {
        "schema": SCHEMA,
        "triton": triton.__version__,
        "source": function.cache_key,
        "file": _shortened(function.fn.__code__.co_filename),
        "signature": signature,
        "constants": {name: _constant_identity(value) for name, value in constants.items()},
        "aligned": aligned,
        "options": options,
        "capability": capability,
        "line_info": request["line_info"],
        "fixed_addresses": fix_addresses(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Path(request["cache"]) / key[:2] / key
    if request["use_cache"] and is_complete(folder):
        return {"folder": str(folder), "cached": True}
    with _writing(request["cache"]):  # before it compiles for seconds
        folder.parent.mkdir(parents=True, exist_ok=True)
    content = _build(function, signature, constants, aligned, options, capability, has_line_info=request["line_info"])
    content["record.json"] = json.dumps({**json.loads(content["record.json"]), "identity": identity}, indent=1)
    with _writing(request["cache"]):
        _write(folder, content)
    return {"folder": str(folder), "cached": False}


@contextlib.contextmanager
def _writing(cache: str) -> Iterator[None]:
    """Raises RequestError for what cannot be written."""
    try:
        yield
    except OSError as error:
        raise RequestError("cache", f"cache folder {cache}: {error.strerror}") from error


def is_complete(folder: Path) -> bool:
    """Whether a cache entry has all its files."""
    return all((folder / name).is_file() for name in FILES)


def fix_addresses() -> bool:
    """Have the memory of later children at the same addresses each time; False where the system refuses.

    ptxas 12.9, that of Triton 3.6 for sm_100, gives one or another order of instructions for the same PTX without this.
    """
    libc, current, no_randomization = ctypes.CDLL(None), 0xFFFFFFFF, 0x0040000
    persona = libc.personality(current)
    return persona != -1 and libc.personality(persona | no_randomization) != -1


def _function(kernel: str) -> Any:
    from triton.runtime import JITFunction

    place, _, name = kernel.rpartition(":")
    module = _module(place)
    function = getattr(module, name, None)
    while function is not None and not isinstance(function, JITFunction) and hasattr(function, "fn"):
        function = function.fn  # autotuners and heuristics wrap a kernel; the configuration takes their place
    if not isinstance(function, JITFunction):
        known = sorted(n for n, value in vars(module).items() if hasattr(value, "fn") or isinstance(value, JITFunction))
        found = "is no @triton.jit function" if hasattr(module, name) else "is not there"
        raise RequestError(
            "no kernel", f"kernel {kernel!r}: {name!r} {found}; {place} has {', '.join(known) or 'none'}"
        )
    return function


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except Exception as error:
            words = str(error) if isinstance(error, ImportError) else _words(error)
            raise RequestError("import", f"module {place!r} cannot be imported: {words}") from error
    path = Path(place).resolve()
    if not path.is_file():
        raise RequestError("no kernel", f"file {place!r} is not there")
    name = f"_bsa_static_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RequestError("import", f"file {place!r} cannot be imported: {_words(error)}") from error
    return module


def _arguments(function: Any, config: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """The signature in the order of the arguments, and the constants; a constant's default counts."""
    given, constants = dict(config["signature"]), dict(config["constexprs"])
    where = f"kernel {config['kernel']!r}: signature"
    unknown = [name for name in [*given, *constants] if name not in function.arg_names]
    if unknown:
        raise RequestError(
            "signature", f"{where}: no argument {unknown[0]!r}; there are {', '.join(function.arg_names)}"
        )
    if doubled := [name for name in given if name in constants]:
        raise RequestError("signature", f"{where}: {doubled[0]!r} has a type and a value, expected one of them")
    for parameter in function.params:
        name = parameter.name
        if name in given and parameter.is_constexpr:
            raise RequestError("signature", f"{where}: {name!r} is a tl.constexpr, expected its value under constexprs")
        if name not in given and name not in constants:
            if not parameter.has_default:
                place = "constexprs" if parameter.is_constexpr else "signature"
                raise RequestError("signature", f"{where}: argument {name!r} is missing, expected it under {place}")
            constants[name] = parameter.default
        elif name in given and not _TYPE.fullmatch(given[name]):
            expected = "a type of Triton such as '*bf16', 'i32' or 'fp32'"
            raise RequestError("signature", f"{where}: {name!r}: got {given[name]!r}, expected {expected}")
    aligned = [name for name in config["aligned"] if name not in given]
    if aligned:
        raise RequestError("signature", f"{where}: divisible_by_16 names {aligned[0]!r}, which has no type there")
    constants = {name: _constant(value) for name, value in constants.items()}
    return {name: given.get(name, "constexpr") for name in function.arg_names}, constants


def _constant(value: Any) -> Any:
    import triton.language as tl

    if isinstance(value, tl.constexpr):
        return value.value
    if isinstance(value, str) and value.startswith("tl."):
        found = getattr(tl, value.removeprefix("tl."), None)
        if found is None:
            raise RequestError("signature", f"constexprs: triton.language has no {value.removeprefix('tl.')!r}")
        return found
    if isinstance(value, str) and re.fullmatch(r".+\.py:[A-Za-z_]\w*", value):
        return _function(value)
    return value


def _constant_identity(value: Any) -> str:
    """What tells one constant from another; of a jitted function its source, and that of all that it calls."""
    from triton.runtime import JITFunction

    return f"{value.__name__} {value.cache_key}" if isinstance(value, JITFunction) else str(value)


def _build(
    function: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    aligned: list[int],
    options: dict[str, Any],
    capability: int,
    *,
    has_line_info: bool,
) -> dict[str, str]:
    """Compile and disassemble. The one place that knows how Triton 3.6 to 3.9 are asked to compile ahead of time."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    # Read by the compiler when it compiles, not when it is imported.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "0" if has_line_info else "1"
    knobs.runtime.add_stages_inspection_hook = _mend_stages
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    else:
        from triton.compiler import ASTSource
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    start = time.perf_counter()
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    compile_s = time.perf_counter() - start
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        # What the data flow analysis would annotate, jumps over the branch stack, no compiler makes since sm_70.
        listing = _run(tools / "nvdisasm", "-c", "--no-dataflow", *(["-gi"] if has_line_info else []), file.name)
        usage = _run(tools / "cuobjdump", "-res-usage", file.name)
    metadata = compiled.metadata
    found = dict(re.findall(r"(REG|STACK):(\d+)", usage.partition(f"Function {metadata.name}:")[2]))
    record = {
        "kernel_name": metadata.name,
        "registers": int(found["REG"]),
        "stack_bytes": int(found["STACK"]),
        "shared_bytes": int(metadata.shared),
        "tensor_memory_columns": int(getattr(metadata, "tmem_size", 0) or 0),
        "num_warps": int(metadata.num_warps),
        "cubin_bytes": len(compiled.asm["cubin"]),
        "compile_s": round(compile_s, 3),
    }
    shorten = functools.cache(_shortened)  # a few files, named by every line
    listing = re.sub(r'(?:(?<=File ")|(?<=inlined at "))[^"]+', lambda found: shorten(found[0]), listing)
    # Gluon begins at TTGIR.
    stages = {name: compiled.asm.get(name, "") for name in ("ttgir", "ttir")}
    texts = {
        f"kernel.{name}": re.sub(r'(?<=loc\(")/[^"]+(?=")', lambda found: shorten(found[0]), text)
        for name, text in stages.items()
    }
    return {
        "kernel.sass": listing,
        **texts,
        "kernel.ptx": compiled.asm["ptx"],
        "record.json": json.dumps(record),
    }


def _mend_stages(*stages_call: Any) -> tuple[str, str] | None:
    """Put `mend_lines` after the stage that makes PTX; without arguments Triton asks what to add to its cache key."""
    if not stages_call:
        return "", ""
    stages = stages_call[1]
    make = stages["ptx"]
    stages["ptx"] = lambda source, metadata: mend_lines(make(source, metadata))
    return None


def mend_lines(ptx: str) -> str:
    """Leave each block of inline assembly, which Triton's plain loads are, on the line that it begins on.

    LLVM counts a line on from each of its statements to the next (Triton 3.9).
    """
    block = re.compile(r"^\t// begin inline asm$.*?^\t// end inline asm$", re.MULTILINE | re.DOTALL)
    return block.sub(lambda found: re.sub(r"(?m)^\t\.loc\t.*\n", "", found[0]), ptx)


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _shortened(file: str) -> str:
    """A file's name below the folder that it was imported from: the same in every checkout."""
    for root in sorted((r for r in sys.path if r), key=len, reverse=True):
        with contextlib.suppress(ValueError):
            return str(Path(file).relative_to(Path(root).resolve()))
    return file


def _write(folder: Path, content: dict[str, str]) -> None:
    """All files or none, also when two processes write the same entry."""
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        for name, text in content.items():
            (fresh / name).write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:
            if not is_complete(folder):  # else another process was faster
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


if __name__ == "__main__":
    main()
