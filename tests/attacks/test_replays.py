"""Attack: request ids that come twice, answers that come twice, and answers to what one was never asked.

Whatever is repeated, a device gets one answer to a request, and that from the replica that was asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_cluster.dispatch import Dispatcher, Send
from shared.errors import ProtocolError
from shared.wire import Message, MessageType, encode_message
from shared.wire.messages import Announce, Cancel, Credit, Goodbye, Infer, Ping, Pong, Result, TailTimings
from tests.attacks.harness import siege
from tests.cloud_cluster.cloud_peers import (
    FakeDevice,
    FakeReplica,
    running_gateway,
    until,
)
from tests.cloud_cluster.test_tail import EchoExecutor, FakeGateway, running_tail, tensor_of

PATIENCE_S = 30


@contextlib.asynccontextmanager
async def cloud() -> AsyncIterator[tuple[FakeReplica, FakeReplica, FakeDevice, FakeDevice]]:
    """Two replicas of one credit each, and two devices."""
    async with (
        asyncio.timeout(PATIENCE_S),
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as first,
        FakeReplica(gateway.replica_endpoint) as second,
        FakeDevice(gateway.device_endpoint) as device,
        FakeDevice(gateway.device_endpoint) as other,
    ):
        await first.hello(credits=1)
        await second.hello(credits=1)
        await device.hello(net="sha256:a")
        await other.hello(net="sha256:a")
        yield first, second, device, other


async def asked(*replicas: FakeReplica) -> tuple[FakeReplica, Message]:
    """The replica that got the work, and the work."""
    await until(lambda: any(replica.waiting(MessageType.INFER) for replica in replicas))
    (one,) = [replica for replica in replicas if replica.waiting(MessageType.INFER)]
    return one, await one.work()


async def answers(device: FakeDevice) -> int:
    await device.settled()
    return device.waiting(MessageType.RESULT)


async def test_a_request_sent_many_times_runs_once_and_is_answered_once() -> None:
    async with cloud() as (first, second, device, _):
        for _ in range(6):
            await device.infer(1)
        replica, work = await asked(first, second)
        for _ in range(5):
            error = await device.next(MessageType.ERROR)
            assert (error.request_id, error.header.code) == (1, ProtocolError.code)
        await replica.answer(work)
        await replica.settled()
        assert await answers(device) == 1
        assert first.waiting(MessageType.INFER) == second.waiting(MessageType.INFER) == 0


async def test_two_devices_may_use_one_id_and_neither_gets_the_others_answer() -> None:
    async with cloud() as (first, second, device, other):
        await device.infer(1, b"mine")
        one, work = await asked(first, second)
        await other.infer(1, b"theirs")
        another, their_work = await asked(first, second)
        assert work.request_id != their_work.request_id
        await another.answer(their_work)
        await one.answer(work)
        assert bytes((await device.next(MessageType.RESULT)).payloads[0]) == b"mine"
        assert bytes((await other.next(MessageType.RESULT)).payloads[0]) == b"theirs"


async def test_an_answer_sent_many_times_arrives_once_and_gives_one_credit_back() -> None:
    async with cloud() as (first, second, device, _):
        await device.infer(1)
        replica, work = await asked(first, second)
        for _ in range(5):
            await replica.answer(work)
        await replica.settled()
        assert await answers(device) == 1
        for request_id in range(2, 6):
            await device.infer(request_id)
        await device.settled()
        await first.settled()
        await second.settled()
        assert first.waiting(MessageType.INFER) == second.waiting(MessageType.INFER) == 1


async def test_nobody_answers_what_another_replica_was_asked_or_what_nobody_asked() -> None:
    async with cloud() as (first, second, device, _):
        await device.infer(1)
        replica, work = await asked(first, second)
        stranger = second if replica is first else first
        forged = Result(tensors=work.header.tensors, timings=TailTimings(), replica="forged")
        for request_id in (work.request_id, work.request_id + 1, work.request_id - 1, 0, 1, 2**64 - 1):
            await stranger.send(forged, [b"f" * 64], request_id=request_id)
        await stranger.settled()
        assert await answers(device) == 0
        await replica.answer(work)
        assert (await device.next(MessageType.RESULT)).header.replica == "fake"


async def test_a_device_cannot_answer_cancel_or_time_the_requests_of_another() -> None:
    async with cloud() as (first, second, device, other):
        await device.infer(1)
        replica, work = await asked(first, second)
        for request_id in (1, work.request_id):
            await other.send(Cancel(), request_id=request_id)
            await other.send(Announce(payload_bytes=1), request_id=request_id)
            await other.socket.send_multipart(
                encode_message(
                    Result(tensors=work.header.tensors, timings=TailTimings()),
                    work.payloads,
                    request_id=request_id,
                )
            )
        await other.send(Ping())
        await other.next(MessageType.PONG)
        await replica.answer(work)
        result = await device.next(MessageType.RESULT)
        assert (result.header.replica, result.header.span_ms) == ("fake", 0.0)
        assert await answers(other) == 0


async def test_an_id_can_be_used_again_after_its_answer_and_an_old_answer_is_not_its_answer() -> None:
    async with cloud() as (first, second, device, _):
        await device.infer(1, b"old")
        replica, old = await asked(first, second)
        await replica.answer(old)
        assert bytes((await device.next(MessageType.RESULT)).payloads[0]) == b"old"
        await device.infer(1, b"new")
        _, new = await asked(first, second)
        for each in (first, second):
            await each.send(
                Result(tensors=old.header.tensors, timings=TailTimings()),
                old.payloads,
                request_id=old.request_id,
            )
            await each.settled()
        assert await answers(device) == 0
        for each in (first, second):
            await each.answer(new)
        assert bytes((await device.next(MessageType.RESULT)).payloads[0]) == b"new"
        assert await answers(device) == 0


async def test_credits_that_are_told_again_and_again_let_no_more_be_held_than_a_gateway_may() -> None:
    async with siege(max_in_flight=4, max_bytes=2000) as besieged:
        for _ in range(50):
            await besieged.replica.send(Credit(credits=2**31 - 1))
        await besieged.replica.settled()
        for request_id in range(1, 40):
            await besieged.device.infer(request_id)
            await besieged.device.settled()  # who does not read its refusals is forgotten
        assert besieged.device.waiting(MessageType.ERROR) == 35
        for _ in range(4):
            await besieged.replica.answer(await besieged.replica.work())
            await besieged.device.next(MessageType.RESULT)
        await besieged.replica.settled()
        assert besieged.replica.waiting(MessageType.INFER) == 0


async def test_a_replica_answers_each_of_two_requests_of_one_id() -> None:
    """What it is asked it computes: that ids are its own is the gateway's part."""
    executor = EchoExecutor()
    async with (
        asyncio.timeout(PATIENCE_S),
        FakeGateway() as gateway,
        asyncio.TaskGroup() as group,
    ):
        served = asyncio.Event()

        async def serve() -> None:
            async with running_tail(executor, gateway):
                await served.wait()

        group.create_task(serve())
        replica, _ = await gateway.next(MessageType.REPLICA_HELLO)
        await gateway.send(replica, Pong())
        infer = Infer(batch=1, tensors=[tensor_of(8)], reply_codec=0)
        frames = encode_message(infer, [b"12345678"], request_id=5)
        for _ in range(3):
            await gateway.socket.send_multipart([replica, *frames])
        for _ in range(3):
            _, result = await gateway.next(MessageType.RESULT)
            assert (result.request_id, bytes(result.payloads[0])) == (5, b"12345678")
        await gateway.send(replica, Goodbye())
        served.set()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["admit", "answer", "lose", "greet"]), st.integers(0, 9)), max_size=80)
)
def test_no_order_of_answers_losses_and_greetings_answers_a_request_twice(
    events: list[tuple[str, int]],
) -> None:
    """Every replica answers every id that ever was, whether asked or not."""
    dispatcher = Dispatcher([8], 100, 2**30)
    answered, sent = Counter[int](), dict[int, set[bytes]]()
    for now_ms, (what, number) in enumerate(events):
        replica = b"%d" % (number % 3)
        if what == "admit":
            _, actions = dispatcher.admit(
                b"d", 0, nbytes=1, deadline_ms=1e9, work_ms=1, body=None, now_ms=now_ms
            )
        elif what == "greet":
            actions = dispatcher.replica_ready(replica, 0, 2, now_ms)
        elif what == "lose":
            actions = dispatcher.replica_gone(replica, now_ms)
        else:
            request, actions = dispatcher.finished(replica, number, now_ms)
            if request is not None:
                answered[request.id] += 1
                assert replica in sent[request.id]
        for action in actions:
            if isinstance(action, Send):
                sent.setdefault(action.request.id, set()).add(action.replica)
    assert all(count == 1 for count in answered.values())
