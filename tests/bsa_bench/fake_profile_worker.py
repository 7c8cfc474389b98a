"""A profiling worker that leaves files made before: `fake_profile_worker.py FOLDER --events-fd N`.

It copies what `FOLDER/<part>` holds into the job's folder. With a file `die` there, it is killed by the signal named
in it instead. Standard library only, to start fast.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

job = json.loads(sys.stdin.buffer.readline())
events = [
    {"event": "hello", "package": str(Path(__file__).parents[2] / "bsa_bench")},
    {"event": "progress", "text": "working"},
]
for event in events:
    os.write(int(sys.argv[sys.argv.index("--events-fd") + 1]), json.dumps(event).encode() + b"\n")
sys.stderr.write(f"hello from {job['part']}\n")
source = Path(sys.argv[1], job["part"])
if (source / "die").exists():
    os.kill(os.getpid(), getattr(signal, (source / "die").read_text()))
shutil.copytree(source, job["folder"], dirs_exist_ok=True)
