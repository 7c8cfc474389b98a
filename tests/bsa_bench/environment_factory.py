"""Environments made by a script, in a cache of their own."""

import json
import sys
from pathlib import Path

from bsa_bench.gate.own_environment import Builder

FAKE_BUILDER = Path(__file__).with_name("fake_builder.py")


class Builds:
    """What was built in place of venv and pip."""

    def __init__(self, folder):
        self.log = folder / "builds.log"
        script = (sys.executable, str(FAKE_BUILDER), str(self.log))
        self.builder = Builder(venv=(*script, "venv"), install=(*script, "install", "{python}"))
        self.real_venv = Builder(
            venv=(sys.executable, "-m", "venv", "--without-pip"), install=(*script, "install", "{python}")
        )

    @property
    def calls(self):
        """Of each call: what it did, with which requirements, PYTHONPATH, and the number of its process."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def actions(self):
        """What was done, in order."""
        return [call[0] for call in self.calls]
