"""A linear transform of a tensor, one quantiser and an entropy coder: fewer bytes at the same answer.

Nothing is trained.  On the machine that registers a network, once for each tensor of a cut::

    tables = fit(samples, gradients)            # samples of the live tensor, batch first, from calibration
    data = tables_to_bytes(tables)              # goes with the registration; safetensors, no code

``gradients`` are optional and gain a quarter of the bytes: :func:`output_gradients` makes them from the
part of the network above the cut.  On both sides, after comparing ``tables.digest``::

    tables = tables_from_bytes(data)            # CodecError for anything damaged
    segments = encode(tensor, tables, step)     # step 0 (finest) to STEPS - 1; None: send it exactly
    decoded = decode(segments, tables, spec)    # .tensor, of the spec's strides; also of the first segments

A tensor may be in several segments, ``encode(..., segments=4)``, of which the first ones alone decode to a
coarser tensor; ``decoded.step`` and ``decoded.segments`` say how coarse.  ``pack`` and ``unpack`` put all
segments into one payload, which is smaller than the plain elements, or ``encode`` gives None.

``tables.expected_bits[step]`` is what a sample is expected to take; bytes and fidelity of a step are for
the caller to measure, on inputs that the tables were not fitted to.  All functions are safe in any thread
and belong inside :func:`shared.codec.threads.one_thread`.
"""

from __future__ import annotations

from shared.codec.transform.fit import fit, is_fitted
from shared.codec.transform.geometry import Geometry, geometries
from shared.codec.transform.payload import (
    SEGMENTS,
    Decoded,
    decode,
    encode,
    ideal_bits,
    is_coded_by,
    pack,
    quantise,
    unpack,
)
from shared.codec.transform.sensitivity import output_gradients
from shared.codec.transform.tables import (
    LEVELS_PER_OCTAVE,
    STEPS,
    TransformTables,
    tables_from_bytes,
    tables_to_bytes,
)

__all__ = [
    "LEVELS_PER_OCTAVE",
    "SEGMENTS",
    "STEPS",
    "Decoded",
    "Geometry",
    "TransformTables",
    "decode",
    "encode",
    "fit",
    "geometries",
    "ideal_bits",
    "is_coded_by",
    "is_fitted",
    "output_gradients",
    "pack",
    "quantise",
    "tables_from_bytes",
    "tables_to_bytes",
    "unpack",
]
