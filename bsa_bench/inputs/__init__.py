"""Make q, k, v of a workload: noise, a smooth field, a real clip, or tensors captured from a model.

Importing this package loads neither torch nor av; making or checking an input does.
"""

from bsa_bench.inputs.clip import SAMPLE_CLIPS, find_sample_clip
from bsa_bench.inputs.make import QKV, check_input, check_inputs, draw_tensors, make_qkv, random_like_output

__all__ = [
    "QKV",
    "SAMPLE_CLIPS",
    "check_input",
    "check_inputs",
    "draw_tensors",
    "find_sample_clip",
    "make_qkv",
    "random_like_output",
]
