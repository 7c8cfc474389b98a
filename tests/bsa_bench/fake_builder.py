"""What makes an environment in tests, in place of venv and pip, with the standard library only.

`fake_builder.py LOG venv FOLDER` makes `FOLDER/bin/python`, a link to this Python. `fake_builder.py LOG install PYTHON
REQUIREMENT...` writes a line for each requirement into `FOLDER/installed`; for a folder that venv really made it makes
`NAME==VERSION` known to that Python. Each call adds a line to LOG. `broken` as a requirement fails as pip does, `slow`
never ends.
"""

import json
import os
import sys
import time
from pathlib import Path


def main():
    log, action, place, *requirements = sys.argv[1:]
    with Path(log).open("a") as file:
        file.write(json.dumps([action, requirements, os.environ.get("PYTHONPATH"), os.getpid()]) + "\n")
    if action == "venv":
        folder = Path(place) / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
        return
    for requirement in requirements:
        sys.stdout.write(f"Collecting {requirement}\n")
        sys.stdout.flush()
        if requirement == "broken":
            raise SystemExit("ERROR: No matching distribution found for broken")
        if requirement == "slow":
            time.sleep(60)
        install(Path(place).parents[1], requirement)


def install(folder, requirement):
    with (folder / "installed").open("a") as file:
        file.write(f"{requirement}\n")
    name, _, version = requirement.partition("==")
    for packages in folder.glob("lib/python*/site-packages") if version else ():
        about = packages / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


main()
