"""The candidates of a plan: one row per cut and codec, or codecs, with what it costs per stage.

Rows are built when a profile or a card arrives and are then only multiplied
(:func:`shared.plan.latency.latency_ms`), so everything that depends on the network alone is summed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.codec import Codec, Form
from shared.plan.payloads import LOSSLESS, PLAIN, sendable_payloads
from shared.plan.profile import CodecCost, Profile
from shared.plan.stages import POSITION, STAGES, Stage

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["FAITHFUL", "LOSSLESS", "PLAIN", "Rows", "build_rows", "decode_scale", "output_costs"]

FAITHFUL = tuple(codec for codec in Codec if codec.form <= Form.UINT8)
"""The codecs that changed no answer of a trained classifier.  Four bits changed one in eight, so that they
are a candidate only where someone asks for them, and the transform needs tables."""

_COPY_BYTES_PER_MS = 2e6
"""The rate of a plain copy, for outputs that were not profiled."""

_LONGEST_LABEL = 60

_FASTEST_DECODE, _SLOWEST_DECODE = 0.1, 2.0
"""How far a cloud's decoding may be assumed to differ from the device's, before it is measured."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``columns[stage, row]`` is what a stage counts for a row at batch 1: ms for compute and codecs,
    bytes for the two transfers, 1 for what a request pays once (0 where it does not pay it).

    ``cut[row]`` indexes ``cuts``, ``codec[row]`` is a :class:`Codec`; exactly one row, ``local``, sends
    nothing.  ``floats`` says whether some tensor of the row is of floats, which all that is lossy rests on.

    ``infidelity[row]`` is what is known of how far the answer is from the whole network's: 1 less the
    agreement that may be relied on, 0 for lossless rows, and 1 for what nothing is known of.

    Where several tensors cross, a row may be a mix, which has a codec for each: ``mixes[mix[row]]`` then
    lists them in the order of the cut's live slots, 0 beyond the last, and ``codec[row]`` is that of the
    largest tensor.  ``mix[row]`` is -1 for all others.  A tensor that is not of floats is in a mix by its
    lossless codec.  Rows are ordered by cut, and at each cut by codec with the mixes last.
    """

    cuts: tuple[Cut, ...]
    cut: NDArray[np.int64]
    codec: NDArray[np.int64]
    mix: NDArray[np.int64]
    mixes: NDArray[np.int64]
    float_slots: frozenset[int]
    tensors: NDArray[np.int64]
    floats: NDArray[np.bool_]
    remote: NDArray[np.bool_]
    local: int
    columns: NDArray[np.float64]
    largest_payload_bytes: float
    infidelity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.cut)

    def column(self, stage: Stage) -> NDArray[np.float64]:
        """One stage's column, one value per row."""
        values: NDArray[np.float64] = self.columns[POSITION[stage]]
        return values

    @property
    def edge_ms(self) -> NDArray[np.float64]:
        return self.column(Stage.DEVICE)

    @property
    def encode_ms(self) -> NDArray[np.float64]:
        return self.column(Stage.ENCODE)

    @property
    def payload_bytes(self) -> NDArray[np.float64]:
        return self.column(Stage.UPLINK)

    @property
    def decode_ms(self) -> NDArray[np.float64]:
        return self.column(Stage.DECODE)

    @property
    def cloud_ms(self) -> NDArray[np.float64]:
        return self.column(Stage.CLOUD)

    @property
    def result_bytes(self) -> NDArray[np.float64]:
        return self.column(Stage.DOWNLINK)

    def codec_of(self, row: int) -> Codec:
        """The row's codec; of a mix that of its largest tensor."""
        return Codec(int(self.codec[row]))

    def cut_of(self, row: int) -> Cut:
        return self.cuts[int(self.cut[row])]

    def codecs_of(self, row: int) -> tuple[Codec, ...]:
        """One codec per live tensor of the row's cut, in the order of ``cut.live``."""
        count = len(self.cut_of(row).live)
        mix = int(self.mix[row])
        if mix < 0:
            return (self.codec_of(row),) * count
        return tuple(Codec(number) for number in self.mixes[mix, :count].tolist())

    def label_of(self, row: int) -> str:
        """How the row's tensors travel, for people: the codec's label; ``raw`` and the entropy stage where
        none is of floats, which no codec rewrites; empty when nothing is sent.

        A mix lists its tensors in order, equal neighbours once: ``uint8+zstd, 2x raw+lz4``; where that
        gets long it names the largest tensor's only.
        """
        if not self.remote[row]:
            return ""
        if self.mix[row] < 0:
            return _label(self.codec_of(row), bool(self.floats[row]))
        labels = [
            _label(codec, slot in self.float_slots)
            for slot, codec in zip(self.cut_of(row).live, self.codecs_of(row), strict=True)
        ]
        runs = [(label, len(list(run))) for label, run in groupby(labels)]
        text = ", ".join(label if count == 1 else f"{count}x {label}" for label, count in runs)
        if len(text) <= _LONGEST_LABEL:
            return text
        return f"mixed: {self.codec_of(row).label} and others for {len(labels)} tensors"

    def find(self, cut: Cut, *codecs: Codec) -> int | None:
        """The row of a cut and one codec for all of its tensors, or one for each; the local row's codec is
        ignored.  None when there is no such row.

        Where a cut has lossless rows only, a lossy codec means the one with the same entropy stage.
        """
        if not cut.cloud_units:
            return self.local
        if cut not in self.cuts:
            return None
        at_cut = np.flatnonzero(self.cut == self.cuts.index(cut)).tolist()
        if len(set(codecs)) > 1:
            return next((row for row in at_cut if self.mix[row] >= 0 and self.codecs_of(row) == codecs), None)
        codec = codecs[0]
        rows = {self.codec_of(row): row for row in at_cut if self.mix[row] < 0}
        if rows.keys() <= set(LOSSLESS):
            codec = codec.lossless
        return rows.get(codec)

    def select(self, keep: NDArray[np.bool_]) -> Rows:
        """Only some of the rows; the local row always stays."""
        kept = keep.copy()
        kept[self.local] = True
        columns = np.ascontiguousarray(self.columns[:, kept])
        return Rows(
            cuts=self.cuts,
            cut=self.cut[kept],
            codec=self.codec[kept],
            mix=self.mix[kept],
            mixes=self.mixes,
            float_slots=self.float_slots,
            tensors=self.tensors[kept],
            floats=self.floats[kept],
            remote=self.remote[kept],
            local=int(np.count_nonzero(kept[: self.local])),
            columns=columns,
            largest_payload_bytes=float(columns[POSITION[Stage.UPLINK]].max()),
            infidelity=self.infidelity[kept],
        )


