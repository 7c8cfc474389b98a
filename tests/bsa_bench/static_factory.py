"""The toy kernels, compiled by each release of Triton that tests stand on, and read."""

import functools
from importlib.metadata import version
from pathlib import Path

from compile_cache import compile_once, toolchain_of

from bsa_bench.static.analyse import Analysis, analyse
from bsa_bench.static.compile import Settings, compile_all
from bsa_bench.static.config import ARCH_NAMES, KernelConfig

TOYS = Path(__file__).parent / "static_toys" / "toys.py"
TILE = 64
HEAD_SIZE = 64


def releases():
    """The oldest and the newest release that is supported, and the installed one."""
    return sorted({"3.6.0", "3.9.0", _installed()})


def _installed():
    return version("triton").partition("+")[0]


def attend(name, *, rows=TILE, carried=True, stride=1, **options):
    """Attention over a list of key blocks."""
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), "*bf16")
    return KernelConfig(
        name=name,
        kernel=f"{TOYS}:attend",
        signature={**pointers, "list_ptr": "*i32", "count": "i32", "scale": "fp32"},
        constexprs={"ROWS": rows, "KEYS": TILE, "D": HEAD_SIZE, "CARRIED": carried, "STRIDE": stride},
        num_stages=3,
        **options,
    )


def clipped(file, *, limit=0.3):
    """A sum of products with a constant in the main loop."""
    signature = {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "num_steps": "i32"}
    constants = {"LIMIT": limit, "TILE": TILE}
    return KernelConfig(name="clipped", kernel=f"{file}:clipped", signature=signature, constexprs=constants)


NESTED = KernelConfig(
    name="nested",
    kernel=f"{TOYS}:nested",
    signature={"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "num_tiles": "i32", "num_steps": "i32"},
    constexprs={"TILE": TILE},
)


class Toys:
    """Toys by name and architecture; all toys of a release are compiled when the first of them is asked for."""

    def __init__(self, folder):
        self._variants = {name: folder / name / TOYS.name for name in ("same", "commented", "changed")}
        text = TOYS.read_text()
        texts = {
            "same": text,
            "commented": text.replace(
                "    total = tl.zeros([TILE, TILE]",
                "    # Sums are\n    # kept in FP32.\n    total = tl.zeros([TILE, TILE]",
            ).replace("import triton\n", "# How kernels are written.\nimport triton\n", 1),
            "changed": text.replace("tl.dot(a, b), LIMIT)", "tl.dot(a, b), 2 * LIMIT)"),
        }
        for name, path in self._variants.items():
            path.parent.mkdir(parents=True)
            path.write_text(texts[name])
        assert len(set(texts.values())) == len(texts)

    def __call__(self, release, name, arch):
        """The analysis of one toy."""
        return self._of(release)[name, arch]

    @functools.cache  # noqa: B019  one object a session
    def _of(self, release):
        configs = {
            "plain": attend("plain"),
            "spilling": attend("spilling", maxnreg=64),
            "few rows": attend("few rows", rows=32),
            "index in loop": attend("index in loop", carried=False),
            "every other": attend("every other", stride=2),
            "nested": NESTED,
            "clipped": clipped(TOYS),
            "other limit": clipped(TOYS, limit=0.6),
            "commented": clipped(self._variants["commented"]),
            "changed": clipped(self._variants["changed"]),
        }
        release = None if release == _installed() else release
        # Nothing but the folder differs here from `clipped`: a cache of its own.
        elsewhere = Settings(self._variants["same"].parent / str(release), toolchain=toolchain_of(release))
        return {
            **_read(configs, lambda jobs: compile_once(jobs, release=release)),
            **_read({"no lines": clipped(TOYS)}, lambda jobs: compile_once(jobs, release=release, line_info=False)),
            **_read({"same": clipped(self._variants["same"])}, lambda jobs: compile_all(jobs, elsewhere)),
        }


def _read(configs, compile_jobs):
    jobs = {(name, arch): (config, arch) for name, config in configs.items() for arch in ARCH_NAMES}
    done = analyse(compile_jobs(list(jobs.values())), devices=[])
    assert not [each for each in done if not isinstance(each, Analysis)]
    return dict(zip(jobs, done, strict=True))
