from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bench.grid import LINKS_MBPS, SLOWDOWNS, all_cells, balanced_cells


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_balanced_part_meets_every_link_and_every_pair_of_device_and_load(seed: int) -> None:
    networks = ("a", "b", "c", "d")
    cells = balanced_cells(networks, seed)
    assert len(cells) == 6 * len(networks)
    for name in networks:
        mine = [cell for cell in cells if cell.network == name]
        assert sorted(cell.mbps for cell in mine) == sorted(LINKS_MBPS)
        pairs = [(cell.slowdown, cell.loaded) for cell in mine]
        assert sorted(pairs) == sorted(itertools.product(SLOWDOWNS, (False, True)))
    assert set(Counter((cell.mbps, cell.loaded) for cell in cells).values()) == {2}


def test_cells_of_one_link_follow_each_other_and_a_seed_repeats_them() -> None:
    for choose in (all_cells, balanced_cells):
        cells = choose(("a", "b"), 3)
        assert len([mbps for mbps, _ in itertools.groupby(cells, key=lambda cell: cell.mbps)]) == 6
        assert cells == choose(("a", "b"), 3)
        assert cells != choose(("a", "b"), 4)
    assert len(all_cells(("a", "b"), 0)) == len(set(all_cells(("a", "b"), 0))) == 2 * 6 * 3 * 2
