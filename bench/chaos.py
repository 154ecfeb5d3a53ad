"""Everything fails, on a schedule, while applications go on asking: what became of every request.

A real agent, a link that is a gate (``bench/gate.py``) with keys on both sides, a real gateway and two real
replicas under Ray Serve; with ``--quick`` the same gateway and replicas as plain processes.  Applications ask
in an open loop at half of what the device alone could do, through the agent's socket and in its own process.
The first half of the time runs with the deadline guard, the second half without it (not with ``--quick``),
under the same faults and the same arrivals.  What happened is written to files, and judged from those by
:mod:`bench.history`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.chaos_cloud import Cloud, ProcessCloud, RayCloud, configuration, make_keys
from bench.chaos_load import Answers
from bench.chaos_schedule import Fault, schedule
from bench.child import Child, ChildError, run
from bench.contract import Bench
from bench.gate import FAULTS
from bench.history import PLACES, Verdict, check, read_history
from bench.resident import growth, resident_mb

__all__ = ["main"]

_CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

_TOLERANCE = 1e-4
_INPUTS = 8
_LOAD = 0.5
_PATIENCE_S = 120.0
_ALONE = 20
_LONG_ENOUGH = 80
"""Samples of a process's memory, two a second."""
_IN_PROCESS = 0.25
"""Of the requests are asked inside the agent's process."""


@dataclass(frozen=True, slots=True)
class Setting:
    """``stretch`` is how many times slower the device is than this machine; ``cut`` is where it cuts whenever
    there is a cloud, None for where it is fastest; ``guards`` are the parts of the run, each as long."""

    network: str
    stretch: float
    deadline_ms: float
    seconds: float
    cut: int | None = None
    guards: tuple[bool, ...] = (True, False)


_FULL = Setting("efficientnet-lite0", stretch=6.0, deadline_ms=400.0, seconds=120.0)
_QUICK = Setting("mobilenetv2", stretch=6.0, deadline_ms=400.0, seconds=20.0, cut=12, guards=(True,))


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("chaos", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    setting = _QUICK if bench.quick else _FULL
    seconds = bench.options.seconds or setting.seconds
    bench.config = {
        **asdict(setting),
        "seconds": seconds,
        "load": _LOAD,
        "tolerance": _TOLERANCE,
        "device_has_a_core_of_its_own": len(_CORES) > 1,
    }
    with tempfile.TemporaryDirectory(prefix="suture-") as scratch:
        try:
            run(_run(bench, setting, seconds, Path(scratch)))
        except ChildError as error:
            bench.unsound(str(error))
        finally:
            if len(_CORES) > 1:
                os.sched_setaffinity(0, _CORES)
    return bench.finish(show_rows=not bench.problems)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, help="of load, half of them without the guard (120)")
    parser.add_argument("--history", type=Path, metavar="FILE", help="keep what happened here, as JSON lines")


