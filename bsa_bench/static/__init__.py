"""What a Triton kernel compiles to, and how fast that can be at best, without a GPU."""
