"""A worker of a pair that follows a script, with the standard library only, to start fast.

`fake_pair_worker.py SCRIPT --requests-fd R --events-fd E`. The script is a JSON object:

- `log`: a file that gets a line `pid role what` for each request, `what` being the case's engine where there is one;
- `call_s`: of a call, before noise; `noise`: standard deviation of the logs of calls; `seed`;
- `base` and `head`: actions by moment, `set up`, `prepare`, `sample` or `finish`, or by `moment case`, where the case
  is called by its number of tokens, or by `moment implementation`. One that begins with `once:` happens once in all.

`FAKE_ROLE` in the environment says which role this process has, otherwise it is `none`. In the first folder of
PYTHONPATH, the file `bsa_kernels/SPEED` is a factor on the time of a call, and `bsa_kernels/ACTION` holds a moment and
an action, `sample hang`, whatever the role. All actions are in `act`.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

SCRIPT = json.loads(Path(sys.argv[1]).read_text())
ROLE = os.environ.get("FAKE_ROLE", "none")
FOLDERS = [Path(folder) for folder in os.environ["PYTHONPATH"].split(os.pathsep)]
#: Where `bsa_kernels` would be imported from.
KERNELS = next((f / "bsa_kernels" for f in FOLDERS if (f / "bsa_kernels").is_dir()), FOLDERS[0] / "bsa_kernels")


def main():
    requests = os.fdopen(int(sys.argv[sys.argv.index("--requests-fd") + 1]), "rb")
    events = int(sys.argv[sys.argv.index("--events-fd") + 1])
    if "start" in SCRIPT.get(ROLE, {}):
        raise SystemExit(SCRIPT[ROLE]["start"])
    draws = random.Random(f"{SCRIPT.get('seed', 0)} {ROLE} {os.getpid()}")
    current = None
    for line in requests:
        request = json.loads(line)
        current = request.get("case", current)
        name = None if current is None else str(current["workload"]["tokens"])
        with Path(SCRIPT["log"]).open("a") as log:
            log.write(f"{os.getpid()} {ROLE} {request['do']} {name} {request.get('verify')}\n")
        reply = answer(request["do"], draws)
        implementation = current and current["implementation"]
        reply = act(request["do"], [name, implementation], reply, events, is_verified=request.get("verify"))
        if reply is not None:
            os.write(events, json.dumps(reply).encode() + b"\n")


def answer(moment, draws):
    """What a worker without faults says."""
    if moment == "set up":
        return {"sources": sources(), "kernels": str(KERNELS), "package": package()}
    if moment == "finish":
        return {}
    speed = float((KERNELS / "SPEED").read_text()) if (KERNELS / "SPEED").is_file() else 1.0
    time_s = SCRIPT.get("call_s", 0.02) * speed
    return {"seconds": time_s * math.exp(draws.gauss(0, SCRIPT.get("noise", 0.004)))}


def package():
    """Where `bsa_bench` would be imported from."""
    return str(next(folder / "bsa_bench" for folder in FOLDERS if (folder / "bsa_bench").is_dir()))


def sources():
    if not KERNELS.is_dir():
        return "none"
    return "".join(f"{path.name}:{path.read_text()};" for path in sorted(KERNELS.glob("[!_]*")) if path.is_file())


def act(moment, names, reply, events, *, is_verified):
    """Do what the script says for this moment; returns the reply, or None where there is none."""
    actions = SCRIPT.get(ROLE, {})
    found = [actions[key] for key in (*(f"{moment} {name}" for name in names), moment) if key in actions]
    action = found[0] if found else "ok"
    if (KERNELS / "ACTION").is_file() and (KERNELS / "ACTION").read_text().startswith(f"{moment} "):
        action = (KERNELS / "ACTION").read_text().strip().removeprefix(f"{moment} ")
    if action.startswith("once:"):
        action = action.removeprefix("once:")
        try:
            Path(f"{SCRIPT['log']}.{ROLE}.{moment.replace(' ', '-')}").open("x").close()
        except FileExistsError:
            return reply
    action, _, argument = action.partition("=")
    if action == "slow":
        return reply | {"seconds": reply["seconds"] * float(argument)}
    if action == "signal":
        sys.stdout.write("about to die\n")
        sys.stdout.flush()
        os.kill(os.getpid(), getattr(signal, argument))
    if action == "raise":
        raise RuntimeError(argument)
    if action == "leave":
        raise SystemExit(int(argument))
    if action == "hang":
        if os.fork() == 0:  # a child that holds the pipes open and would outlive the worker
            time.sleep(60)
        time.sleep(60)
    if action == "orphan":  # dies, and a child holds the pipes open
        if os.fork() == 0:
            time.sleep(60)
        raise SystemExit(3)
    if action == "child" and os.fork() == 0:  # ends as it should, and leaves a child
        time.sleep(60)
    if action == "garbage":
        os.write(events, argument.encode() + b"\n")
        return None
    if action == "twice":
        os.write(events, (json.dumps(reply) + "\n" + json.dumps(reply) + "\n").encode())
        return None
    if action == "torn":
        os.write(events, json.dumps(reply).encode()[:5])
        raise SystemExit(1)
    if action == "status" and (is_verified is not False or moment == "sample"):
        return {"status": argument, "reason": f"scripted {argument}"}
    if action == "reply":
        return json.loads(argument)
    return reply


main()