async def _run(bench: Bench, setting: Setting, seconds: float, scratch: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        status = bench.console.status("")
        stage = await _Stage.start(stack, bench, setting, scratch, status.update)
        with status:
            await stage.measure_device()
            await stage.wait_until_remote()
        for number, guard in enumerate(setting.guards):
            if number:
                with bench.console.status("starting the cloud again ..."):
                    await stage.cloud.start()
                    await stage.wait_until_remote()
            await stage.part(guard, seconds / len(setting.guards))
        facts = await stage.device.call("facts")
        events = await asyncio.to_thread(read_history, *stage.histories)
    if bench.options.history is not None:
        lines = [json.dumps(event) + "\n" for event in [*stage.faults, *events]]
        bench.options.history.write_text("".join(lines), encoding="utf-8")
    _judge(bench, stage, events, facts)


class _Stage:
    """All processes, and what was done to them and seen of them."""

    def __init__(self, bench: Bench, cloud: Cloud, gate: Child, device: Child, clients: Child) -> None:
        self.bench = bench
        self.cloud = cloud
        self.gate = gate
        self.device = device
        self.clients = clients
        self.histories: list[Path] = []
        self.faults: list[dict[str, Any]] = []
        self.memory: dict[str, list[float]] = {}
        self.guards: list[bool] = []
        self.device_ms = 0.0

    @classmethod
    async def start(
        cls, stack: contextlib.AsyncExitStack, bench: Bench, setting: Setting, scratch: Path, say: Any
    ) -> _Stage:
        say("computing the whole network here, as the judge ...")
        answers = scratch / "answers.npz"
        await asyncio.to_thread(_compute_answers, setting.network, answers, bench.seed)
        if len(_CORES) > 1:
            # What a cloud does when it starts anew must not take the device's own processor from it.
            os.sched_setaffinity(0, _CORES[:-1])
        cloud_keys, device_keys = make_keys(scratch / "keys")
        model = {"name": setting.network}
        config = configuration(model, cloud_keys, scratch / "cloud")
        cloud: Cloud = ProcessCloud(config, scratch) if bench.quick else RayCloud(config, scratch)
        stack.push_async_callback(cloud.close)
        say("starting the cloud ...")
        await cloud.start()
        upstreams = [["127.0.0.1", port] for port in cloud.ports]
        gate = await _child(stack, scratch, "gate", "bench.gate", json.dumps(upstreams))
        device_port, load_port = (await gate.ready())["ports"]
        # Ray opens its directory to everyone; the agent makes itself one that only its user can write.
        socket = f"ipc://{scratch}/own/agent.sock"
        agent = {
            "name": "chaos",
            "threads": 1,
            "socket": socket,
            "cache_dir": str(scratch / "device"),
            "profile_repeats": 5,
            "max_in_flight": 64,
            "cloud": {
                "gateway": f"tcp://127.0.0.1:{device_port}",
                "load_feed": f"tcp://127.0.0.1:{load_port}",
                "keys": device_keys,
                "patience_ms": 0,
                "probe_interval_s": 0.5,
            },
            # Only codecs that keep every bit, so that any difference in an answer is a mistake.
            "models": [{**model, "codecs": ["float32", "float32+zstd"], "cut": setting.cut}],
        }
        (scratch / "agent.yaml").write_text(yaml.safe_dump(agent), encoding="utf-8")
        say("starting the agent: it loads the network and measures its units ...")
        histories = [scratch / "device.jsonl", scratch / "clients.jsonl"]
        device = await _child(
            stack,
            scratch,
            "device",
            "bench.chaos_device",
            str(scratch / "agent.yaml"),
            str(setting.stretch),
            str(answers),
            str(histories[0]),
            cores=_CORES[-1:],
        )
        await device.ready(_PATIENCE_S)
        clients = await _child(
            stack,
            scratch,
            "clients",
            "bench.chaos_load",
            socket,
            setting.network,
            str(answers),
            str(histories[1]),
            cores=_CORES[-1:],
        )
        await clients.ready()
        stage = cls(bench, cloud, gate, device, clients)
        stage.histories = histories
        return stage

    async def measure_device(self) -> None:
        """What the device takes alone, in this very process and with everything else running idle."""
        took_ms = await self.device.call("alone", count=_ALONE)
        self.device_ms = float(np.percentile(took_ms, 90))
        self.bench.config |= {"device_ms": statistics.median(took_ms), "device_p90_ms": self.device_ms}

    async def wait_until_remote(self) -> None:
        """Until the agent leaves the next request to the cloud, both replicas being there."""
        give_up_s = time.monotonic() + _PATIENCE_S
        while True:
            facts = await self.device.call("facts")
            if facts["remote"]:
                self.bench.config["cloud_ms"] = facts["cloud_ms"]
                return
            if time.monotonic() > give_up_s:
                raise ChildError(f"the agent does not use the cloud: {facts}{self.device.tail()}")
            await asyncio.sleep(0.2)

    async def part(self, guard: bool, seconds: float) -> None:
        """Load and faults for so long."""
        self.guards.append(guard)
        per_s = _LOAD * 1e3 / self.bench.config["device_ms"]
        self.bench.config["requests_per_s"] = per_s
        common = {
            "seconds": seconds,
            "deadline_ms": self.bench.config["deadline_ms"],
            "guard": guard,
            "timeout_s": seconds + _PATIENCE_S,
        }
        seed = self.bench.seed
        asking = asyncio.gather(
            self.device.call("load", per_s=per_s * _IN_PROCESS, seed=seed, **common),
            self.clients.call("load", per_s=per_s * (1 - _IN_PROCESS), seed=seed + 1, **common),
        )
        began_s = time.monotonic()
        breaking = asyncio.create_task(self._break(guard, began_s, schedule(seconds, seed)))
        watching = asyncio.create_task(self._watch_memory())
        label = f"seconds {'with' if guard else 'without'} the guard"
        try:
            for _ in self.bench.track(range(round(seconds)), label):
                await asyncio.wait([breaking, watching], timeout=1.0, return_when=asyncio.FIRST_EXCEPTION)
            await breaking
            await asking
        finally:
            for task in (breaking, watching, asking):
                task.cancel()
            await asyncio.gather(breaking, watching, asking, return_exceptions=True)

    async def _break(self, guard: bool, began_s: float, faults: Sequence[Fault]) -> None:
        for fault in faults:
            await asyncio.sleep(max(began_s + fault.at_s - time.monotonic(), 0.0))
            begin_s = time.monotonic()
            frozen = await self._begin(fault)
            await asyncio.sleep(max(began_s + fault.at_s + fault.lasts_s - time.monotonic(), 0.0))
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            await self.gate.call("heal")
            self.faults.append(
                {
                    "event": "fault",
                    "kind": fault.kind,
                    "guard": guard,
                    "at_s": begin_s,
                    "until_s": time.monotonic(),
                    **fault.parameters,
                }
            )

    async def _begin(self, fault: Fault) -> list[int]:
        """The processes that stand still from now on."""
        if fault.kind in FAULTS:
            await self.gate.call(fault.kind, **fault.parameters)
        elif fault.kind == "outage":
            await self.gate.call("blackhole")
        elif fault.kind == "replica_kill":
            await self.cloud.kill_replica()
        elif fault.kind == "cloud_stop":
            await self.cloud.stop()
        else:
            what, _, how = fault.kind.partition("_")
            number = signal.SIGKILL if how == "kill" else signal.SIGSTOP
            pids = [pid for name, pid in self.cloud.pids().items() if name.startswith(what)]
            for pid in pids:
                os.kill(pid, number)
            return [] if how == "kill" else pids
        return []

    async def _watch_memory(self) -> None:
        while True:
            own = {"agent": self.device.pid, "applications": self.clients.pid, "gate": self.gate.pid}
            found = await asyncio.to_thread(self.cloud.pids)
            for name, pid in {**own, **found}.items():
                held_mb = resident_mb(pid)
                if held_mb is not None:
                    self.memory.setdefault(f"{name} ({pid})", []).append(held_mb)
            await asyncio.sleep(0.5)


async def _child(
    stack: contextlib.AsyncExitStack,
    scratch: Path,
    name: str,
    module: str,
    *arguments: str,
    cores: Sequence[int] = (),
) -> Child:
    child = await Child.start(name, [sys.executable, "-m", module, *arguments], scratch / f"{name}.log")
    if len(_CORES) > 1 and cores:
        os.sched_setaffinity(child.pid, cores)
    stack.push_async_callback(child.stop)
    return child


def _compute_answers(network: str, path: Path, seed: int) -> None:
    """Images like the network's own example, and what eager PyTorch says of each."""
    import torch

    from shared import zoo

    built = zoo.build(network)
    (example,) = built.args
    torch.set_num_threads(1)
    inputs = [torch.roll(example, seed + 5 * number, -1) for number in range(_INPUTS)]
    with torch.inference_mode():
        outputs = [built.module(each).numpy() for each in inputs]
    Answers.save(path, np.stack([each.numpy() for each in inputs]), np.stack(outputs))


def _judge(bench: Bench, stage: _Stage, events: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    verdict = check(events, device_ms=stage.device_ms, tolerance=_TOLERANCE)
    lags = [event["ms"] for event in events if event["event"] == "lag"]
    bench.config |= {
        "counters": facts["counters"],
        "faults": _per_fault(stage.faults, verdict),
        "late_turns": len(lags),
        "worst_late_turn_ms": max(lags, default=0.0),
    }
    for guard in stage.guards:
        bench.row(**verdict.of(guard))
    bench.show(
        "what each fault did",
        [{key: row[key] for key in row if key != "parameters"} for row in bench.config["faults"]],
    )
    lost = len(verdict.unanswered) + len(verdict.unasked) + len(verdict.repeated)
    bench.target("requests without exactly one outcome", lost, "requests", 0, "at_most")
    bench.target("wrong answers", len(verdict.wrong), "answers", 0, "at_most")
    guarded = [each for each in verdict.avoidable if each.guard]
    missed = "misses with the guard where the device alone would have made it"
    bench.target(missed, len(guarded), "requests", 0, "at_most")
    ours = [each for each in guarded if each not in verdict.excused]
    bench.target("... and who asked was not late itself", len(ours), "requests", 0, "at_most")
    grown = {name: growth(held) for name, held in stage.memory.items() if len(held) >= _LONG_ENOUGH}
    bench.config["memory"] = {
        name: {"median_mb": statistics.median(stage.memory[name]), "growth": share}
        for name, share in grown.items()
    }
    if not bench.quick:  # which does not last long enough
        most = max(grown.values(), default=None)
        bench.target("most that a process grew after warming up", most, "of its memory", 0.1, "at_most")
    if not {"device-fallback", "device"} & {each.outcome for each in verdict.requests}:
        bench.unsound("no fault was felt")
    if not {"cloud", "split"} & {each.outcome for each in verdict.requests}:
        bench.unsound("nothing ever ran in the cloud")
    if facts["held"]:
        bench.unsound(f"the agent still holds {facts['held']} requests")


def _per_fault(faults: list[dict[str, Any]], verdict: Verdict) -> list[dict[str, Any]]:
    """What became of the requests under each fault, and how long after its end the cloud was used again."""
    rows = []
    for fault in faults:
        during = [each for each in verdict.requests if fault["at_s"] <= each.issued_s < fault["until_s"]]
        after = [
            each.ended_s - fault["until_s"]
            for each in verdict.requests
            if each.issued_s >= fault["until_s"] and each.outcome in ("cloud", "split")
        ]
        known = ("event", "kind", "guard", "at_s", "until_s")
        rows.append(
            {
                "fault": fault["kind"],
                "guard": fault["guard"],
                "seconds": fault["until_s"] - fault["at_s"],
                "requests": len(during),
                **{place: sum(each.outcome == place for each in during) for place in PLACES},
                "errors": sum(not each.answered for each in during),
                "cloud_again_s": min(after, default=None) if fault["kind"] != "cloud_stop" else None,
                "parameters": {key: value for key, value in fault.items() if key not in known},
            }
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
