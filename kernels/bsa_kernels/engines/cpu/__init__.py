"""The engine `cpu`: block-sparse attention in C++, compiled on first use; see `engine`."""
