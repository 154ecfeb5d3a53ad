"""Which conditions to measure when all of them would take too long: a balanced part, the same for a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LINKS_MBPS", "SLOWDOWNS", "Cell", "all_cells", "balanced_cells"]

LINKS_MBPS = (0.5, 2.0, 6.0, 12.0, 25.0, 100.0)
SLOWDOWNS = (4, 12, 36)


@dataclass(frozen=True, slots=True)
class Cell:
    """One network over one link, from a device ``slowdown`` times slower than the cloud's idle replica;
    ``loaded`` when others use that replica, too."""

    network: str
    mbps: float
    slowdown: int
    loaded: bool

    def __str__(self) -> str:
        cloud = "loaded" if self.loaded else "idle"
        return f"{self.network}, {self.mbps:g} Mbps, device {self.slowdown:g}x slower, {cloud} cloud"


def all_cells(networks: Sequence[str], seed: int) -> list[Cell]:
    """The full factorial, link by link, in a random order."""
    return _by_link(
        [Cell(*each) for each in itertools.product(networks, LINKS_MBPS, SLOWDOWNS, (False, True))],
        random.Random(seed),
    )


def balanced_cells(networks: Sequence[str], seed: int) -> list[Cell]:
    """Six cells a network, link by link, in a random order.

    Every network meets every link once and every pair of slow-down and load once.  Over any two networks
    in turn every link is met idle and loaded, and over any three at every slow-down.
    """
    rng = random.Random(seed)
    links, slowdowns, loads = (rng.sample(each, len(each)) for each in (LINKS_MBPS, SLOWDOWNS, (False, True)))
    # 3 and 2 have no common factor: six steps in a row go through all pairs of slow-down and load.
    cells = [
        Cell(network, mbps, slowdowns[(row + column) % 3], loads[(row + column) % 2])
        for row, network in enumerate(networks)
        for column, mbps in enumerate(links)
    ]
    return _by_link(cells, rng)


def _by_link(cells: list[Cell], rng: random.Random) -> list[Cell]:
    """A new link takes an agent seconds to get to know, so that there are as few changes as can be."""
    order = rng.sample(LINKS_MBPS, len(LINKS_MBPS))
    return sorted(rng.sample(cells, len(cells)), key=lambda cell: order.index(cell.mbps))
