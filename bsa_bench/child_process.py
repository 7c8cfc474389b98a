"""How a Python process of ours is started: it imports the packages that run here, and nothing that lies around.

`python -m` puts the working folder first on the module path, and a script its own folder. A `queue.py` of the
user's, or another checkout of this package, would then be imported in place of what the starting process imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from bsa_bench.descendants import new_mark
from bsa_bench.errors import UsageError

PACKAGE = Path(__file__).resolve().parent
"""The folder of the `bsa_bench` that runs."""
_ROOT = PACKAGE.parent


def module_command(module: str, *, python: str = sys.executable) -> tuple[str, ...]:
    """The command that runs a module as a process of its own, the working folder no place to import from."""
    return (python, "-P", "-m", module)


def own_paths() -> list[Path]:
    """Where the packages of the checkout that runs are; empty for an installed one, which any process finds."""
    if not (_ROOT / "kernels" / "bsa_kernels").is_dir():
        return []
    return [_ROOT, _ROOT / "kernels", _ROOT / "suites"]


def child_environment(*, first: Iterable[Path] = (), last: Iterable[Path] = ()) -> dict[str, str]:
    """The environment of a child: this one's, with a module path that does not depend on the working folder.

    It has a mark too, by which the child and its own children end with this process, see `bsa_bench.descendants`.

    Args:
        first: folders that come before all others on the child's module path.
        last: folders that come after all others of PYTHONPATH.
    """
    # An empty entry means the working folder, mostly by mistake: `PYTHONPATH=$PYTHONPATH:/more`.
    inherited = [Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # `bsa_bench` is the one that runs here; kernels and suites are looked for as they were here.
    own = own_paths()
    paths = [*first, *own[:1], *inherited, *own[1:], *last]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | new_mark()
    module_path = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, paths)))} if paths else {}
    return kept | module_path | {"PYTHONSAFEPATH": "1"}  # for what the child starts, compilers among it


def check_package(said: str | None, *, who: str, expected: Path = PACKAGE) -> None:
    """See that a child runs the package that it is meant to.

    Args:
        said: the folder of the `bsa_bench` that it imported, in its own words.
        who: names it in the error.
        expected: the folder; one that is not the package that runs here may be of a version that does not say.

    Raises:
        UsageError: it is another one, or it does not say.
    """
    if said is None and expected != PACKAGE:
        return
    if said is None or Path(said).resolve() != expected.resolve():
        raise UsageError(
            f"{who} imports bsa_bench from {said or 'a place that it does not name'}, expected {expected}; take the "
            "other one off PYTHONPATH"
        )
