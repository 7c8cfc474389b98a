"""A worker that follows a script: `fake_worker.py SCRIPT --events-fd N`, with the standard library only, to start fast.

The script is a JSON object: `log`, a file that gets a line for each case begun, and `cases`, a list of
`{case, actions, results}`: what happens the first time that the case is begun, the second, and so on; the last goes on.
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
    send({"event": "hello", "package": str(Path(__file__).parents[2] / "bsa_bench")})
    for case in job["cases"]:
        step = next(s for s in script["cases"] if s["case"] == case)
        case_id = step["results"][0]["case_id"]
        with Path(script["log"]).open("a+") as log:
            log.seek(0)
            before = sum(line.split()[1] == case_id for line in log)
            log.write(f"{os.getpid()} {case_id}\n")
        turn = min(before, len(step["actions"]) - 1)
        action, _, argument = step["actions"][turn].partition(":")
        result = step["results"][turn]
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
            send({"event": "result", "result": result})
        elif action == "slow":
            time.sleep(float(argument))
        elif action == "daemon":
            path, _, then = argument.partition(":")
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.setsid()
                    with Path(path).open("a") as file:
                        file.write(f"{os.getpid()}\n")
                    time.sleep(120)
                os._exit(0)
            os.wait()
            time.sleep(120 if then == "hang" else 0.2)
        elif action == "chatter":
            end, number = time.monotonic() + float(argument), 0
            while time.monotonic() < end:
                sys.stdout.write("".join(f"line {i}\n" for i in range(number, number + 1000)))
                number += 1000
                time.sleep(0.001)
            sys.stdout.write("the last line\n")
            sys.stdout.flush()
        elif action == "torn":
            os.write(fd, json.dumps({"event": "result", "result": result}).encode()[:100])
            raise SystemExit(1)
        send({"event": "result", "result": result})
        if action == "linger":
            time.sleep(60)


main()
