"""Measure the link relay against its own settings: a ruler that was never checked measures nothing.

The relay runs in its own process, as it does for the demo.  For every rate and direction: bytes between
the first and the last arrival over their time.  For every delay: the round trip of one byte.  Then a
recorded rate, a black hole and a reset.  Every byte is compared with what was sent.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from bench.child import run
from bench.contract import Bench, spread
from bench.link_process import LinkProcess

__all__ = ["main"]

_RATES_MBPS = (0.5, 1.0, 5.85, 18.88, 100.0)
_DELAYS_MS = (0.0, 5.0, 25.0)
_TRACE = ((0.3, 8.0), (0.3, 2.0), (0.2, 0.0), (0.2, 12.0))


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("link", argv, description=(__doc__ or "").partition("\n")[0])
    bench.config = {
        "rates_mbps": _RATES_MBPS,
        "delays_ms": _DELAYS_MS,
        "trace_s_mbps": _TRACE,
        "seconds_per_rate": 0.5 if bench.quick else 2.0,
        "round_trips": 20 if bench.quick else 100,
    }
    with tempfile.TemporaryDirectory() as scratch:
        run(_measure(bench, Path(scratch)))
    return bench.finish()


async def _measure(bench: Bench, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        link = await LinkProcess.start([server.getsockname()[:2]], scratch / "link.log")
        try:
            await _rates(bench, server, link)
            await _delays(bench, server, link)
            await _recorded(bench, server, link, _write_trace(scratch / "trace.txt"))
            await _outages(bench, server, link)
        finally:
            await link.stop()


async def _rates(bench: Bench, server: socket.socket, link: LinkProcess) -> None:
    errors = []
    for rate_mbps in bench.track(_RATES_MBPS, "rates"):
        payload = np.random.default_rng(bench.seed).bytes(
            int(rate_mbps * 1e6 / 8 * bench.config["seconds_per_rate"])
        )
        for direction in ("up", "down"):
            # The other direction is ten times as fast: a relay that mixed them up would be found out.
            up_mbps, down_mbps = (1, 10) if direction == "up" else (10, 1)
            await link.set_rate(rate_mbps * up_mbps, rate_mbps * down_mbps)
            with _Pair(server, link.ports[0]) as pair:
                source, sink = (pair.near, pair.far) if direction == "up" else (pair.far, pair.near)
                measured_mbps, received = await asyncio.to_thread(_transfer, source, sink, payload)
            if received != payload:
                bench.unsound(f"bytes differ after {rate_mbps} Mbps {direction}")
            errors.append(abs(measured_mbps / rate_mbps - 1))
            bench.row(
                what=f"{direction}link", set_to=rate_mbps, unit="Mbps", p50=measured_mbps, bytes=len(payload)
            )
    bench.target("largest error of a rate", max(errors) * 100, "%", 10.0, "at_most")


async def _delays(bench: Bench, server: socket.socket, link: LinkProcess) -> None:
    errors = []
    await link.set_rate(100.0)
    with _Pair(server, link.ports[0]) as pair:
        for delay_ms in bench.track(_DELAYS_MS, "delays"):
            await link.set_delay(delay_ms)
            trips = await asyncio.to_thread(_round_trips_ms, pair, bench.config["round_trips"])
            figures = spread(trips)
            errors.append(figures["p50_ms"] - 2 * delay_ms)
            bench.row(
                what="round trip",
                set_to=2 * delay_ms,
                unit="ms",
                p50=figures["p50_ms"],
                p99=figures["p99_ms"],
                samples_ms=figures["samples_ms"],
            )
    if min(errors) < 0:
        bench.unsound("a byte came back before the delay was over")
    bench.target("largest excess of a median round trip", max(errors), "ms", 3.0, "at_most")
    await link.set_delay(0.0)


async def _recorded(bench: Bench, server: socket.socket, link: LinkProcess, trace: Path) -> None:
    seconds = sum(seconds for seconds, _ in _TRACE) * (1 if bench.quick else 3)
    mean_mbps = sum(seconds * mbps for seconds, mbps in _TRACE) / sum(seconds for seconds, _ in _TRACE)
    with _Pair(server, link.ports[0]) as pair:
        await link.replay(trace)
        # Over whole rounds of the recording: whatever its phase, the mean is then the recording's.
        measured_mbps = await asyncio.to_thread(_saturate_mbps, pair, seconds)
    bench.row(what="recorded uplink, mean", set_to=mean_mbps, unit="Mbps", p50=measured_mbps)
    bench.target("error of a recorded mean", abs(measured_mbps / mean_mbps - 1) * 100, "%", 10.0, "at_most")
    await link.set_rate(None)


def _write_trace(path: Path) -> Path:
    starts = [sum(seconds for seconds, _ in _TRACE[:index]) for index in range(len(_TRACE))]
    path.write_text("".join(f"{at} {mbps}\n" for at, (_, mbps) in zip(starts, _TRACE, strict=True)))
    return path


async def _outages(bench: Bench, server: socket.socket, link: LinkProcess) -> None:
    with _Pair(server, link.ports[0]) as pair:
        await link.cut("black-hole")
        pair.near.sendall(b"x")
        pair.far.settimeout(0.3)
        try:
            pair.far.recv(1)
            bench.unsound("a byte crossed a black hole")
        except TimeoutError:
            pass
        await link.heal()
        pair.far.settimeout(5)
        if pair.far.recv(1) != b"x":
            bench.unsound("the byte that waited out a black hole is lost")
        await link.cut("reset")
        try:
            pair.near.recv(1)
            bench.unsound("a reset looked like an orderly end")
        except ConnectionResetError:
            pass
    try:
        socket.create_connection(("127.0.0.1", link.ports[0]), timeout=1).close()
        bench.unsound("a cut link accepted a connection")
    except ConnectionRefusedError:
        pass
    await link.heal()
    with _Pair(server, link.ports[0]) as pair:
        trips = await asyncio.to_thread(_round_trips_ms, pair, 3)
    bench.row(what="round trip after a cut", set_to=0.0, unit="ms", p50=sorted(trips)[1])


class _Pair:
    """Both ends of one connection through the relay."""

    def __init__(self, server: socket.socket, port: int) -> None:
        self.near = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.far, _ = server.accept()
        for end in (self.near, self.far):
            end.settimeout(60)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()


def _transfer(source: socket.socket, sink: socket.socket, payload: bytes) -> tuple[float, bytes]:
    """Mbps between the first arrival and the last, without the first one's bytes; and all bytes."""
    sender = threading.Thread(target=source.sendall, args=(payload,))
    sender.start()
    received = bytearray(sink.recv(65_536))
    first, started_s = len(received), time.perf_counter()
    while len(received) < len(payload) and (data := sink.recv(65_536)):
        received += data
    elapsed_s = time.perf_counter() - started_s
    sender.join()
    return (len(received) - first) * 8 / elapsed_s / 1e6, bytes(received)


def _round_trips_ms(pair: _Pair, count: int) -> list[float]:
    trips = []
    for _ in range(count):
        started_s = time.perf_counter()
        pair.near.sendall(b"?")
        pair.far.recv(1)
        pair.far.sendall(b"!")
        pair.near.recv(1)
        trips.append((time.perf_counter() - started_s) * 1000)
    return trips


def _saturate_mbps(pair: _Pair, seconds: float) -> float:
    """The mean rate at which bytes arrive while the sender has always more to send."""
    stop = threading.Event()

    def send() -> None:
        pair.near.settimeout(0.1)
        while not stop.is_set():
            with suppress(TimeoutError):
                pair.near.send(bytes(16_384))

    sender = threading.Thread(target=send)
    sender.start()
    # The relay's queue, and the link, must be full before counting starts.
    pair.far.recv(65_536)
    started_s, received = time.perf_counter(), 0
    while (left_s := started_s + seconds - time.perf_counter()) > 0:
        pair.far.settimeout(left_s)
        with suppress(TimeoutError):
            received += len(pair.far.recv(65_536))
    stop.set()
    sender.join()
    return received * 8 / seconds / 1e6
