"""What a radio draws while it sends and receives, by the type of the link.  Pure; no device is touched.

All models are lines: ``P[mW] = uplink slope * uplink Mbps + downlink slope * downlink Mbps + base``.

Sources: 3G, LTE and Wi-Fi are Huang et al., "A Close Examination of Performance and Power
Characteristics of 4G LTE Networks", MobiSys 2012 (the models that Neurosurgeon and DADS use).
The modern slopes are least-squares fits to the uplink power measurements released with Narayanan et al.,
"A Variegated Look at 5G in the Wild", SIGCOMM 2021.  Those fits give an uplink slope only: their base
and downlink slope are 0 here, so that their energy is the part that grows with the bytes sent and leaves
out what the radio draws for merely being connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["RADIOS", "LinkType", "Radio", "energy_mj", "power_mw", "transfer_ms"]


class LinkType(StrEnum):
    """What carries the device's packets; the value is what a person writes in a configuration."""

    WIRED = "wired"
    WIFI = "wifi"
    LTE = "lte"
    THREE_G = "3g"
    LTE_MODERN = "lte-modern"
    FIVE_G_LOW_BAND = "5g-low-band"
    FIVE_G_MMWAVE = "5g-mmwave"


@dataclass(frozen=True, slots=True)
class Radio:
    """One line: slopes in mW per Mbps and the base in mW, drawn for as long as the radio transfers."""

    uplink_mw_per_mbps: float
    downlink_mw_per_mbps: float
    base_mw: float


RADIOS: dict[LinkType, Radio] = {
    LinkType.WIRED: Radio(0.0, 0.0, 0.0),
    LinkType.WIFI: Radio(283.17, 137.01, 132.86),
    LinkType.LTE: Radio(438.39, 51.97, 1288.04),
    LinkType.THREE_G: Radio(868.98, 122.12, 817.88),
    LinkType.LTE_MODERN: Radio(76.7, 0.0, 0.0),
    LinkType.FIVE_G_LOW_BAND: Radio(32.2, 0.0, 0.0),
    LinkType.FIVE_G_MMWAVE: Radio(8.9, 0.0, 0.0),
}


def power_mw(link: LinkType, uplink_mbps: float, downlink_mbps: float = 0.0) -> float:
    """Power in mW of a radio that transfers at these rates in megabits (1e6 bits) a second.

    Raises ValueError for a negative rate.
    """
    if uplink_mbps < 0 or downlink_mbps < 0:
        raise ValueError(f"a rate cannot be negative: {uplink_mbps} up, {downlink_mbps} down")
    radio = RADIOS[link]
    return radio.uplink_mw_per_mbps * uplink_mbps + radio.downlink_mw_per_mbps * downlink_mbps + radio.base_mw


def transfer_ms(payload_bytes: int, mbps: float) -> float:
    """Time in ms that the bytes take at this rate; 0 bytes take none.  Raises ValueError for a dead link."""
    if payload_bytes == 0:
        return 0.0
    if mbps <= 0:
        raise ValueError(f"{payload_bytes} bytes never pass a link of {mbps} Mbps")
    return payload_bytes * 8 / (mbps * 1000)


def energy_mj(
    link: LinkType,
    uplink_bytes: int,
    uplink_mbps: float,
    downlink_bytes: int = 0,
    downlink_mbps: float = 0.0,
) -> float:
    """Energy in mJ of an upload of these bytes at this rate, and of a download after it.

    The two directions are charged one after the other, each for its own duration.  Raises ValueError when
    bytes are to pass a link of rate 0.
    """
    up_ms = transfer_ms(uplink_bytes, uplink_mbps)
    down_ms = transfer_ms(downlink_bytes, downlink_mbps)
    up = power_mw(link, uplink_mbps) * up_ms if uplink_bytes else 0.0
    down = power_mw(link, 0.0, downlink_mbps) * down_ms if downlink_bytes else 0.0
    return (up + down) / 1000
