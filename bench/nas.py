"""Random networks of wide cells, as architecture search finds them, with made-up but plausible profiles.

A cell brings the outputs of the two cells before it to its own width.  Each of its nodes adds the results of
two branches of operators on earlier values of the cell; what no node reads is concatenated into the cell's
output (Zoph et al., "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
section 3).  Branches differ in width and work, as in networks that are wired at random (Xie et al.,
"Exploring Randomly Wired Neural Networks", ICCV 2019).  Many values are alive at once, so that the order of
the units matters to a cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shared.codec import Codec
from shared.graph.ir import Graph, Op, Ref, Unit
from shared.graph.tree import Tree
from shared.plan.profile import CodecCost, Profile, ProfileKey
from shared.tensor import DType, SymbolicSpec

__all__ = ["NasNetwork", "nas_network"]

_FEWEST_UNITS = 10
_NODES = (4, 8)
_STEM = (32, 112)
_STAGES = ((64, 28), (128, 14), (256, 7))
"""Channels and side of the values there, as in networks for ImageNet."""
_WIDTHS = (0.25, 0.5, 1.0)
_LONGEST_BRANCH = 3
_SPREAD = 1.0
"""Of the work of an operator around its expectation, in log."""
_GFLOPS = 8.0
"""What the made-up device computes in a second, in 1e9 multiply-adds."""


class _Kind(NamedTuple):
    """An operator, and its multiply-adds for each output element: some for each channel, and a fixed few."""

    name: str
    target: str
    per_channel: float
    fixed: float


_KINDS = (
    _Kind("conv2d", "aten.conv2d.default", 1.0, 9.0),  # depthwise 3x3, then pointwise
    _Kind("conv2d", "aten.conv2d.default", 2.0, 50.0),  # the same with 5x5, twice
    _Kind("max_pool2d", "aten.max_pool2d.default", 0.0, 9.0),
    _Kind("avg_pool2d", "aten.avg_pool2d.default", 0.0, 9.0),
    _Kind("relu", "aten.relu.default", 0.0, 1.0),
)


class _Rate(NamedTuple):
    """Payload bytes for each element of a half-zero map, and MB of float32 a second through one core."""

    bytes_per_element: float
    encode: float
    decode: float


_RATES = {
    Codec.FLOAT32: _Rate(4.0, 9000.0, 9000.0),
    Codec.FLOAT32_LZ4: _Rate(2.4, 570.0, 2100.0),
    Codec.FLOAT32_ZSTD: _Rate(2.1, 300.0, 900.0),
    Codec.FLOAT16: _Rate(2.0, 22000.0, 23000.0),
    Codec.FLOAT16_LZ4: _Rate(1.5, 800.0, 3000.0),
    Codec.FLOAT16_ZSTD: _Rate(1.25, 500.0, 1500.0),
    Codec.UINT8: _Rate(1.0, 2500.0, 11000.0),
    Codec.UINT8_LZ4: _Rate(0.72, 1100.0, 4700.0),
    Codec.UINT8_ZSTD: _Rate(0.56, 800.0, 2500.0),
    Codec.INT4: _Rate(0.5, 1500.0, 6000.0),
    Codec.INT4_LZ4: _Rate(0.38, 1000.0, 3000.0),
    Codec.INT4_ZSTD: _Rate(0.28, 780.0, 1880.0),
}


@dataclass(frozen=True, slots=True)
class NasNetwork:
    """A graph and its profile on a made-up device."""

    graph: Graph
    profile: Profile


def nas_network(units: int, seed: int) -> NasNetwork:
    """A network of exactly ``units`` units; equal arguments give the same one again."""
    if units < _FEWEST_UNITS:
        raise ValueError(f"a network of cells has at least {_FEWEST_UNITS} units, not {units}")
    return _Builder(np.random.default_rng(seed)).build(units, seed)


class _Builder:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._units: list[Unit] = []
        self._values = {0: _image(0, 3, 224, DType.UINT8)}
        self._unit_ms: list[float] = []

    def build(self, units: int, seed: int) -> NasNetwork:
        stem = self._add("stem conv2d", _KINDS[0], (0,), *_STEM)
        cells = [stem, stem]
        while len(self._units) < units - 4:
            channels, side = _STAGES[len(_STAGES) * len(self._units) // units]
            cells.append(self._cell(f"cell{len(cells) - 2}", cells[-2:], channels, side, units - 1))
        while len(self._units) < units - 1:
            self._add("neck relu", _KINDS[-1], self._unread(), *_STAGES[-1])
        self._add("head", _KINDS[0], self._unread(), 1000, 1)
        graph = Graph(
            name=f"nas-{units}",
            inputs=(0,),
            outputs=(len(self._units),),
            input_tree=Tree("leaf"),
            output_tree=Tree("leaf"),
            units=tuple(self._units),
            preamble=(),
            values=self._values,
            weights={},
            dynamic_batch=True,
            captured_batch=2,
            digest=f"sha256:{units:032x}{seed:032x}",
        )
        return NasNetwork(graph, self._profile(graph))

    def _cell(self, name: str, before: list[int], channels: int, side: int, most_units: int) -> int:
        """Add a cell, or as much of it as there is room for; the slot of its output."""
        rng = self._rng
        here = [
            self._add(f"{name} fit{place} conv2d", _KINDS[0], (slot,), channels, side)
            for place, slot in enumerate(dict.fromkeys(before))
        ]
        inputs = tuple(here)
        read: set[int] = set()
        last = here[-1]
        for node in range(int(rng.integers(*_NODES, endpoint=True))):
            if len(self._units) + 4 > most_units:
                break
            width = int(rng.choice(_WIDTHS) * channels)
            parts = [
                self._branch(f"{name}.{node}{branch}", here, read, width, side, most_units) for branch in "ab"
            ]
            last = self._add(f"{name}.{node} add", _KINDS[-1], parts, width, side)
            here.append(last)
        loose = [slot for slot in here if slot not in read and slot not in inputs]
        width = sum(self._channels(slot) for slot in loose or [last])
        return self._add(f"{name} cat", _KINDS[-1], loose or [last], width, side)

    def _channels(self, slot: int) -> int:
        return self._values[slot].dims[1][1]

    def _branch(
        self, name: str, here: list[int], read: set[int], channels: int, side: int, most_units: int
    ) -> int:
        """Add some operators, one after the other, on a value of the cell; the slot of the last result."""
        rng = self._rng
        # Half of the branches start from the cell's inputs: cells are wide rather than deep.
        slot = here[int(rng.integers(2 if rng.random() < 0.5 else len(here)) % len(here))]
        read.add(slot)
        for step in range(int(rng.integers(1, _LONGEST_BRANCH, endpoint=True))):
            if step and len(self._units) + 4 > most_units:
                break
            kind = _KINDS[int(rng.integers(len(_KINDS)))]
            slot = self._add(f"{name}{step} {kind.name}", kind, (slot,), channels, side)
        return slot

    def _add(
        self, name: str, kind: _Kind, reads: tuple[int, ...] | list[int], channels: int, side: int
    ) -> int:
        index, slot = len(self._units), len(self._units) + 1
        unique = tuple(dict.fromkeys(reads))
        op = Op(kind.target, (tuple(Ref(each) for each in unique),), (), (slot,))
        self._units.append(Unit(index, name, kind.name, (op,), unique, (slot,)))
        self._values[slot] = _image(slot, channels, side)
        elements = channels * side * side
        work = elements * (kind.fixed + kind.per_channel * channels)
        self._unit_ms.append(float(0.02 + work / (_GFLOPS * 1e6) * self._rng.lognormal(0.0, _SPREAD)))
        return slot

    def _unread(self) -> list[int]:
        read = {slot for unit in self._units for slot in unit.reads}
        return [unit.writes[0] for unit in self._units if unit.writes[0] not in read]

    def _profile(self, graph: Graph) -> Profile:
        payloads = {}
        for slot, spec in graph.values.items():
            one = spec.at(1)
            density = float(self._rng.uniform(0.6, 1.4))  # how much of it is not zero
            payloads[slot] = {
                codec: self._cost(codec, one.numel, density, one.dtype is DType.FLOAT32) for codec in _RATES
            }
        return Profile(
            key=ProfileKey(graph.digest, "made-up", 1, "none", machine="made-up"),
            unit_ms=tuple(self._unit_ms),
            unit_spread_ms=tuple(0.0 for _ in self._unit_ms),
            whole_ms=sum(self._unit_ms),
            whole_spread_ms=0.0,
            repeats=1,
            payloads=payloads,
        )

    def _cost(self, codec: Codec, elements: int, density: float, floats: bool) -> CodecCost:
        if not floats:  # bytes stay bytes, and photographs hardly shrink
            codec = Codec.of(Codec.FLOAT32.form, codec.stage)
            size = elements * (1.0 if codec is Codec.FLOAT32 else 0.95)
        else:
            plain = codec.stage == Codec.FLOAT32.stage
            size = elements * _RATES[codec].bytes_per_element * (1.0 if plain else density)
        rate = _RATES[codec]
        megabytes = elements * (4 if floats else 1) / 1e6
        return CodecCost(
            float(round(size)), 1000.0 * megabytes / rate.encode, 1000.0 * megabytes / rate.decode
        )


def _image(slot: int, channels: int, side: int, dtype: DType = DType.FLOAT32) -> SymbolicSpec:
    return SymbolicSpec(f"value{slot}", dtype, ((1, 0), (0, channels), (0, side), (0, side)), (0, 1, 2, 3))
