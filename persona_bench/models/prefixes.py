"""What is kept of prompts' beginnings that rows share."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class PrefixStore:
    """Keys and values of shared prefixes, of the first layers or of all, least recently used dropped first.

    Args:
        max_bytes: of memory for them.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self._bytes = 0

    def holds(self, prefix: tuple[int, ...], n_layers: int) -> bool:
        """Whether a prefix is there, at least so many layers deep."""
        return len(self._held.get(prefix, ())) >= n_layers

    def get(self, prefix: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """What is held of a prefix, as `SlotCache.read` gave it."""
        self._held.move_to_end(prefix)
        return self._held[prefix]

    def put(self, prefix: tuple[int, ...], layers: list[tuple[Tensor, Tensor]], needed: set[tuple[int, ...]]) -> None:
        """Hold a prefix, and drop others that are not needed now where there is no room."""
        self._bytes += _n_bytes(layers) - _n_bytes(self._held.pop(prefix, []))
        self._held[prefix] = layers
        for old in list(self._held):
            if self._bytes <= self.max_bytes:
                break
            if old not in needed:
                self._bytes -= _n_bytes(self._held.pop(old))

    def clear(self) -> None:
        """Hold nothing."""
        self._held.clear()
        self._bytes = 0


def _n_bytes(layers: list[tuple[Tensor, Tensor]]) -> int:
    return sum(2 * keys.numel() * keys.element_size() for keys, _values in layers)
