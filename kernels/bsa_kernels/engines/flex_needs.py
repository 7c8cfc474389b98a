"""What FlexAttention needs of the machine to be compiled: a compiler that is on, a cache that can be written, C++.

Each function says in a sentence what is missing and what to do, or None. None loads torch's compiler, whose import
makes the cache's folder and fails where it cannot.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_VARIABLES = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")
# `eager_on_recompile` and the two `..._then_compile` run some calls otherwise than compiled, with no word of it.
_COMPILING_STANCES = ("default", "fail_on_recompile")
_PROGRAM = "#include <cmath>\nint main() { return 0; }\n"
_LIMIT_S = 60.0


def compiler_off() -> str | None:
    """What switches torch.compile off in this process, or None; no whole sentence."""
    for name in _VARIABLES:
        if os.environ.get(name) == "1":
            return f"torch.compile is switched off by {name}=1"
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return None
    if dynamo.config.disable:
        return "torch.compile is switched off by torch._dynamo.config.disable"
    stance = getattr(dynamo.eval_frame, "_stance", None)  # there is a public function to set it, and none to ask
    if stance is None:
        return None
    if stance.stance not in _COMPILING_STANCES:
        return f"torch.compile is switched off by torch.compiler.set_stance({stance.stance!r})"
    if getattr(stance, "backend", None) is not None:
        return f"torch.compile has another backend by torch.compiler.set_stance(force_backend={stance.backend!r})"
    return None


def cache_fault() -> str | None:
    """Why torch cannot keep what it compiles. Makes the folder, as torch would."""
    try:
        temporary = tempfile.gettempdir()
    except OSError:
        temporary = None
    return _cache_fault(os.environ.get(CACHE_VARIABLE), temporary)


@lru_cache(maxsize=8)
def _cache_fault(named: str | None, temporary: str | None) -> str | None:
    if named is None and temporary is None:
        return (
            "torch.compile needs a folder for what it compiles, and no temporary one can be written; set "
            f"{CACHE_VARIABLE} to one that can, or use the engine gather."
        )
    folder = Path(named) if named is not None else Path(str(temporary)) / f"torchinductor_{_user()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return (
            f"torch.compile keeps what it compiles in {folder}, which cannot be written ({error.strerror}); set "
            f"{CACHE_VARIABLE} to a folder that can, or use the engine gather."
        )
    return None


def _user() -> str:
    """As torch names its folder; an account need not have a name."""
    try:
        name = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        name = f"uid_{os.getuid()}"
    return re.sub(r'[\\/:*?"<>|]', "_", name)


def cpp_fault() -> str | None:
    """Why torch cannot compile C++: it runs what `CXX` names, as one word, or else g++."""
    named = os.environ.get("CXX")
    found = shutil.which(named or "g++")
    if found is not None:
        return _cannot_compile(found)
    if named:
        return (
            f"CXX names the C++ compiler {named!r}, by which torch.compile would compile FlexAttention and which does "
            "not exist; install it or unset CXX."
        )
    return "compiling FlexAttention for a CPU needs a C++ compiler; install g++, or name one by CXX."


@lru_cache(maxsize=8)
def _cannot_compile(compiler: str) -> str | None:
    """Whether a compiler that is there compiles a file that includes a header."""
    command = [compiler, "-x", "c++", "-S", "-o", "-", "-"]
    try:
        done = subprocess.run(command, input=_PROGRAM, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "strerror", None) or f"no answer within {_LIMIT_S:.0f} s"
    else:
        if done.returncode == 0:
            return None
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    why = said.rstrip(".")
    return f"the C++ compiler {compiler} cannot compile FlexAttention for a CPU: {why}; set CXX to one that can."
