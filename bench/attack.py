"""What do hostile bytes do?  ``python -m bench.attack --json FILE [--quick]``.

* Every input of ``tests/attacks``, and random damages to good inputs, goes through its parser in this
  process: how many were tried, how many made a parser raise what it does not promise or return what it must
  not, and how much the process grew at the worst moment.
* A gateway, a replica that computes nothing, and an honest device that asks RATE_HZ times a second, each in
  a process of its own, are left in peace and flooded by turns: how many of the device's requests were
  answered, how late, and how much the gateway grew.

The attacker runs on the same two cores at a lower priority, over loopback, without keys: with CURVE it would
not get beyond the greeting.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.attack_floods import FLOODS
from bench.attack_parsers import attacks, damaged, peak_rss_bytes, reset_peak_rss, tried
from bench.child import Child, run
from bench.contract import Bench
from bench.hop_reply import DIGEST, MODEL
from shared.codec import Codec
from shared.config import GatewayConfig
from shared.tensor import DType
from shared.wire.messages import Infer, TensorHeader
from tests.fuzz.targets import TARGETS

__all__ = ["main"]

MIB = 2**20
RATE_HZ = 50.0
PAYLOAD_BYTES = 16_384
BUDGET_MS = 1000.0
PARSER_MIB = 16.0

_AT_RANDOM = "random damages"
_DAMAGED = {"header": 200_000, "message": 150_000, "payload": 40_000}
_DAMAGED_OTHERS = 3_000


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("attack", argv, description="what hostile bytes do to parsers and to a gateway")
    gateway = GatewayConfig(device_port=0, replica_port=0, load_port=0)
    bench.config = {
        "rate_hz": RATE_HZ,
        "payload_bytes": PAYLOAD_BYTES,
        "budget_ms": BUDGET_MS,
        "max_message_bytes": gateway.max_message_bytes,
        "max_parked_bytes": gateway.max_parked_bytes,
        "floods": {name: {"port": flood[0], "at_once": flood[1]} for name, flood in FLOODS.items()},
    }
    parsers = _parsers(bench)
    bench.rows += parsers
    bench.show("parsers", parsers)
    run(_floods(bench, gateway, 2.0 if bench.quick else 12.0))
    return bench.finish(show_rows=False)


def _parsers(bench: Bench) -> list[dict[str, Any]]:
    rows, findings = [], []
    by_name = {(attack.name, attack.target): attack for attack in attacks()}
    work = [*by_name, *((_AT_RANDOM, parser) for parser in TARGETS)]
    for name, parser in bench.track(work, "parsers"):
        if name != _AT_RANDOM:
            outcome = tried(TARGETS[parser], by_name[name, parser].inputs(40 if bench.quick else 1))
        else:
            count = _DAMAGED.get(parser, _DAMAGED_OTHERS) // (40 if bench.quick else 1)
            outcome = damaged(parser, bench.seed, count)
        findings += outcome.findings
        rows.append(
            {
                "attack": name,
                "parser": parser,
                "inputs": outcome.inputs,
                "crashes": outcome.crashes,
                "peak_mib": outcome.peak_bytes / MIB,
            }
        )
    for finding in findings:
        bench.console.print(f"[bold red]crash:[/] {finding}", highlight=False)
    bench.target("crashes of parsers", float(sum(row["crashes"] for row in rows)), "inputs", 0, "at_most")
    worst = max(row["peak_mib"] for row in rows)
    bench.target("growth of a process that parses", worst, "MiB", PARSER_MIB, "at_most")
    return rows


async def _floods(bench: Bench, config: GatewayConfig, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="suture-attack-") as name:
        folder, children = Path(name), list[Child]()

        async def start(role: str, module: str, *arguments: str) -> tuple[Child, dict[str, Any]]:
            command = [sys.executable, "-m", module, *arguments]
            child = await Child.start(role, command, folder / f"{role}.log")
            children.append(child)
            return child, await child.ready()

        try:
            cloud = json.dumps({"gateway": config.model_dump(mode="json"), "models": [{"name": MODEL}]})
            gateway, facts = await start("gateway", "bench.load_cloud", "gateway", cloud)
            await start("replica", "bench.load_cloud", "no-op", cloud, facts["replica"])
            activation = folder / "activation"
            activation.write_bytes(_activation())
            device, _ = await start(
                "device", "bench.load_devices", facts["device"], MODEL, DIGEST, "0", "1",
                json.dumps(str(activation)),
            )  # fmt: skip
            ports = [facts[side].rpartition(":")[2] for side in ("device", "replica")]
            attacker, _ = await start("attacker", "bench.attack_floods", *ports)
            rows = []
            for flood in bench.track(FLOODS, "floods"):
                quiet = await _asked(device, seconds / 3, bench.seed)
                row = await _flooded(device, gateway, attacker, flood, seconds, bench.seed)
                rows.append(row | {f"quiet_{key}": quiet[key] for key in ("p50_ms", "p99_ms")})
        finally:
            for child in reversed(children):
                await child.stop()
    bench.rows += rows
    bench.show("floods", rows)
    _judge(bench, rows, config)


async def _flooded(
    device: Child, gateway: Child, attacker: Child, flood: str, seconds: float, seed: int
) -> dict[str, Any]:
    """The honest device at work for some seconds with a flood beside it."""
    before = (await gateway.call("usage"))["rss_mb"]
    reset_peak_rss(gateway.pid)
    flooding = asyncio.create_task(attacker.call("flood", name=flood, seconds=seconds))
    figures = await _asked(device, seconds, seed)
    counts = await flooding
    return {
        "flood": flood,
        "peers": counts.get("connections", 0),
        "cut_off": counts.get("cut off", 0),
        "sent_mib": counts.get("bytes", 0) / MIB,
        "grown_mib": peak_rss_bytes(gateway.pid) / MIB - before,
        **figures,
    }


async def _asked(device: Child, seconds: float, seed: int) -> dict[str, Any]:
    answers = await device.call(
        "open",
        seconds=seconds,
        rate_hz=RATE_HZ,
        budget_ms=BUDGET_MS,
        seed=seed,
        timeout_s=seconds + 60,
    )
    elapsed = [ms for ms, code in answers["answers"] if code == 0]
    return {
        "asked": len(answers["answers"]) + answers["unsent"],
        "answered": len(elapsed),
        "p50_ms": float(np.percentile(elapsed, 50)),
        "p99_ms": float(np.percentile(elapsed, 99)),
    }


def _judge(bench: Bench, rows: list[dict[str, Any]], config: GatewayConfig) -> None:
    if any(row["peers"] == 0 or row["sent_mib"] == 0 for row in rows):
        bench.unsound("a flood did not reach the gateway")
    served = min(row["answered"] / row["asked"] for row in rows)
    bench.target("an honest device's requests answered during floods", 100 * served, "%", 100, "at_least")
    growth = max(row["grown_mib"] for row in rows)
    bench.target("growth of a flooded gateway", growth, "MiB", config.max_parked_bytes / MIB, "at_most")


def _activation() -> bytes:
    tensor = TensorHeader(
        slot=0,
        dtype=DType.UINT8,
        codec=Codec.FLOAT32,
        shape=[1, PAYLOAD_BYTES],
        order=[0, 1],
        payload_bytes=PAYLOAD_BYTES,
    )
    header = Infer(batch=1, tensors=[tensor], reply_codec=Codec.FLOAT32)
    return msgspec.json.encode(header) + b"\n" + bytes(PAYLOAD_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
