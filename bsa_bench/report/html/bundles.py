"""JavaScript libraries, read from the installed packages that ship them, and how a page holds them."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from bsa_bench.errors import StoreError


@dataclass(frozen=True)
class Bundle:
    """A file of an installed package: `package`'s `path` below the folder of installed packages."""

    package: str
    path: str

    def read(self) -> str:
        """Its text. The package itself is not imported.

        Raises:
            StoreError: the package is not installed, or its release has no such file.
        """
        try:
            found = distribution(self.package)
        except PackageNotFoundError:
            raise StoreError(f"{self.package} is not installed, which report.html takes {self.path} from") from None
        try:
            with open(str(found.locate_file(self.path)), encoding="utf-8") as stream:  # noqa: PTH123 -- no Path
                return stream.read()
        except OSError as error:
            raise StoreError(
                f"{self.package} {found.version}: {self.path} cannot be read, which report.html needs: "
                f"{error.strerror or error}"
            ) from error


PLOTLY = Bundle("plotly", "plotly/package_data/plotly.min.js")
DATATABLES = Bundle("itables", "itables/html/dt_bundle.js")
DATATABLES_STYLE = Bundle("itables", "itables/html/dt_bundle.css")


@cache
def packed_bundle(bundle: Bundle) -> str:
    """A bundle as `packed` makes it, once a process: compressing it takes a few tenths of a second."""
    return packed(bundle.read())


def packed(text: str) -> str:
    """Gzip and base64: what no script tag can end, and a third of the size; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def packed_json(value: object) -> str:
    """A value as `packed` JSON."""
    return packed(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
