"""How the tensors of every cut can travel, and what that costs: each codec alone, and the mixes of codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.codec import Codec
from shared.plan.mixes import best_mixes
from shared.plan.profile import Profile

if TYPE_CHECKING:
    from shared.graph.ir import Cut, Graph

__all__ = ["LOSSLESS", "PLAIN", "Payloads", "sendable_payloads"]

PLAIN = Codec.FLOAT32
"""The codec of outputs, of inputs that are not floats, and of the row that sends nothing."""

LOSSLESS = (Codec.FLOAT32, Codec.FLOAT32_LZ4, Codec.FLOAT32_ZSTD)
"""All that can differ for a tensor that is not of floats: the other codecs leave it as it is."""


class Payloads(NamedTuple):
    """What crosses, per row in order: the index of its cut, codec, mix and whether it has floats as in
    :class:`shared.plan.rows.Rows`; ``costs`` are bytes, encode ms and decode ms."""

    which: NDArray[np.int64]
    codec: NDArray[np.int64]
    mix: NDArray[np.int64]
    mixes: NDArray[np.int64]
    floats: NDArray[np.bool_]
    costs: NDArray[np.float64]


def sendable_payloads(
    graph: Graph, profile: Profile, cuts: Sequence[Cut], menu: NDArray[np.int64], decoding: float
) -> Payloads:
    """All that can be sent at ``cuts``; the cloud decodes in ``decoding`` of the device's time.

    A pair of cut and codec is left out when a tensor of the cut was not measured in that codec, or when the
    codec differs from another one for float tensors only and the cut has none.
    """
    slots = sorted({slot for cut in cuts for slot in cut.live})
    place = {slot: index for index, slot in enumerate(slots)}
    unknown = (np.nan, np.nan, np.nan)
    table = np.array(
        [
            [profile.payloads.get(slot, {}).get(Codec(codec), unknown) for codec in menu.tolist()]
            for slot in slots
        ],
        dtype=np.float64,
    ).reshape(len(slots), len(menu), 3) * np.array([1.0, 1.0, decoding])
    floats = np.array([graph.values[slot].dtype.is_float for slot in slots], dtype=np.bool_)

    costs = np.zeros((len(cuts), len(menu), 3))
    has_floats = np.zeros(len(cuts), dtype=np.bool_)
    full = [index for index, cut in enumerate(cuts) if cut.live]
    if full:
        flat = np.array([place[slot] for index in full for slot in cuts[index].live])
        starts = np.cumsum([0] + [len(cuts[index].live) for index in full[:-1]])
        costs[full] = np.add.reduceat(table[flat], starts, axis=0)
        has_floats[full] = np.logical_or.reduceat(floats[flat], starts)
    lossless = np.isin(menu, [int(codec) for codec in LOSSLESS])
    empty = np.array([not cut.live for cut in cuts], dtype=np.bool_)
    allowed = np.where(empty[:, None], menu == int(PLAIN), has_floats[:, None] | lossless)
    sendable = allowed & ~np.isnan(costs).any(axis=2)
    which, choice = np.nonzero(sendable)

    # What is not of floats has one codec for each entropy stage, under its lossless name.
    names = np.array([int(Codec(codec).lossless) for codec in menu.tolist()])
    again = np.ones(len(menu), dtype=np.bool_)
    again[np.unique(names, return_index=True)[1]] = False
    sent_as = np.where(floats[:, None], menu, names)
    # The coarsest step would be in every mix that pays, though none may use it: no mixes of the transform.
    unmixed = np.array([Codec(codec).form.is_transform for codec in menu.tolist()])
    found = best_mixes(
        np.where(((~floats[:, None] & again) | unmixed)[:, :, None], np.nan, table),
        [[place[slot] for slot in cut.live] for cut in cuts],
    )
    width = found.choice.shape[1]
    tensors = np.full((len(cuts), width), -1, dtype=np.int64)
    for index, cut in enumerate(cuts):
        tensors[index, : len(cut.live)] = [place[slot] for slot in cut.live]
    at = tensors[found.cut]
    there = at >= 0
    mixes = np.where(there, sent_as[at, found.choice], 0)
    plain = np.zeros(len(mixes), dtype=np.bool_)
    for column in range(len(menu)):
        same = np.where(there, sent_as[at, column] == mixes, True).all(axis=1)
        plain |= same & sendable[found.cut, column]
    at, there, mixes = at[~plain], there[~plain], mixes[~plain]
    mixed_cut, mixed_choice = found.cut[~plain], found.choice[~plain]
    mixed_costs = np.where(there[:, :, None], table[at, mixed_choice], 0.0).sum(axis=1)
    sizes = np.array([graph.values[slot].at(1).nbytes for slot in slots], dtype=np.int64)
    largest = np.where(there, sizes[at], -1).argmax(axis=1) if width else np.zeros(0, dtype=np.int64)

    every = np.concatenate([which, mixed_cut])
    order = np.argsort(every, kind="stable")
    return Payloads(
        which=every[order],
        codec=np.concatenate([menu[choice], mixes[np.arange(len(mixes)), largest]])[order],
        mix=np.concatenate([np.full(len(which), -1), np.arange(len(mixes))])[order],
        mixes=mixes,
        floats=has_floats[every[order]],
        costs=np.concatenate([costs[which, choice], mixed_costs])[order],
    )
