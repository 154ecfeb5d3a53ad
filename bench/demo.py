"""Real photographs, classified by one network on two sides of a link that fails and heals.

``make demo`` starts Ray, ``serve run cloud_cluster``, a link with a rate and a delay, and an agent, each
in its own processes; sends photographs while the link gets worse, dies and comes back; compares every
answer with the whole network, computed here by eager PyTorch; then sends the same photographs at the
same rates with the device alone and with the cloud alone, and draws what happened.

Both ends are this machine, so the device's compute is stretched by a stated factor.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

from bench.candidates import codecs_in
from bench.child import ChildError, run
from bench.contract import Bench
from bench.journal import Sent, Step, draw, header, line, rate_label, summary
from bench.photos import Photo, load_photos
from bench.stage import Stage, running_stage
from edge_agent.client import Client
from edge_agent.result import Result
from shared.errors import ConfigError

__all__ = ["Judge", "calibration_calls", "main"]

_MODEL = "efficientnet-lite0"
_DEADLINE_MS = 20_000.0
_CLOSE = 1e-4
_LOSSLESS = ("", "raw", "float32")
_PERIOD_S = 0.5
_DIES_AFTER_S = 0.015
_QUICK_SLOWEST_MBPS = 5.0

_WALK = tuple(
    Step(mbps, requests=10, seconds=10 * _PERIOD_S)
    for mbps in (100, 50, 25, 12, 6, 3, 1.5, 0.5, 0, 0.5, 3, 6, 12, 25, 50, 100, 0, 100)
)
_QUICK_WALK = tuple(Step(mbps, requests=3, seconds=1.5) for mbps in (100, 12, 0.5, 0, 12, 100))


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("demo", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    bench.config = {
        "model": _MODEL,
        "stretch": bench.options.stretch,
        "round_trip_ms": bench.options.round_trip_ms,
        "deadline_ms": _DEADLINE_MS,
    }
    began_s = time.monotonic()
    try:
        run(_run(bench))
    except KeyboardInterrupt:
        bench.console.print("stopped; nothing that was started is left")
        return 130
    except ConfigError as error:
        bench.console.print(f"[bold red]cannot start:[/] {error}", highlight=False)
        return 3
    except ChildError as error:
        bench.console.print(Text.assemble(("failed: ", "bold red"), str(error)))
        return 1
    bench.console.print(f"{time.monotonic() - began_s:.0f} s in all; nothing that was started is left")
    return _report(bench)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stretch", type=float, default=12.0, help="how many times slower the device is")
    parser.add_argument("--round-trip-ms", type=float, default=10.0, help="delay of the link, both ways")
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), metavar="FILE")


async def _run(bench: Bench) -> None:
    async with contextlib.AsyncExitStack() as stack:
        status = bench.console.status("")
        stack.enter_context(status)
        photos = load_photos()
        judging = asyncio.create_task(asyncio.to_thread(Judge, photos))
        stage = await stack.enter_async_context(
            running_stage(
                _MODEL,
                stretch=bench.options.stretch,
                delay_ms=bench.options.round_trip_ms / 2,
                calibration="bench.demo:calibration_calls",
                say=lambda step: status.update(f"{step} ..."),
            )
        )
        status.update("computing the whole network here, as the judge ...")
        judge = await judging
        client = await stack.enter_async_context(Client(stage.socket))
        status.stop()
        walk = _QUICK_WALK if bench.quick else _WALK
        sender = _Sender(bench, stage, client, photos, judge)
        _introduce(bench, stage, photos)
        await _walk(sender, walk)
        # The slowest take the cloud seconds a photograph, which a smoke test does not have.
        slowest_mbps = _QUICK_SLOWEST_MBPS if bench.quick else 0.0
        rates = {step.mbps for step in walk if step.mbps > slowest_mbps}
        await _compare(sender, sorted(rates, reverse=True))
        sent = sender.sent
        bench.rows.extend(asdict(each) for each in sent)
        await asyncio.to_thread(
            draw, sent, len(stage.facts["cuts"]) - 1, bench.options.stretch, bench.options.picture
        )


def calibration_calls() -> list[tuple[npt.NDArray[np.uint8]]]:
    """Typical inputs for the agent to measure codecs on: the photographs, mirrored, so none that is sent."""
    return [(np.ascontiguousarray(photo.image[..., ::-1]),) for photo in load_photos()]


class Judge:
    """What eager PyTorch says of every photograph; shares no code with the pipeline but the network."""

    def __init__(self, photos: Sequence[Photo]) -> None:
        import torch

        from shared import zoo

        network = zoo.build(_MODEL)
        self.labels = network.labels or ()
        with torch.inference_mode():
            self._expected = {
                photo.name: network.module(torch.from_numpy(photo.image)).numpy() for photo in photos
            }

    def label(self, scores: np.ndarray[Any, Any]) -> str:
        return self.labels[int(scores.argmax())]

    def compare(self, photo: Photo, result: Result) -> tuple[bool, float]:
        """Whether the answer is right, and its largest error relative to the largest score.

        Right is the same class, and with a codec that keeps every bit also the same scores.
        """
        expected, scores = self._expected[photo.name], np.asarray(result.outputs)
        if scores.shape != expected.shape:
            return False, float("inf")
        error = float(np.abs(scores - expected).max() / np.abs(expected).max())
        lossless = all(label.partition("+")[0] in _LOSSLESS for label in codecs_in(result.codec))
        return bool(scores.argmax() == expected.argmax()) and (error < _CLOSE or not lossless), error


class _Sender:
    """Sends photographs in turn and keeps what became of them."""

    def __init__(
        self, bench: Bench, stage: Stage, client: Client, photos: Sequence[Photo], judge: Judge
    ) -> None:
        self.bench = bench
        self.stage = stage
        self.sent: list[Sent] = []
        self._client = client
        self._photos = itertools.cycle(photos)
        self._judge = judge
        self._began_s = time.monotonic()

    async def send(self, policy: str, number: int, mbps: float) -> Sent:
        """One photograph; a wrong answer or a request that fails makes the run unsound."""
        photo = next(self._photos)
        at_s = time.monotonic() - self._began_s
        result = await self._client.infer(_MODEL, photo.image, deadline_ms=_DEADLINE_MS)
        right, error = self._judge.compare(photo, result)
        if not right:
            self.bench.unsound(f"{photo.name} at {mbps:g} Mbps: wrong at {result.cut}, {result.codec}")
        sent = Sent(
            policy=policy,
            step=number,
            mbps=mbps,
            at_s=at_s,
            photo=photo.name,
            where=str(result.where),
            cut=result.cut_index,
            cut_name=result.cut,
            codec=result.codec,
            uplink_bytes=result.uplink_bytes,
            latency_ms=result.latency_ms,
            predicted_ms=result.decision.get("predicted_ms"),
            top1=self._judge.label(np.asarray(result.outputs)),
            right=right,
            error=error,
            fallback=result.fallback,
        )
        self.sent.append(sent)
        return sent


async def _walk(sender: _Sender, walk: Sequence[Step]) -> None:
    console = sender.bench.console
    console.print(header(console.width), soft_wrap=True)
    for number, step in enumerate(walk):
        console.rule(Text(rate_label(step.mbps), style="dim"), align="left", style="dim")
        if step.mbps:
            await sender.stage.link.set_rate(step.mbps)
            await sender.stage.link.heal()
        began_s = time.monotonic()
        for turn in range(step.requests):
            request = asyncio.create_task(sender.send("suture", number, step.mbps))
            if not step.mbps and not turn:
                # With a photograph on its way, as links die.
                await asyncio.sleep(_DIES_AFTER_S)
                await sender.stage.link.cut("black-hole")
            console.print(line(await request, console.width), soft_wrap=True)
            # Evenly over the step, as a camera would; a slow answer is not waited for twice.
            due_s = began_s + (turn + 1) * step.seconds / step.requests
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))


async def _compare(sender: _Sender, rates: Sequence[float]) -> None:
    """The device alone and the cloud alone, in turns, at every rate of the walk."""
    stage, quick = sender.stage, sender.bench.quick
    cuts = stage.facts["cuts"]
    for number, mbps in enumerate(sender.bench.track(rates, "the device alone, the cloud alone")):
        await stage.link.set_rate(mbps)
        await stage.wait_for_uplink(_MODEL, mbps)
        for _ in range(2 if quick else 4 if mbps >= 3 else 3):
            await stage.agent.call("pin", model=_MODEL, cut=len(cuts) - 1)
            await sender.send("device", number, mbps)
            # At the pace of the walk: a processor that has just computed the same thing is faster.
            await asyncio.sleep(_PERIOD_S / 2)
            codec = await stage.agent.call("best_codec", model=_MODEL, cut=0)
            await stage.agent.call("pin", model=_MODEL, cut=0, codec=codec)
            await sender.send("cloud", number, mbps)
            await asyncio.sleep(_PERIOD_S / 2)
    await stage.agent.call("unpin", model=_MODEL)


def _introduce(bench: Bench, stage: Stage, photos: Sequence[Photo]) -> None:
    device_ms, cloud_ms = stage.facts["device_ms"], stage.facts["cloud_ms"]
    sources = sorted({photo.source for photo in photos})
    bench.config |= {"device_ms": device_ms, "cloud_ms": cloud_ms, "cuts": len(stage.facts["cuts"])}
    bench.console.print(
        f"{_MODEL}, trained on ImageNet, cut at any of {len(stage.facts['cuts'])} places; "
        f"{len(photos)} crops of {', '.join(sources)}\n"
        f"device: this machine, its compute stretched {bench.options.stretch:g}x: {device_ms:.0f} ms for "
        f"the whole network;  cloud: a Ray Serve replica, one thread: {cloud_ms:.0f} ms\n"
        f"link: {bench.options.round_trip_ms:g} ms round trip; every answer is compared with eager PyTorch",
        highlight=False,
    )


def _report(bench: Bench) -> int:
    sent = [Sent(**row) for row in bench.rows]
    bench.show("median latency, ms", summary(sent))
    walked = [each for each in sent if each.policy == "suture"]
    places = sorted({each.where for each in walked})
    cuts = len({each.cut for each in walked})
    right = sum(each.right for each in sent)
    bench.console.print(
        f"{right} of {len(sent)} answers right; ran in {', '.join(places)}, at {cuts} different cuts; "
        f"picture: {bench.options.picture}",
        highlight=False,
    )
    bench.target("answers that are right", right / max(len(sent), 1) * 100, "%", 100.0, "at_least")
    bench.target("different cuts used", float(cuts), "cuts", 3.0, "at_least")
    return bench.finish(show_rows=False)


if __name__ == "__main__":
    raise SystemExit(main())