def build_rows(
    graph: Graph,
    profile: Profile,
    cloud_unit_ms: Sequence[float],
    codecs: Sequence[Codec] = FAITHFUL,
    cuts: Sequence[Cut] | None = None,
) -> Rows:
    """All candidates of a network on this device with this cloud.

    ``cloud_unit_ms`` is the card's; when it is empty there is no cloud to plan for, and the local row is
    all there is.  ``cuts`` are the graph's own unless wider ones are given; the one without cloud units
    must be among them.  A pair whose payload was never measured is not a candidate.  Where several tensors
    cross, the mixes of ``codecs`` that are optimal for some uplink are candidates beside the codecs
    themselves (:func:`shared.plan.mixes.best_mixes`).  Raises ValueError when the number of units does not
    fit the graph.
    """
    units = len(graph.units)
    if len(profile.unit_ms) != units:
        raise ValueError(f"the profile has {len(profile.unit_ms)} units, the network {units}")
    if len(cloud_unit_ms) not in (0, units):
        raise ValueError(f"the card has {len(cloud_unit_ms)} unit times, the network {units} units")
    candidates = tuple(graph.cuts if cuts is None else cuts)
    local = next(index for index, cut in enumerate(candidates) if not cut.cloud_units)
    senders = [index for index, cut in enumerate(candidates) if cut.cloud_units] if cloud_unit_ms else []
    sending = [candidates[index] for index in senders]

    device, cloud = np.array(profile.unit_ms), np.array(cloud_unit_ms)
    menu = np.array(sorted({int(codec) for codec in codecs} | {int(PLAIN)}))
    payloads = sendable_payloads(
        graph, profile, sending, menu, decode_scale(device, cloud) if senders else 1.0
    )
    count = len(payloads.which)

    columns = np.zeros((len(STAGES), count + 1))  # the local row last, moved to its place at the end
    stage = {name: columns[POSITION[name], :count] for name in STAGES}
    columns[POSITION[Stage.QUEUE]] = columns[POSITION[Stage.OVERHEAD]] = 1.0
    columns[POSITION[Stage.DEVICE], count] = device.sum()
    if senders:
        which = payloads.which
        results = _result_costs(graph, profile, sending)
        stage[Stage.DEVICE][:] = _prefix_sums(device, sending)[which]
        stage[Stage.UPLINK][:], stage[Stage.ENCODE][:], stage[Stage.DECODE][:] = payloads.costs.T
        stage[Stage.NETWORK][:] = stage[Stage.WAIT][:] = 1.0
        stage[Stage.CLOUD][:] = np.maximum(cloud.sum() - _prefix_sums(cloud, sending), 0.0)[which]
        stage[Stage.RESULT_ENCODE][:] = results[which, 1] * decode_scale(device, cloud)
        stage[Stage.DOWNLINK][:] = results[which, 0]
        stage[Stage.RESULT_DECODE][:] = results[which, 2]

    cut = np.array(senders, dtype=np.int64)[payloads.which]
    place = int(np.searchsorted(cut, local))
    order = np.insert(np.arange(count), place, count)
    live_counts = np.array([len(each.live) for each in candidates])
    cut = np.append(cut, local)[order]
    lossy = payloads.floats & ~_is_exact(payloads.codec)
    mixed = payloads.mix >= 0
    lossy[mixed] = ~_is_exact(payloads.mixes[payloads.mix[mixed]]).all(axis=1)
    return Rows(
        cuts=candidates,
        cut=cut,
        codec=np.append(payloads.codec, int(PLAIN))[order],
        mix=np.append(payloads.mix, -1)[order],
        mixes=payloads.mixes,
        float_slots=frozenset(slot for slot, value in graph.values.items() if value.dtype.is_float),
        tensors=live_counts[cut],
        floats=np.append(payloads.floats, False)[order],
        remote=order != count,
        local=place,
        columns=np.ascontiguousarray(columns[:, order]),
        largest_payload_bytes=float(columns[POSITION[Stage.UPLINK]].max()),
        infidelity=np.append(lossy, False)[order].astype(np.float64),
    )


