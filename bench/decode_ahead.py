"""Does it pay to decode the next request in a second thread while the present one computes, on this CPU?

One replica's worker without sockets, always four requests at hand, with and without the second thread, in
turns.  The targets are half of what could be gained: a core that is spare would hide all of the decoding.
Replicas decode ahead on a CUDA device, where the processor waits meanwhile, and where a core is reserved
beyond torch's own.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from bench.contract import Bench
from cloud_cluster.replica_request import Done
from cloud_cluster.torch_executor import TorchExecutor
from cloud_cluster.worker import Worker
from shared.codec import Codec, encode
from shared.config import ServedModelConfig
from shared.errors import SutureError
from shared.graph import Graph, load
from shared.models import resolve
from shared.wire import Message, WireLimits, decode_message, encode_message
from shared.wire.messages import Infer

__all__ = ["main"]

_NETWORK = "efficientnet-lite0"
_AT_HAND = 4


@dataclass(frozen=True, slots=True)
class _Case:
    threads: int
    place: str
    codec: Codec


_CASES = tuple(
    _Case(threads, place, codec)
    for threads in (1, 2)
    for place, codec in (("input", Codec.FLOAT32), ("middle", Codec.UINT8_ZSTD))
)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("decode_ahead", argv, description=(__doc__ or "").partition("\n")[0])
    rounds, requests = (2, 20) if bench.quick else (6, 60)
    bench.config = {"network": _NETWORK, "at_hand": _AT_HAND, "rounds": rounds, "requests": requests}
    with tempfile.TemporaryDirectory(prefix="suture-") as scratch:
        for case in bench.track(_CASES, "decoding ahead"):
            asyncio.run(_compare(bench, case, rounds, requests, Path(scratch)))
    return bench.finish()


async def _compare(bench: Bench, case: _Case, rounds: int, requests: int, cache: Path) -> None:
    model = ServedModelConfig(name=_NETWORK, threads=case.threads, max_batch=1)
    message = _message(model, case, cache)
    workers = {
        ahead: Worker(partial(_executor, model, cache, ahead), f"ahead {ahead}") for ahead in (False, True)
    }
    for worker in workers.values():
        await worker.start()
        await _rate(worker, message, 2 * _AT_HAND)
    rates: dict[bool, list[float]] = {False: [], True: []}
    decode_ms: list[float] = []
    for _ in range(rounds):
        for ahead, worker in workers.items():
            per_s, done = await _rate(worker, message, requests)
            rates[ahead].append(per_s)
            decode_ms += [
                each.outcome.decode_ms for each in done if not isinstance(each.outcome, SutureError)
            ]
    for worker in workers.values():
        await worker.stop()
    if len(decode_ms) != 2 * rounds * requests:
        bench.unsound(f"{case}: of {2 * rounds * requests} requests {len(decode_ms)} were answered")
    alone, ahead_rate = (statistics.median(rates[ahead]) for ahead in (False, True))
    one_ms = 1e3 / alone
    decoding_ms = statistics.median(decode_ms)
    bench.row(
        threads=case.threads,
        cut=case.place,
        codec=case.codec.label,
        decode_ms=decoding_ms,
        request_ms=one_ms,
        per_s=alone,
        ahead_per_s=ahead_rate,
        gain_percent=100 * (ahead_rate / alone - 1),
        rates=rates[False],
        ahead_rates=rates[True],
    )
    bench.target(
        f"gain of decoding ahead, {case.threads} threads, {case.place}",
        100 * (ahead_rate / alone - 1),
        "%",
        50 * decoding_ms / one_ms,
        "at_least",
    )


def _executor(model: ServedModelConfig, cache: Path, ahead: bool) -> TorchExecutor:
    executor = TorchExecutor.load(model, cache, repeats=3)
    executor.decodes_ahead = ahead
    return executor


def _message(model: ServedModelConfig, case: _Case, cache: Path) -> Message:
    resolved = resolve(model, cache)
    program = load(resolved.captured)
    graph: Graph = program.graph
    args, kwargs = resolved.example
    cut = graph.cuts[0 if case.place == "input" else len(graph.cuts) // 3]
    state = program.start(graph.flatten(args, kwargs))
    with torch.inference_mode():
        program.run(state, cut.edge_units)
    encoded = [
        encode(tensor, case.codec, slot)
        for tensor, slot in zip(program.live(state, cut), cut.live, strict=True)
    ]
    infer = Infer(batch=1, tensors=[header for header, _ in encoded], reply_codec=Codec.FLOAT32)
    frames = encode_message(infer, [payload for _, payload in encoded], cut=cut.index)
    return decode_message([bytearray(frame) for frame in frames], WireLimits())


async def _rate(worker: Worker, message: Message, requests: int) -> tuple[float, list[Done]]:
    """Requests per second, with so many always at hand; and what became of each."""
    done: list[Done] = []
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = itertools.count(requests - _AT_HAND - 1, -1)

    def on_done(each: Done) -> None:
        done.append(each)
        if next(left) >= 0:
            worker.submit(message, on_done)
        elif len(done) == requests:
            ended.set_result(None)

    began = time.perf_counter()
    for _ in range(_AT_HAND):
        worker.submit(message, on_done)
    await ended
    return requests / (time.perf_counter() - began), done


if __name__ == "__main__":
    raise SystemExit(main())
