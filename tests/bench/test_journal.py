from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from bench.journal import Sent, draw, header, line, summary


def sent(policy: str = "suture", mbps: float = 10.0, ms: float = 50.0, **changes: Any) -> Sent:
    values: dict[str, Any] = {
        "policy": policy,
        "step": 0,
        "mbps": mbps,
        "at_s": 0.0,
        "photo": "china.jpg",
        "where": "split" if policy == "suture" else policy,
        "cut": 18,
        "cut_name": "blocks.3.project conv2d+batch_norm",
        "codec": "uint8+zstd",
        "uplink_bytes": 29_512,
        "latency_ms": ms,
        "predicted_ms": 48.0,
        "top1": "palace, royal court",
        "right": True,
        "error": 0.001,
        "fallback": None,
    }
    return Sent(**values | changes)


def test_the_summary_sets_each_rate_beside_both_extremes() -> None:
    journal = [
        sent(ms=40),
        sent(ms=60),
        sent(ms=500, where="device-fallback"),
        sent("device", ms=90),
        sent("cloud", ms=120),
        sent("cloud", ms=80, where="device-fallback"),
        sent(mbps=0.0, ms=70, where="device"),
    ]
    ten, dead, mean = summary(journal)
    assert ten == {
        "link": "10 Mbps",
        "suture": 60,
        "device only": 90,
        "cloud only": 120,
        "vs better": pytest.approx(60 / 90),
        "mostly": "split",
        "cut after": "blocks.3.project conv2d+batch_norm",
        "with": "uint8+zstd",
    }
    assert dead["link"] == "dead"
    assert dead["device only"] is None
    assert dead["vs better"] is None
    # Only rates at which all three were measured may be averaged.
    assert mean == {
        "link": "mean",
        "suture": 60,
        "device only": 90,
        "cloud only": 120,
        "vs better": pytest.approx(60 / 90),
    }


def test_lines_are_as_wide_as_their_header_and_end_in_a_verdict() -> None:
    for width in (80, 100, 120, 300):
        right, wrong = line(sent(), width), line(sent(right=False, where="cloud"), width)
        assert right.cell_len == wrong.cell_len == header(width).cell_len <= max(width, 90)
        assert right.plain.rstrip().endswith("\N{CHECK MARK}")
        assert wrong.plain.rstrip().endswith("\N{BALLOT X}")
    for part in ("10 Mbps", "split", "blocks.3.project conv2d+batch_norm", "uint8+zstd", "29,512", "palace"):
        assert part in line(sent(), 120).plain


def test_the_picture_is_drawn_of_a_walk_with_an_outage(tmp_path: Path) -> None:
    journal = [
        sent(mbps=100, at_s=0, step=0, where="cloud", cut=0),
        sent(mbps=10, at_s=1, step=1),
        sent(mbps=0, at_s=2, step=2, where="device-fallback"),
        sent(mbps=0, at_s=3, step=2, where="device", cut=59),
        sent("device", at_s=9),
    ]
    draw(journal, 59, 12.0, tmp_path / "walk.png")
    pixels = imread(tmp_path / "walk.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 800
    assert len({tuple(pixel) for row in pixels[::7] for pixel in row[::3].tolist()}) > 5
