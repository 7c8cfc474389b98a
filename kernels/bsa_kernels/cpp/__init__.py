"""Kernels in C++ for CPUs, compiled on first use: attention by a plan, and what methods select by; see `build`."""
