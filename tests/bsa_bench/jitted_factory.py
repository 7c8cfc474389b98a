"""Toy revisions whose kernels Triton compiles, declared as the project declares its own."""

import textwrap

CONFIGURATIONS = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    tokens: int
    heads: int


@dataclass(frozen=True)
class Configuration:
    name: str
    kernel: str
    signature: dict
    constexprs: dict


def shipped(shape, *, dtype, arch):
    pointers = dict.fromkeys(("x_ptr", "y_ptr"), f"*{dtype}")
    return [Configuration("scale", "bsa_kernels.toy:scale", pointers, {"SIZE": 128})]
"""
TOY = textwrap.dedent('''
    import triton
    import triton.language as tl

    FACTOR = tl.constexpr(3)


    @triton.jit
    def scaled(value):
        product = value * FACTOR
        return product


    @triton.jit
    def scale(x_ptr, y_ptr, SIZE: tl.constexpr):
        """Scale a tile."""
        offs = tl.arange(0, SIZE)
        tl.store(y_ptr + offs, scaled(tl.load(x_ptr + offs)))


    @triton.jit
    def uncompiled(x_ptr):
        tl.store(x_ptr, 1)


    def launch(x, y):
        scale[(1,)](x, y, SIZE=128)
''')
COMMENTED = TOY.replace("    product =", "    # Three times.\n    product =")
RENAMED = TOY.replace("product", "result")
SLOWER = TOY.replace("value * FACTOR", "tl.exp2((value * FACTOR).to(tl.float32))")
UNSEEN = TOY.replace("tl.store(x_ptr, 1)", "tl.store(x_ptr, 2)")
HOST = TOY.replace("FACTOR = tl.constexpr(3)", "FACTOR = tl.constexpr(3.0)")
BROKEN = TOY.replace("value * FACTOR", "value * no_such_name")


def write_revision(folder, toy=TOY, **files):
    """A revision's files below a folder, which is returned; `files` are others of its kernels."""
    package = folder / "kernels" / "bsa_kernels"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "configurations.py").write_text(CONFIGURATIONS)
    (package / "toy.py").write_text(toy)
    for name, text in files.items():
        (package / name.replace("__", ".")).write_text(text)
    return folder
