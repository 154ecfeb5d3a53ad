from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from cloud_cluster.executor import Outcome
from cloud_cluster.gateway import Gateway
from cloud_cluster.tail import Tail
from shared.config import ServedModelConfig
from shared.errors import DeadlineError, ProtocolError, RefusedError
from shared.wire import Message, MessageType, decode_message, encode_message
from shared.wire.messages import Goodbye, Header, Infer, Pong, TensorHeader
from tests.cloud_cluster.cloud_peers import (
    LIMITS,
    PATIENCE_S,
    FakeDevice,
    gateway_config,
    running_gateway,
    until,
)

NET = ServedModelConfig(name="net", credits=2)


def tensor_of(nbytes: int) -> TensorHeader:
    return TensorHeader(slot=0, dtype=6, codec=0, shape=[nbytes], order=[0], payload_bytes=nbytes)


class EchoExecutor:
    """Sends every tensor back; waits for ``gate`` first."""

    digest = "sha256:a"
    unit_ms = (2.0, 1.0)

    def __init__(
        self, behave: Callable[[Message], None] = lambda _message: None, took_ms: float = 3.0
    ) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0
        self.ran: list[int] = []
        self.threads: set[int] = set()
        self._behave = behave
        self._took_ms = took_ms

    def execute(self, message: Message) -> Outcome:
        self.begun += 1
        assert self.gate.wait(20)
        self.threads.add(threading.get_ident())
        self.ran.append(message.cut)
        self._behave(message)
        return Outcome(
            tensors=message.header.tensors,
            payloads=list(message.payloads),
            compute_ms=self._took_ms,
            expected_ms=3.0,
        )


class FakeGateway:
    """A ROUTER for replicas."""

    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.bind("tcp://127.0.0.1:*")
        self.replica_endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    async def __aenter__(self) -> FakeGateway:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    async def send(self, replica: bytes, header: Header) -> None:
        await self.socket.send_multipart([replica, *encode_message(header)])

    async def next(self, kind: MessageType) -> tuple[bytes, Message]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                replica, *frames = await self.socket.recv_multipart()
                message = decode_message(frames, LIMITS)
                if message.type is kind:
                    return replica, message


@asynccontextmanager
async def running_tail(
    executor: EchoExecutor, *gateways: Gateway | FakeGateway, heartbeat_ms: float = 20
) -> AsyncIterator[Tail]:
    tail = Tail(
        NET,
        [gateway.replica_endpoint for gateway in gateways],
        executor=executor,
        heartbeat_ms=heartbeat_ms,
    )
    await tail.start()
    async with asyncio.TaskGroup() as group:
        group.create_task(tail.run())
        try:
            await tail.wait_ready()
            yield tail
        finally:
            executor.gate.set()
            await tail.stop(drain_s=2.0)


