"""Bidirectional Sparse Attention: selection on both sides, and the operator."""
