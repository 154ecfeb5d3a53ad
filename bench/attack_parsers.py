"""Hostile inputs for every parser of bytes that come from elsewhere, and what becomes of them.

The inputs are those of ``tests/attacks``, every one of them, and random damages to good ones; the parsers
are the fuzzer's targets (``tests/fuzz/targets.py``), which let out nothing but what is not promised.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tests.attacks import (
    test_bit_flips,
    test_bombs,
    test_frame_counts,
    test_length_lies,
    test_scales,
    test_shapes,
    test_truncation,
    test_versions,
)
from tests.attacks.harness import Attack
from tests.fuzz.targets import SEEDS, TARGETS

__all__ = ["Outcome", "attacks", "damaged", "damages", "peak_rss_bytes", "reset_peak_rss", "tried"]

_SCRIPTS = (
    test_truncation, test_bit_flips, test_frame_counts, test_length_lies, test_shapes, test_scales,
    test_bombs, test_versions,
)  # fmt: skip
_WARM_UP = 50
_CRASHES_KEPT = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """``crashes`` are what should never leave a parser; ``peak_bytes`` is the process's growth at worst."""

    inputs: int
    crashes: int
    peak_bytes: int
    findings: tuple[str, ...] = ()


def attacks() -> list[Attack]:
    return [attack for script in _SCRIPTS for attack in script.ATTACKS]


def damages(parser: str, seed: int) -> Iterator[bytes]:
    """Good inputs with one to four damages each, without end."""
    draw, seeds = random.Random(f"{parser}/{seed}"), SEEDS[parser]()
    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 4)):
            draw.choice(_DAMAGES)(draw, data)
        yield bytes(data)


def tried(target: Callable[[bytes], None], inputs: Iterable[bytes]) -> Outcome:
    """Give the target every input; some of them are tried once before anything is counted."""
    first = list(islice(iterator := iter(inputs), _WARM_UP))
    for data in first:
        _crash(target, data)
    reset_peak_rss(os.getpid())
    before, count, crashes, findings = peak_rss_bytes(os.getpid()), 0, 0, list[str]()
    for part in (first, iterator):
        for data in part:
            count += 1
            crash = _crash(target, data)
            if crash:
                crashes += 1
                findings.append(crash) if len(findings) < _CRASHES_KEPT else None
    return Outcome(count, crashes, peak_rss_bytes(os.getpid()) - before, tuple(findings))


def damaged(parser: str, seed: int, count: int) -> Outcome:
    return tried(TARGETS[parser], islice(damages(parser, seed), count))


def reset_peak_rss(pid: int) -> None:
    """Let :func:`peak_rss_bytes` begin anew, from what is really in use where it is this process."""
    if pid == os.getpid():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes(pid: int) -> int:
    """The most that was resident since the reset (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak memory")


def _crash(target: Callable[[bytes], None], data: bytes) -> str:
    """What left the target, with the input that made it; "" when nothing did."""
    try:
        target(data)
    except Exception as error:  # noqa: BLE001 - counting these is what this is for
        return f"{type(error).__name__}: {error} from {data[:200].hex()}"
    return ""


def _flip(draw: random.Random, data: bytearray) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _overwrite(draw: random.Random, data: bytearray) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.choice((0, 1, 0x7F, 0x80, 0xC1, 0xFF, draw.randrange(256)))


def _insert(draw: random.Random, data: bytearray) -> None:
    place = draw.randint(0, len(data))
    data[place:place] = draw.randbytes(draw.randint(1, 8))


def _delete(draw: random.Random, data: bytearray) -> None:
    place = draw.randint(0, len(data))
    del data[place : place + draw.randint(1, 8)]


def _repeat(draw: random.Random, data: bytearray) -> None:
    place = draw.randint(0, len(data))
    data[place:place] = data[place : place + draw.randint(1, 64)]


def _cut_off(draw: random.Random, data: bytearray) -> None:
    del data[draw.randint(0, len(data)) :]


_DAMAGES = (_flip, _overwrite, _insert, _delete, _repeat, _cut_off)
