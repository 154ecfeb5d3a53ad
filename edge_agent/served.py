"""A network on this device: what it takes, and whether the cloud offers the same one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import InputMismatchError
from shared.graph import Graph
from shared.tensor import DType, Shape
from shared.wire.messages import ModelCard

__all__ = ["Served"]

log = logging.getLogger("suture.agent")


@dataclass(slots=True)
class Served:
    """One network on this device.

    ``tables`` is the digest of its transform tables, "" without any.
    ``index`` is its number at the gateway, None while it is not offered; ``asleep_index`` is its number
    while the gateway would serve it but has no replica of it, else None.
    """

    name: str
    graph: Graph
    deadline_ms: float
    tables: str = ""
    index: int | None = None
    asleep_index: int | None = None
    complaint: str = ""
    tables_complaint: str = ""

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], int, int]:
        """A call's leaves as they are, their batch size and their bytes.

        Raises InputMismatchError naming what differs from what the network takes.
        """
        leaves = self.graph.flatten(args, kwargs)
        forms = [_form_of(leaf) for leaf in leaves]
        batch = self.graph.check_inputs(forms)
        return leaves, batch, sum(dtype.itemsize * math.prod(shape) for dtype, shape in forms)

    def on_offer(self, offer: ModelCard | None) -> None:
        """What the gateway's card says of this network; a reason not to use the cloud is logged once."""
        complaint = _complaint(self.name, self.graph.digest, offer)
        # A card without a digest: no replica has loaded the network yet, another card will follow.
        self.index = offer.index if offer and offer.digest and not complaint else None
        self.asleep_index = offer.index if offer and not offer.replicas and not complaint else None
        if complaint and complaint != self.complaint:
            log.error("%s", complaint)
        self.complaint = complaint
        if offer is None or complaint or not offer.replicas:
            return  # nothing is sent, by whatever tables
        complaint = _about_tables(self.name, self.tables, offer.tables or "")
        if complaint and complaint != self.tables_complaint:
            log.warning("%s", complaint)
        self.tables_complaint = complaint


def _form_of(leaf: Any) -> tuple[DType, Shape]:
    """The dtype and shape of a numpy array, a torch tensor or a number, without converting it."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise InputMismatchError(f"inputs are numpy arrays or torch tensors, not {type(leaf).__name__}")
    try:
        return DType.from_label(str(leaf.dtype)), tuple(leaf.shape)
    except KeyError:
        known = ", ".join(dtype.label for dtype in DType)
        raise InputMismatchError(f"tensors of {leaf.dtype} are not supported; those are: {known}") from None


def _complaint(name: str, here: str, offer: ModelCard | None) -> str:
    """Why the cloud is not to be used for this network, for a person; '' when it may be."""
    if offer is None:
        return f"the gateway does not serve {name}; it runs on the device alone"
    if offer.digest and offer.digest != here:
        return (
            f"device and cloud hold different networks under the name {name}: {here} here, {offer.digest} "
            "there; it runs on the device alone until both are given the same graph and weights"
        )
    return f"{name} runs on the device alone: {offer.error}" if offer.error else ""


def _about_tables(name: str, here: str, there: str) -> str:
    """Why the transform is not to be used, for a person; '' when it may be, or nobody asks for it."""
    if here == there:
        return ""
    return (
        f"{name}: the transform is not used: its tables are {here or 'none'} here and {there or 'none'} in "
        "the cloud; give both the same file from `edge-agent fit` as transform_tables, or in the bundle"
    )