def _is_exact(codecs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Also for no codec, beyond the end of a mix."""
    return np.isin(codecs, [0, *(int(codec) for codec in LOSSLESS)])


def _label(codec: Codec, is_float: bool) -> str:
    return codec.label if is_float else codec.label.replace(PLAIN.label, "raw")


def _prefix_sums(unit_ms: NDArray[np.float64], cuts: Sequence[Cut]) -> NDArray[np.float64]:
    """For every cut the time of the units on the device."""
    sums = np.concatenate([[0.0], np.cumsum(unit_ms)])
    return np.array(
        [sums[cut.index] if cut.index >= 0 else unit_ms[list(cut.edge_units)].sum() for cut in cuts]
    )


def _result_costs(graph: Graph, profile: Profile, cuts: Sequence[Cut]) -> NDArray[np.float64]:
    """Bytes, encode ms and decode ms of the outputs that the cloud computes, which travel plain, per cut."""
    total = np.zeros((len(cuts), 3))
    topological = np.array([cut.index for cut in cuts])
    for producer, cost in output_costs(graph, profile):
        in_cloud = topological <= producer
        for index in np.flatnonzero(topological < 0).tolist():
            in_cloud[index] = producer in cuts[index].cloud_units
        total[in_cloud] += cost
    return total


def output_costs(graph: Graph, profile: Profile) -> list[tuple[int, CodecCost]]:
    """For every output the unit that computes it and what it costs to send plain."""
    costs = []
    for slot in dict.fromkeys(graph.outputs):
        producer = graph.flow.producer.get(slot, -1)
        if producer >= 0:
            nbytes = float(graph.values[slot].at(1).nbytes)
            copy_ms = nbytes / _COPY_BYTES_PER_MS
            measured = profile.payloads.get(slot, {}).get(PLAIN)
            costs.append((producer, measured or CodecCost(nbytes, copy_ms, copy_ms)))
    return costs


def decode_scale(device: NDArray[np.float64], cloud: NDArray[np.float64]) -> float:
    """How much of the device's decode time the cloud takes, until it is measured: as its units do."""
    if device.sum() <= 0:
        return 1.0
    return float(np.clip(cloud.sum() / device.sum(), _FASTEST_DECODE, _SLOWEST_DECODE))
