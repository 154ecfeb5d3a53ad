"""The transform's tables of one network: one for each tensor that it may be used for, in one file.

The file is safetensors, of bytes that are checked in full before they are used, and holds no code.  Device
and cloud must hold the same tables, and compare their digest before the device uses them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.codec.transform.payload import is_coded_by
from shared.codec.transform.tables import TransformTables, tables_from_bytes, tables_to_bytes
from shared.errors import CodecError
from shared.tensor import TensorSpec
from shared.wire.frame import Buffer

__all__ = ["MAX_FILE_BYTES", "NetworkTables"]

MAX_FILE_BYTES = 2**30
_MAX_ABOUT_BYTES = 2**20
_MAX_FITTED = 4096
_FORMAT = 1
_ABOUT = "about"
_SLOT = re.compile(r"slot\.(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, eq=False)
class NetworkTables:
    """``network`` is the digest of the network that they are of; ``fitted_to`` names the inputs that they
    were fitted to (:func:`shared.calibration.fingerprint`), on which nothing is to be judged."""

    network: str
    by_slot: Mapping[int, TransformTables]
    fitted_to: frozenset[str] = frozenset()

    @functools.cached_property
    def digest(self) -> str:
        """Names the tables by all that decoding depends on."""
        listed = [self.network, [[slot, self.by_slot[slot].digest] for slot in sorted(self.by_slot)]]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def check(self, network: str, specs: Mapping[int, TensorSpec]) -> None:
        """Raises CodecError unless they are of the network with this digest, of which ``specs`` are the
        tensors at batch 1, or at the only batch that it runs at."""
        if self.network != network:
            raise CodecError(f"the transform's tables are of the network {self.network}, not of {network}")
        for slot, tables in self.by_slot.items():
            spec = specs.get(slot)
            if spec is None or not spec.dtype.is_float or not is_coded_by(tables, spec):
                raise CodecError(f"the transform's tables of slot {slot} are of no tensor of this network")

    def to_bytes(self) -> bytes:
        about = {"format": _FORMAT, "network": self.network, "fitted_to": sorted(self.fitted_to)}
        arrays = {_ABOUT: np.frombuffer(json.dumps(about, sort_keys=True).encode(), dtype=np.uint8)}
        for slot, tables in sorted(self.by_slot.items()):
            arrays[f"slot.{slot}"] = np.frombuffer(tables_to_bytes(tables), dtype=np.uint8)
        data: bytes = save(arrays)
        return data

    @classmethod
    def from_bytes(cls, data: Buffer) -> NetworkTables:
        """Raises CodecError for anything that :meth:`to_bytes` does not write."""
        if memoryview(data).nbytes > MAX_FILE_BYTES:
            raise CodecError(f"transform tables of more than {MAX_FILE_BYTES} bytes")
        try:
            arrays: dict[str, Any] = load(bytes(data))
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CodecError(f"transform tables that cannot be read: {error}") from error
        about = _about(arrays.pop(_ABOUT, None))
        by_slot = {}
        for name, array in sorted(arrays.items()):
            named = _SLOT.fullmatch(name)
            if named is None or array.dtype != np.uint8 or array.ndim != 1:
                raise CodecError(f"transform tables hold {name!r:.80} of {array.dtype}")
            by_slot[int(named[1])] = tables_from_bytes(array.tobytes())
        return cls(about["network"], by_slot, frozenset(about["fitted_to"]))


def _about(array: Any) -> dict[str, Any]:
    if array is None or array.dtype != np.uint8 or array.nbytes > _MAX_ABOUT_BYTES:
        raise CodecError("transform tables that do not say what network they are of")
    try:
        about = json.loads(array.tobytes())
    except (ValueError, RecursionError) as error:
        raise CodecError(f"transform tables that do not say what network they are of: {error}") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise CodecError("transform tables of another format; fit them again with this version")
    fitted = about.get("fitted_to")
    if not (
        isinstance(about.get("network"), str)
        and isinstance(fitted, list)
        and len(fitted) <= _MAX_FITTED
        and all(isinstance(each, str) for each in fitted)
    ):
        raise CodecError("transform tables that do not say what network they are of")
    return about
