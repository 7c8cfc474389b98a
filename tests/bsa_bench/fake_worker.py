"""A worker that follows a script: `fake_worker.py SCRIPT --events-fd N`, with the standard library only, to start fast.

The script is a JSON object: `log`, a file that gets a line for each case begun, and `cases`, a list of
`{case, action, result}`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    script = json.loads(Path(sys.argv[1]).read_text())
    fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
    job = json.loads(sys.stdin.buffer.readline())

    def send(event):
        os.write(fd, json.dumps(event).encode() + b"\n")

    sys.stderr.write("hello from the worker\n")
    for case in job["cases"]:
        step = next(s for s in script["cases"] if s["case"] == case)
        action, _, argument = step["action"].partition(":")
        with Path(script["log"]).open("a") as log:
            log.write(f"{os.getpid()} {step['result']['case_id']}\n")
        if action == "mute":
            raise SystemExit("cannot import torch")
        send({"event": "progress", "text": "verifying"})
        if action == "signal":
            sys.stderr.write("about to die\n")
            os.kill(os.getpid(), getattr(signal, argument))
        elif action == "raise":
            raise RuntimeError(argument)
        elif action == "leave":
            raise SystemExit(0)
        elif action == "hang":
            if os.fork() == 0:  # a child that holds the pipe open and would outlive the worker
                time.sleep(60)
            time.sleep(60)
        elif action == "garbage":
            os.write(fd, b"{not json\n")
            time.sleep(60)
        elif action == "twice":
            send({"event": "result", "result": step["result"]})
        elif action == "slow":
            time.sleep(float(argument))
        elif action == "torn":
            os.write(fd, json.dumps({"event": "result", "result": step["result"]}).encode()[:100])
            raise SystemExit(1)
        send({"event": "result", "result": step["result"]})
        if action == "linger":
            time.sleep(60)


main()
