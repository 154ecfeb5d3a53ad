"""The radio models against figures worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.plan.radio import LinkType, energy_mj, power_mw, transfer_ms


@pytest.mark.parametrize(
    ("link", "uplink_mbps", "downlink_mbps", "expected_mw"),
    [
        (LinkType.WIFI, 12.8, 0.0, 283.17 * 12.8 + 132.86),  # 3757.4
        (LinkType.LTE, 6.8, 0.0, 4269.092),
        (LinkType.THREE_G, 1.4, 0.0, 2034.452),
        (LinkType.LTE, 0.0, 10.0, 1807.74),
        (LinkType.LTE_MODERN, 10.0, 50.0, 767.0),
        (LinkType.FIVE_G_LOW_BAND, 10.0, 0.0, 322.0),
        (LinkType.FIVE_G_MMWAVE, 100.0, 0.0, 890.0),
        (LinkType.WIRED, 1000.0, 1000.0, 0.0),
    ],
)
def test_power_is_the_published_line(
    link: LinkType, uplink_mbps: float, downlink_mbps: float, expected_mw: float
) -> None:
    assert power_mw(link, uplink_mbps, downlink_mbps) == pytest.approx(expected_mw, abs=1e-6)


def test_an_alexnet_input_over_the_three_links_of_the_paper() -> None:
    """154,587 bytes (227x227x3): durations 883, 182 and 97 ms, so 1797, 776 and 363 mJ."""
    image = 227 * 227 * 3
    assert transfer_ms(image, 1.4) == pytest.approx(883.354, abs=1e-3)
    assert energy_mj(LinkType.THREE_G, image, 1.4) == pytest.approx(1797.14, abs=0.01)
    assert energy_mj(LinkType.LTE, image, 6.8) == pytest.approx(776.41, abs=0.01)
    assert energy_mj(LinkType.WIFI, image, 12.8) == pytest.approx(363.03, abs=0.01)


def test_the_download_is_charged_after_the_upload() -> None:
    up = energy_mj(LinkType.WIFI, 1_000_000, 8.0)  # 1 s at 2398.22 mW
    both = energy_mj(LinkType.WIFI, 1_000_000, 8.0, 1_000_000, 80.0)  # and 0.1 s at 11093.66 mW
    assert up == pytest.approx(2398.22)
    assert both - up == pytest.approx(1109.366)


def test_nothing_sent_costs_nothing_even_on_a_dead_link() -> None:
    assert energy_mj(LinkType.LTE, 0, 0.0) == 0.0


def test_bytes_over_a_dead_link_and_negative_rates_are_errors() -> None:
    with pytest.raises(ValueError, match="never pass"):
        energy_mj(LinkType.LTE, 1, 0.0)
    with pytest.raises(ValueError, match="negative"):
        power_mw(LinkType.WIFI, -1.0)


@given(
    st.sampled_from([LinkType.WIFI, LinkType.LTE, LinkType.THREE_G]),
    st.integers(1, 10**8),
    st.floats(0.1, 1000.0),
    st.floats(1.01, 10.0),
)
def test_a_faster_link_spends_less_on_the_same_bytes(
    link: LinkType, payload: int, mbps: float, faster: float
) -> None:
    """The base is paid for a shorter time; what the slope costs per byte does not change."""
    assert energy_mj(link, payload, mbps * faster) < energy_mj(link, payload, mbps)


def test_every_link_type_has_a_name_that_reads_back() -> None:
    assert [LinkType(link.value) for link in LinkType] == list(LinkType)
    assert LinkType("5g-mmwave") is LinkType.FIVE_G_MMWAVE