async def test_work_is_answered_from_one_thread_that_is_not_the_loops() -> None:
    executor = EchoExecutor()
    async with (
        running_gateway(NET) as gateway,
        running_tail(executor, gateway) as tail,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        (card,) = (await device.hello(net="sha256:a")).header.models
        assert card.unit_ms == [2.0, 1.0]
        for request_id in range(10):
            await device.infer(request_id, b"%d" % request_id, cut=1)
        answers = [await device.next(MessageType.RESULT) for _ in range(10)]
        assert [(answer.request_id, bytes(answer.payloads[0])) for answer in answers] == [
            (request_id, b"%d" % request_id) for request_id in range(10)
        ]
        assert answers[0].cut == 1
        assert answers[0].header.replica == tail.replica
        assert answers[0].header.timings.compute_ms == 3.0
        assert answers[0].header.queue_ms == 0.0
        assert executor.threads != {threading.get_ident()}
        assert len(executor.threads) == 1


async def test_two_credits_mean_that_one_waits_here_while_one_is_computed() -> None:
    executor = EchoExecutor()
    executor.gate.clear()
    async with (
        running_gateway(NET) as gateway,
        running_tail(executor, gateway),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        for request_id in range(3):
            await device.infer(request_id)
        await device.settled()
        state = gateway.status()["models"]["net"]
        assert (state["in_flight"], state["queued"]) == (2, 1)
        # Longer than the executor will say that it took.
        await asyncio.sleep(0.01)
        executor.gate.set()
        answers = [await device.next(MessageType.RESULT) for _ in range(3)]
        assert answers[1].header.timings.wait_ms > 0


async def test_an_error_of_the_request_is_answered_and_the_replica_goes_on() -> None:
    def refuse_odd_cuts(message: Message) -> None:
        if message.cut % 2:
            raise RefusedError("odd", 12.0)

    async with (
        running_gateway(NET) as gateway,
        running_tail(EchoExecutor(refuse_odd_cuts), gateway),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        await device.infer(1, cut=1)
        await device.infer(2, cut=2)
        reply = await device.next(MessageType.ERROR)
        assert (reply.request_id, reply.header.code) == (1, RefusedError.code)
        assert (reply.header.message, reply.header.retry_after_ms) == ("odd", 12.0)
        assert (await device.next(MessageType.RESULT)).request_id == 2


async def test_work_that_cannot_be_read_is_answered_and_occupies_nothing() -> None:
    """The gateway passes on what it does not read, so that only the replica can tell."""
    async with (
        running_gateway(NET) as gateway,
        running_tail(EchoExecutor(), gateway),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        for request_id in range(1, 2 * NET.credits + 1):
            # Two bytes fewer than the header promises.
            infer = Infer(batch=1, tensors=[tensor_of(66)], reply_codec=0)
            frame0, header, _ = encode_message(infer, [bytes(66)], request_id=request_id)
            await device.socket.send_multipart([frame0, header, bytes(64)])
            reply = await device.next(MessageType.ERROR)
            assert (reply.request_id, reply.header.code) == (request_id, ProtocolError.code)
        await until(lambda: gateway.status()["models"]["net"]["in_flight"] == 0)
        await device.infer(99)
        assert (await device.next(MessageType.RESULT)).request_id == 99


async def test_work_whose_time_ran_out_in_the_replica_is_not_computed() -> None:
    executor = EchoExecutor()
    executor.gate.clear()
    async with (
        running_gateway(NET) as gateway,
        running_tail(executor, gateway),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        await device.infer(1, cut=1)
        await until(lambda: executor.begun == 1)
        await device.infer(2, cut=2, budget_ms=30)
        await device.settled()
        await asyncio.sleep(0.05)
        executor.gate.set()
        reply = await device.next(MessageType.ERROR)
        assert (reply.request_id, reply.header.code) == (2, DeadlineError.code)
        assert executor.ran == [1]


async def test_a_defect_ends_the_replica_loudly_and_its_work_is_not_lost() -> None:
    def fail(_message: Message) -> None:
        raise ZeroDivisionError("a defect")

    broken = EchoExecutor(fail)
    broken.gate.clear()
    # The replica's silence would tell as well, but not before the test has given up.
    config = gateway_config(heartbeat_timeout_ms=10_000)
    async with running_gateway(NET, config=config) as gateway, FakeDevice(gateway.device_endpoint) as device:
        tail = Tail(NET, [gateway.replica_endpoint], executor=broken, heartbeat_ms=20)
        await tail.start()
        running = asyncio.create_task(tail.run())
        await tail.wait_ready()
        await device.hello(net="sha256:a")
        await device.infer(1)
        async with running_tail(EchoExecutor(), gateway):
            broken.gate.set()
            with pytest.raises(ExceptionGroup) as caught:
                await running
            assert caught.group_contains(ZeroDivisionError, match="a defect")
            assert (await device.next(MessageType.RESULT)).request_id == 1
        await tail.stop()


async def test_a_stopping_replica_answers_what_it_has() -> None:
    executor = EchoExecutor()
    executor.gate.clear()
    async with running_gateway(NET) as gateway, FakeDevice(gateway.device_endpoint) as device:
        async with running_tail(executor, gateway) as tail, asyncio.TaskGroup() as group:
            await device.hello(net="sha256:a")
            await device.infer(1)
            await device.infer(2)
            await device.settled()
            stopping = group.create_task(tail.stop(drain_s=20.0))
            await until(lambda: gateway.ready("net") == 0)
            assert not stopping.done()
            executor.gate.set()
        answers = [await device.next(MessageType.RESULT) for _ in range(2)]
        assert [answer.request_id for answer in answers] == [1, 2]


async def test_a_replica_outlives_its_gateway_and_serves_its_successor() -> None:
    executor = EchoExecutor()
    async with running_gateway(NET) as first:
        port = int(first.replica_endpoint.rpartition(":")[2])
        tail = Tail(NET, [first.replica_endpoint], executor=executor, heartbeat_ms=20)
        await tail.start()
        running = asyncio.create_task(tail.run())
        await tail.wait_ready()
    config = gateway_config().model_copy(update={"replica_port": port})
    async with running_gateway(NET, config=config) as second, FakeDevice(second.device_endpoint) as device:
        await until(lambda: second.ready("net") == 1)
        await device.hello(net="sha256:a")
        await device.infer(1)
        assert (await device.next(MessageType.RESULT)).request_id == 1
        assert not running.done()
        await tail.stop(drain_s=1.0)
        await running


async def test_a_replica_serves_several_gateways() -> None:
    async with (
        running_gateway(NET) as first,
        running_gateway(NET) as second,
        running_tail(EchoExecutor(), first, second),
        FakeDevice(first.device_endpoint) as device,
        FakeDevice(second.device_endpoint) as other,
    ):
        await until(lambda: first.ready("net") == second.ready("net") == 1)
        for peer in (device, other):
            await peer.hello(net="sha256:a")
            await peer.infer(5, b"to " + str(peer is device).encode())
        assert bytes((await device.next(MessageType.RESULT)).payloads[0]) == b"to True"
        assert bytes((await other.next(MessageType.RESULT)).payloads[0]) == b"to False"


async def test_gateways_share_what_a_replica_holds_and_the_last_one_has_it_all() -> None:
    executor = EchoExecutor()
    executor.gate.clear()
    async with (
        running_gateway(NET) as first,
        running_gateway(NET) as second,
        running_tail(executor, first, second) as tail,
        FakeDevice(first.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        # One of its two is kept for the other gateway, as soon as both have taken it in.
        await until(lambda: all(link.alive and link.window == 1 for link in tail.links))
        # That the tail has said so does not mean that it was heard.
        await until(lambda: windows(first) == windows(second) == [1])
        for request_id in range(3):
            await device.infer(request_id)
        await device.settled()
        assert in_flight(first) == 1
        await second.stop()
        await until(lambda: in_flight(first) == 2)
        executor.gate.set()
        answers = [await device.next(MessageType.RESULT) for _ in range(3)]
        assert [answer.request_id for answer in answers] == [0, 1, 2]


def windows(gateway: Gateway) -> list[int]:
    return [replica.window for replica in gateway._dispatcher._replicas.values()]


def in_flight(gateway: Gateway) -> int:
    held: int = gateway.status()["models"]["net"]["in_flight"]
    return held


async def test_what_is_held_for_other_gateways_is_told() -> None:
    executor = EchoExecutor()
    executor.gate.clear()
    async with (
        running_gateway(NET) as gateway,
        FakeGateway() as other,
        running_tail(executor, gateway, other),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        replica, hello = await other.next(MessageType.REPLICA_HELLO)
        assert hello.header.credits in (1, 2)
        await other.send(replica, Pong())
        await device.hello(net="sha256:a")
        await device.infer(1, cut=1)
        while (await other.next(MessageType.CREDIT))[1].header.elsewhere_ms != 1.0:
            pass
        executor.gate.set()
        while (await other.next(MessageType.CREDIT))[1].header.elsewhere_ms != 0.0:
            pass
        await other.send(replica, Goodbye())


async def test_a_slow_replica_says_so_and_forgets_it_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_cluster.pace._SLOWDOWN_MEMORY_S", 0.1)
    async with (
        running_gateway(NET) as gateway,
        running_tail(EchoExecutor(took_ms=12.0), gateway),
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await device.hello(net="sha256:a")
        for request_id in range(30):
            await device.infer(request_id)
        await until(lambda: gateway.status()["models"]["net"]["slowdown"] > 2.0)
        await until(lambda: gateway.status()["models"]["net"]["slowdown"] < 1.1)


async def test_gateways_that_come_are_joined_and_those_that_go_are_left() -> None:
    async with running_gateway(NET) as first, running_gateway(NET) as second:
        async with running_tail(EchoExecutor(), first) as tail:
            tail.set_gateways([first.replica_endpoint, second.replica_endpoint])
            await until(lambda: second.ready("net") == 1)
            assert first.ready("net") == 1
            tail.set_gateways([second.replica_endpoint])
            await until(lambda: first.ready("net") == 0)
            async with FakeDevice(second.device_endpoint) as device:
                await device.hello(net="sha256:a")
                await device.infer(7, cut=0)
                assert (await device.next(MessageType.RESULT)).request_id == 7
            busy_ms, finished = tail.work_done
            assert busy_ms > 0
            assert finished == 1
        await until(lambda: second.ready("net") == 0)
