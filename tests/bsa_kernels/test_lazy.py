"""Packages whose names load on first use: every public name is there, and no other."""

from __future__ import annotations

from importlib import import_module

import pytest

METHODS = ("bitstopper", "gated_delta_rule", "moba", "vmoba", "vsa")


@pytest.mark.parametrize("package", ["bsa_kernels", *(f"bsa_kernels.methods.{method}" for method in METHODS)])
def test_a_package_has_every_public_name_and_refuses_others(package):
    module = import_module(package)
    assert module.__all__
    for name in module.__all__:
        value = getattr(module, name)
        home = getattr(value, "__module__", None)
        assert home is None or home.startswith((package, "typing"))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
