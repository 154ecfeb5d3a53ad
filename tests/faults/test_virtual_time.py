"""Whatever the cloud does, every request ends once, by its deadline: the agent's own pipeline, controller and
request table in virtual time, between a simulated worker and a simulated link."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import looptime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.controller import Controller
from edge_agent.guard import Guard
from edge_agent.listener import LinkState
from edge_agent.pipeline import Pipeline
from edge_agent.power import choose_meter
from edge_agent.requests import RequestTable
from edge_agent.result import Result, Where
from edge_agent.runner import Answer, Prefix, Stopped, Work
from edge_agent.served import Served
from shared.codec import Codec, encode
from shared.config import CloudLinkConfig
from shared.errors import DeadlineError, InternalError, OverloadedError, SutureError
from shared.graph import Cut
from shared.graph.tree import Tree
from shared.plan.energy import Power
from shared.wire import Message, WireLimits, decode_message, encode_message
from shared.wire.messages import Card, Limits, ModelCard, TailTimings
from shared.wire.messages import Result as ResultHeader
from tests.shared.plan.builders import DIGEST, chain, profile_of

GRAPH = replace(
    chain([200, 100, 50, 20, 10]),
    input_tree=Tree("tuple", (Tree("tuple", (Tree("leaf"),)), Tree("dict"))),
)
UNIT_MS, UNITS, CUT = 10.0, 4, 1
LOCAL_MS = UNIT_MS * UNITS
BY_DEVICE, BY_CLOUD = torch.full((1, 10), 1.0), torch.full((1, 10), 2.0)
INPUT = torch.zeros((1, 200), dtype=torch.uint8)
PROMISED_MS = 50.0


class SimulatedWorker:
    """As :class:`edge_agent.runner.Runner`: one unit after the other, urgent work first.

    ``slowness`` is how many times longer than profiled each computation takes, in turn.
    """

    def __init__(self, slowness: Sequence[float] = (1.0,)) -> None:
        self._slowness = itertools.cycle(slowness)
        self._order = itertools.count()
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._busy = False
        self._urgent_ms = 0.0

    def urgent_ms(self) -> float:
        return self._urgent_ms

    def queued_ms(self) -> float:
        return 0.0

    async def prefix(
        self,
        name: str,
        leaves: Sequence[object],
        cut: Cut,
        codecs: Sequence[Codec],
        work: Work,
        *,
        expected_ms: float,
    ) -> Prefix:
        took_ms = await self._compute(len(cut.edge_units), work, urgent=False)
        tensors = [torch.zeros((1, 100 if cut.index == CUT else 10))] if cut.live else []
        encoded = [
            encode(tensor, codec, slot) for tensor, codec, slot in zip(tensors, codecs, cut.live, strict=True)
        ]
        outputs = {} if cut.live else {GRAPH.outputs[0]: BY_DEVICE}
        headers, payloads = [header for header, _ in encoded], [payload for _, payload in encoded]
        return Prefix(1, tensors, outputs, headers, payloads, 0.0, took_ms, 0.0)

    async def finish(self, name: str, cut: Cut, prefix: Prefix, work: Work, *, expected_ms: float) -> Answer:
        self._urgent_ms += expected_ms
        try:
            took_ms = await self._compute(len(cut.cloud_units), work, urgent=True)
        finally:
            self._urgent_ms -= expected_ms
        return Answer({GRAPH.outputs[0]: BY_DEVICE}, 0.0, took_ms)

    async def decode(self, *_: object) -> Answer:
        return Answer({GRAPH.outputs[0]: BY_CLOUD}, 0.0, 0.0)

    async def _compute(self, units: int, work: Work, *, urgent: bool) -> float:
        unit_ms = UNIT_MS * next(self._slowness)
        for _ in range(units):
            if work.stopped:
                raise Stopped
            await self._turn(urgent)
            await asyncio.sleep(unit_ms / 1e3)
            self._busy = False
            if self._waiting:
                _, _, future = heapq.heappop(self._waiting)
                self._busy = True
                future.set_result(None)
        return unit_ms * units

    async def _turn(self, urgent: bool) -> None:
        if not self._busy:
            self._busy = True
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not urgent, next(self._order), future))
        await future


@dataclass(frozen=True)
class Behaviour:
    """What the cloud does with one request; ``after_ms`` it was sent, and how often."""

    kind: str
    after_ms: float
    times: int


class SimulatedLink:
    """As :class:`edge_agent.link.CloudLink`: every request is answered as it is said, in turn."""

    unconfirmed_bytes = 0

    def __init__(self, pipeline: Pipeline, behaviours: Sequence[Behaviour]) -> None:
        self._cloud = pipeline.cloud
        self._behaviours = itertools.cycle(behaviours)
        self._up = False
        self.set(True)

    def set(self, up: bool) -> None:
        if up and not self._up:
            self._cloud.on_link_state(LinkState.ONLINE, "up")
            self._cloud.on_card(CARD)
        elif self._up and not up:
            self._cloud.on_link_state(LinkState.OFFLINE, "down")
        self._up = up

    def send_infer(self, request_id: int, *_: object, **__: object) -> bool:
        behaviour = next(self._behaviours)
        deliver: Callable[[], None] = partial(self._deliver, behaviour.kind, request_id)
        for _ in range(behaviour.times):
            asyncio.get_running_loop().call_later(behaviour.after_ms / 1e3, deliver)
        return behaviour.kind != "full"

    def _deliver(self, kind: str, request_id: int) -> None:
        if kind == "answer":
            self._cloud.on_answer(answer_to(request_id))
        elif kind == "busy":
            self._cloud.on_refusal(request_id, OverloadedError("busy", 1.0))
        elif kind == "broken":
            self._cloud.on_refusal(request_id, InternalError("broken"))

    def send_cancel(self, request_id: int) -> None: ...

    def want(self, index: int) -> None: ...

    def moves_in_ms(self) -> float | None:
        return None


CARD = Card(
    gateway="g",
    software="test",
    limits=Limits(),
    models=[ModelCard(name="net", digest=DIGEST, index=0, unit_ms=[0.1] * UNITS, replicas=1)],
)


def answer_to(request_id: int) -> Message:
    header, payload = encode(BY_CLOUD, Codec.FLOAT32, GRAPH.outputs[0])
    frames = encode_message(
        ResultHeader(tensors=[header], timings=TailTimings()), [payload], request_id=request_id
    )
    return decode_message(frames, WireLimits())


@dataclass(frozen=True)
class Ended:
    deadline_ms: float
    took_ms: float
    end: Result | SutureError


async def agent_of(
    group: asyncio.TaskGroup, behaviours: Sequence[Behaviour], slowness: Sequence[float]
) -> tuple[Pipeline, SimulatedLink, asyncio.Task[None]]:
    controller = Controller(CloudLinkConfig(probe_bytes=0))
    controller.add_model("net", GRAPH, profile_of(GRAPH, [UNIT_MS] * UNITS), 0.0)
    table = RequestTable(64, 10**9, Guard())
    meter = choose_meter("model", Power(5.0, 1.5)).meter
    pipeline = Pipeline(SimulatedWorker(slowness), controller, table, group.create_task, meter)  # type: ignore[arg-type]
    pipeline.models["net"] = Served("net", GRAPH, 1000.0)
    timers = group.create_task(pipeline.run_timers())
    link = SimulatedLink(pipeline, behaviours)
    pipeline.cloud.link = link  # type: ignore[assignment]
    controller.pin("net", CUT)
    return pipeline, link, timers


async def scenario(
    requests: Sequence[tuple[float, float]],
    behaviours: Sequence[Behaviour],
    outages: Sequence[tuple[float, float]],
    slowness: Sequence[float] = (1.0,),
) -> list[Ended]:
    """Requests as pauses and deadlines; outages as pauses and lengths, in ms.  Ends when all have ended."""
    loop = asyncio.get_running_loop()
    ended: list[Ended] = []
    async with asyncio.TaskGroup() as group:
        pipeline, link, timers = await agent_of(group, behaviours, slowness)

        async def ask(deadline_ms: float) -> None:
            began_s = loop.time()
            end: Result | SutureError
            try:
                end = await pipeline.infer(pipeline.models["net"], (INPUT,), {}, deadline_ms)
            except SutureError as error:
                end = error
            ended.append(Ended(deadline_ms, (loop.time() - began_s) * 1e3, end))

        async def fail() -> None:
            for pause_ms, lasts_ms in outages:
                await asyncio.sleep(pause_ms / 1e3)
                link.set(False)
                await asyncio.sleep(lasts_ms / 1e3)
                link.set(True)

        failing = group.create_task(fail())
        asking = []
        for pause_ms, deadline_ms in requests:
            await asyncio.sleep(pause_ms / 1e3)
            asking.append(group.create_task(ask(deadline_ms)))
        await asyncio.gather(*asking, failing)
        # Answers that are still on their way come for nobody.
        await asyncio.sleep(10.0)
        timers.cancel()
        table, counters = pipeline.table, pipeline.table.counters
        assert (len(table), table.held_bytes) == (0, 0)
        assert counters.submitted == (
            counters.completed_by_cloud + counters.completed_by_device + counters.failed
        )
    return ended


def run(*arguments: Any) -> list[Ended]:
    def virtual() -> asyncio.AbstractEventLoop:
        loop: Any = looptime.new_event_loop(start=0.0, resolution=1e-9)
        return loop  # type: ignore[no-any-return]

    with asyncio.Runner(loop_factory=virtual) as runner:
        return runner.run(scenario(*arguments))


KINDS = ("answer", "answer", "never", "busy", "broken", "full")
BEHAVIOURS = st.lists(
    st.builds(Behaviour, st.sampled_from(KINDS), st.floats(0.0, 3000.0), st.sampled_from((1, 1, 2))),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 300.0), st.floats(1.0, 1500.0)), min_size=1, max_size=20),
    BEHAVIOURS,
    st.lists(st.tuples(st.floats(0.0, 1000.0), st.floats(0.0, 1000.0)), max_size=4),
)
def test_every_request_ends_once_by_its_deadline(
    requests: list[tuple[float, float]],
    behaviours: list[Behaviour],
    outages: list[tuple[float, float]],
) -> None:
    ended = run(requests, behaviours, outages)
    assert len(ended) == len(requests)
    for each in ended:
        assert each.took_ms <= each.deadline_ms + PROMISED_MS
        assert isinstance(each.end, Result | DeadlineError), each.end
        if isinstance(each.end, Result):
            by_cloud = each.end.where in (Where.SPLIT, Where.CLOUD)
            assert (each.end.outputs[0] == (BY_CLOUD if by_cloud else BY_DEVICE).numpy()).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(LOCAL_MS * 2, 600.0), min_size=1, max_size=12),
    BEHAVIOURS,
    st.lists(st.tuples(st.floats(0.0, 1000.0), st.floats(0.0, 1000.0)), max_size=4),
)
def test_where_the_device_alone_makes_it_no_cloud_costs_a_deadline(
    pauses: list[float], behaviours: list[Behaviour], outages: list[tuple[float, float]]
) -> None:
    """Requests far enough apart for the device to have each done before the next one comes."""
    deadline_ms = LOCAL_MS * 2
    for each in run([(pause, deadline_ms) for pause in pauses], behaviours, outages):
        assert isinstance(each.end, Result), each.end
        assert each.took_ms <= deadline_ms


def test_thirty_requests_under_a_stalled_cloud_all_make_it() -> None:
    """With one deadline, of a cloud that takes everything and answers nothing."""
    ended = run([(0.0, 2000.0)] * 30, [Behaviour("never", 0.0, 0)], [])
    assert all(isinstance(each.end, Result) for each in ended)
    assert {each.end.where for each in ended if isinstance(each.end, Result)} == {Where.DEVICE_FALLBACK}


def test_an_unsteady_device_begins_early_enough_once_it_is_known_to_be() -> None:
    """Every third computation takes twice as long as profiled."""
    ended = run([(500.0, 300.0)] * 60, [Behaviour("never", 0.0, 0)], [], (1.0, 1.0, 2.0))
    made = [isinstance(each.end, Result) for each in ended]
    assert not all(made[:20])
    assert all(made[20:])
