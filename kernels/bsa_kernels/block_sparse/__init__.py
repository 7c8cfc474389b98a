"""Block-sparse attention in Triton over the lists of a `BlockPlan`: the work of the engine `triton`."""
