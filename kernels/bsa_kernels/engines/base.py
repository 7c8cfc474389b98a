"""What an engine offers, for those who write one or hold one. The protocol itself stands below, where no engine is."""

from __future__ import annotations

from bsa_kernels.block_engine import BlockEngine, BlockRunner, LseRunner, Order, Passes, UnsupportedPlanError

__all__ = ["BlockEngine", "BlockRunner", "LseRunner", "Order", "Passes", "UnsupportedPlanError"]
