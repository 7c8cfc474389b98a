"""What every test run needs: Triton's interpreter where there is no GPU, one thread, and the mark `gpu`."""

import os

import pytest
import torch

# Read when kernels are defined, so it must stand before the first import of one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tensors are tiny: a second thread costs more than it gives, and far more on a busy machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
