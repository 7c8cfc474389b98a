"""What the simulated accelerator fetched, in counts; figures that rest on a model of the memory are called modelled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Counts over all batch elements, heads and (query, key) pairs of one call.

    A *pair* is a query with a key that it may see (causal: keys up to its own). A key's *plane* is one bit of each of
    its `key_dim` values. Every query fetches for itself: nothing is reused from one query to the next.
    """

    bits: int
    key_dim: int
    value_dim: int
    burst_bytes: int
    num_pairs: int
    #: Pairs by the number of planes that they fetched, 1 to `bits`.
    planes_histogram: dict[int, int]
    #: Bursts in which at least one live key's plane lies, by plane, most significant first.
    bursts_per_plane: tuple[int, ...]
    num_survivors: int

    @property
    def num_planes(self) -> int:
        """Planes fetched, over all pairs."""
        return sum(planes * pairs for planes, pairs in self.planes_histogram.items())

    @property
    def mean_planes(self) -> float:
        """Planes fetched per pair, from 1 to `bits`."""
        return self.num_planes / self.num_pairs

    @property
    def k_bits_read(self) -> int:
        """Bits of keys fetched."""
        return self.num_planes * self.key_dim

    @property
    def one_bit_macs(self) -> int:
        """Multiply-adds of a query value and one bit of a key: one for every bit fetched."""
        return self.k_bits_read

    @property
    def v_rows_fetched(self) -> int:
        """Rows of V fetched: one per survivor."""
        return self.num_survivors

    @property
    def survivor_share(self) -> float:
        """Survivors per pair: the density of the attention that was computed."""
        return self.num_survivors / self.num_pairs

    @property
    def k_traffic_share(self) -> float:
        """K bits read, of those of a dense INT attention."""
        return self.mean_planes / self.bits

    @property
    def modelled_speedup(self) -> float:
        """Bits of K and V that a dense INT attention fetches, per bit fetched here: the bound of an ideal memory."""
        value_bits = self.value_dim * self.bits
        fetched = self.k_bits_read + self.num_survivors * value_bits
        return self.num_pairs * (self.key_dim * self.bits + value_bits) / fetched

    @property
    def modelled_dram_bytes(self) -> int:
        """Bytes of K and V in whole bursts, planes stored apart; V rows at `bits` per value start at a burst."""
        return sum(self.bursts_per_plane) * self.burst_bytes + self.num_survivors * self._value_row_bytes

    @property
    def dense_dram_bytes(self) -> int:
        """The same for a dense INT attention, every plane and every row of V; all keys are live in the first plane."""
        return self.bursts_per_plane[0] * self.bits * self.burst_bytes + self.num_pairs * self._value_row_bytes

    @property
    def _value_row_bytes(self) -> int:
        return -(-self.value_dim * self.bits // (8 * self.burst_bytes)) * self.burst_bytes

    def as_dict(self) -> dict[str, float]:
        """Every figure by name, the histogram as `pairs_with_1_planes` and so on."""
        names = (
            "num_pairs",
            "num_planes",
            "mean_planes",
            "k_bits_read",
            "one_bit_macs",
            "v_rows_fetched",
            "survivor_share",
            "k_traffic_share",
            "modelled_speedup",
            "modelled_dram_bytes",
            "dense_dram_bytes",
        )
        histogram = {f"pairs_with_{planes}_planes": pairs for planes, pairs in self.planes_histogram.items()}
        return {name: getattr(self, name) for name in names} | histogram
