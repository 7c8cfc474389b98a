import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compile_cache import cache_folder
from static_examples import CONFIG, DENSE, EXAMPLE, KERNEL
from test_run_execute import is_gone

pytest.importorskip("triton")

HANGS = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "60"])
with open("pids.new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.new", "pids")
time.sleep(60)
"""


@pytest.mark.slow
def test_ctrl_c_ends_soon_and_leaves_no_process_and_no_file(folder):
    Path("hangs.py").write_text(HANGS)
    Path("scratch").mkdir()
    Path("scale.toml").write_text(CONFIG.replace("scale.py", "hangs.py"))
    command = ["static", "--config", "scale.toml", "--jobs", "2"]
    env = os.environ | {"TMPDIR": str(folder / "scratch")}
    process = subprocess.Popen(
        [sys.executable, "-m", "bsa_bench", *command],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not Path("pids").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")
    assert time.monotonic() - start < 5
    assert all(is_gone(int(pid)) for pid in Path("pids").read_text().split())
    assert list(Path("scratch").iterdir()) == []


@pytest.mark.slow
def test_nothing_is_left_in_the_temporary_folder(bench, folder, monkeypatch):
    Path("scale.py").write_text(KERNEL)
    Path("scale.toml").write_text(f"{CONFIG}\n[axes]\nSIZE = [64]")
    Path("scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(Path("scratch").absolute()))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = ["static", "--config", "scale.toml", "--arch", "sm_80", "--cache", "cache"]
    assert bench(*command)[0] == 0
    assert list(Path("scratch").iterdir()) == []


@pytest.mark.slow
def test_help_loads_neither_torch_nor_triton(folder):
    for arguments in (["static"], ["static", "explain"], ["static", "diff"]):
        code = (
            f"import sys; sys.argv = ['bsa-bench', *{arguments!r}, '--help']\n"
            "from bsa_bench.cli import main\n"
            "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
            "print(*sorted({'torch', 'triton', 'rich', 'numpy'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr == "\n"
        assert "--arch" in done.stdout


@pytest.mark.slow
def test_making_the_table_loads_neither_here(folder):
    arguments = ["--config", str(EXAMPLE), "--only", DENSE, "--arch", "sm_90"]
    arguments += ["--cache", str(cache_folder())]
    code = (
        f"import sys; sys.argv = ['bsa-bench', 'static', *{arguments!r}]\n"
        "from bsa_bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(*sorted({'torch', 'triton'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "\n"
