from __future__ import annotations

import asyncio
import socket

import pytest
import zmq
import zmq.asyncio

from cloud_cluster.gateway import Gateway
from shared.config import ServedModelConfig
from shared.errors import (
    ConfigError,
    DeadlineError,
    DigestMismatchError,
    InternalError,
    LimitError,
    OverloadedError,
    ProtocolError,
    RefusedError,
    StartupError,
    UnavailableError,
    UnknownModelError,
    VersionError,
)
from shared.wire import NO_BUDGET, Frame0, Message, MessageType, decode_message, encode_message
from shared.wire.messages import Announce, Cancel, Credit, Goodbye, LoadReport, Ping, Result, TailTimings
from tests.cloud_cluster.cloud_peers import (
    LIMITS,
    PATIENCE_S,
    FakeDevice,
    FakeReplica,
    gateway_config,
    running_gateway,
    until,
)

NET = ServedModelConfig(name="net")


async def error(device: FakeDevice) -> Message:
    return await device.next(MessageType.ERROR)


async def test_a_request_goes_out_under_the_gateways_id_and_comes_back_under_the_devices() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(unit_ms=[1.0, 2.0])
        card = await device.hello(net="sha256:a")
        assert card.request_id == 1
        (model,) = card.header.models
        assert (model.name, model.index, model.digest) == ("net", 0, "sha256:a")
        assert (model.unit_ms, model.replicas, model.error) == ([1.0, 2.0], 1, "")
        assert card.header.load_endpoint == gateway.load_endpoint
        assert card.header.limits.max_in_flight == 32

        await device.infer(7, b"payload", cut=1, budget_ms=5000)
        work = await replica.work()
        assert work.request_id != 7
        assert work.cut == 1
        assert 0 < work.budget_ms <= 5000
        assert bytes(work.payloads[0]) == b"payload"
        await replica.answer(work)
        answer = await device.next(MessageType.RESULT)
        assert answer.request_id == 7
        assert bytes(answer.payloads[0]) == b"payload"
        assert answer.header.timings == TailTimings(compute_ms=1.5)
        assert answer.header.gateway_ms > 0
        assert (answer.header.span_ms, answer.header.span_bytes) == (0.0, 0)


async def test_a_request_without_a_budget_stays_without_one() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(7)
        assert (await replica.work()).budget_ms == NO_BUDGET


async def test_an_announced_payload_and_an_announced_probe_return_their_span() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(7, b"x" * 5000, announce=True, budget_ms=60_000)
        await replica.answer(await replica.work())
        header = (await device.next(MessageType.RESULT)).header
        assert header.span_ms > 0
        assert 5000 < header.span_bytes < 5200

        await device.send(Announce(payload_bytes=3000), request_id=8)
        await device.send(Ping(probe_bytes=3000), [bytes(3000)], request_id=8)
        pong = await device.next(MessageType.PONG)
        assert pong.request_id == 8
        assert pong.header.span_ms > 0
        assert 3000 < pong.header.span_bytes < 3100
        await device.send(Ping(), request_id=9)
        assert (await device.next(MessageType.PONG)).header.span_bytes == 0


async def test_the_time_that_the_payload_took_is_part_of_the_budget() -> None:
    async with running_gateway() as gateway, FakeReplica(gateway.replica_endpoint) as replica:
        await replica.hello()
        async with FakeDevice(gateway.device_endpoint) as device:
            await device.hello(net="sha256:a")
            await device.send(Announce(payload_bytes=64), request_id=7)
            await asyncio.sleep(0.06)
            await device.infer(7, budget_ms=50)
            reply = await error(device)
            assert reply.header.code == DeadlineError.code
            assert "before it reached the gateway" in reply.header.message


async def test_another_digest_is_an_error_that_names_both() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(digest="sha256:cloud")
        (model,) = (await device.hello(net="sha256:device")).header.models
        assert "sha256:cloud" in model.error
        assert "sha256:device" in model.error
        await device.infer(5)
        reply = await error(device)
        assert reply.request_id == 5
        assert reply.header.code == DigestMismatchError.code
        assert "sha256:cloud" in reply.header.message


async def test_a_model_that_is_not_served_gets_a_card_with_an_error() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        served, unknown = (await device.hello(other="sha256:o")).header.models
        assert (served.name, served.replicas, served.error) == ("net", 0, "")
        assert unknown.name == "other"
        assert "there are net" in unknown.error
        for index in (0, 1, 0xFFFF):
            await device.infer(5, model=index)
            assert (await error(device)).header.code == UnknownModelError.code


async def test_devices_are_told_when_the_first_replica_comes_and_when_the_last_one_goes() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        card = await device.hello(net="sha256:device")
        assert card.header.models[0].replicas == 0
        await device.infer(5)
        assert (await error(device)).header.code == UnavailableError.code
        async with FakeReplica(gateway.replica_endpoint) as replica:
            await replica.hello(digest="sha256:cloud")
            model = (await device.next(MessageType.CARD)).header.models[0]
            assert model.replicas == 1
            assert "sha256:cloud" in model.error
        assert (await device.next(MessageType.CARD)).header.models[0].replicas == 0


async def test_without_a_session_a_device_is_told_to_say_hello() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        await device.send(Announce(payload_bytes=10), request_id=1)
        await device.infer(4)
        reply = await error(device)
        assert reply.request_id == 4
        assert reply.header.code == UnavailableError.code
        assert "HELLO" in reply.header.message


async def test_an_unknown_protocol_version_is_answered_once_with_the_versions_there_are() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        frames = [bytes(frame) for frame in encode_message(Ping(), request_id=77)]
        frames[0] = frames[0][:3] + b"\xff" + frames[0][4:]
        for _ in range(3):
            await device.socket.send_multipart(frames)
        reply = await error(device)
        assert reply.request_id == 77
        assert reply.header.code == VersionError.code
        assert "1 to 1" in reply.header.message
        await device.hello()
        await device.settled()
        assert device.waiting(MessageType.ERROR) == 0


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([b"not ours"], ProtocolError),
        ([b""], ProtocolError),
        ([Frame0(MessageType.INFER, 9).pack()], ProtocolError),
        ([Frame0(MessageType.INFER, 9, tensor_count=3).pack(), b"", b""], ProtocolError),
        ([Frame0(MessageType.INFER, 9, tensor_count=1).pack(), b"", bytes(2000)], LimitError),
        ([Frame0(MessageType.PING, 9).pack(), b"\xc1"], ProtocolError),
        ([Frame0(MessageType.PING, 9, tensor_count=1).pack(), b"\x80", b""], ProtocolError),
        ([Frame0(MessageType.RESULT, 9).pack(), b"\x80"], ProtocolError),
        ([Frame0(MessageType.REPLICA_HELLO, 9).pack(), b"\x80"], ProtocolError),
        ([Frame0(MessageType.HELLO, 9).pack(), b"\x80"], ProtocolError),
    ],
)
async def test_a_message_that_is_none_is_answered_and_does_no_harm(
    frames: list[bytes], expected: type[ProtocolError]
) -> None:
    config = gateway_config(max_message_bytes=1500)
    async with (
        running_gateway(config=config) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        # Only the whole message is too large, not one of its frames: ZeroMQ itself cuts those off.
        halves = [
            part
            for frame in frames
            for part in ([frame[:1000], frame[1000:]] if len(frame) > 1000 else [frame])
        ]
        if len(halves) > len(frames):
            halves[0] = Frame0(MessageType.INFER, 9, tensor_count=2).pack()
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.socket.send_multipart(halves)
        reply = await error(device)
        assert reply.header.code == expected.code
        assert reply.request_id == (9 if len(halves) > 1 or len(halves[0]) == 24 else 0)
        await device.infer(10)
        await replica.answer(await replica.work())
        assert (await device.next(MessageType.RESULT)).request_id == 10


async def test_work_that_waits_past_its_budget_is_answered_with_a_deadline_error_and_not_sent() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=1)
        await device.hello(net="sha256:a")
        await device.infer(1)
        busy = await replica.work()
        await device.infer(2, budget_ms=30)
        await device.infer(3, budget_ms=60_000)
        reply = await error(device)
        assert (reply.request_id, reply.header.code) == (2, DeadlineError.code)
        await replica.answer(busy)
        await replica.answer(await replica.work())
        answers = [await device.next(MessageType.RESULT) for _ in range(2)]
        assert [answer.request_id for answer in answers] == [1, 3]
        assert answers[1].header.queue_ms > 0


async def test_a_full_queue_and_a_devices_own_limits_are_answered_at_once_with_a_time() -> None:
    config = gateway_config(max_in_flight=3)
    model = ServedModelConfig(name="net", max_queue=1)
    async with (
        running_gateway(model, config=config) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
        FakeDevice(gateway.device_endpoint) as other,
    ):
        await replica.hello(credits=2)
        await device.hello(net="sha256:a")
        await other.hello(net="sha256:a")
        for request_id in (1, 2, 3, 4):
            await device.infer(request_id)
        reply = await error(device)
        assert (reply.request_id, reply.header.code) == (4, OverloadedError.code)
        assert "3 requests in flight" in reply.header.message
        assert reply.header.retry_after_ms > 0
        await other.infer(1)
        reply = await error(other)
        assert reply.header.code == OverloadedError.code
        assert "wait for this model" in reply.header.message
        await replica.answer(await replica.work())
        assert (await device.next(MessageType.RESULT)).request_id == 1
        await device.infer(5)
        await device.settled()
        assert device.waiting(MessageType.ERROR) == 0


async def test_bytes_in_flight_are_limited_per_device() -> None:
    config = gateway_config(max_in_flight_bytes=10_000)
    async with (
        running_gateway(config=config) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(1, bytes(6000))
        await device.infer(2, bytes(6000))
        reply = await error(device)
        assert (reply.request_id, reply.header.code) == (2, OverloadedError.code)
        await replica.answer(await replica.work())
        await device.next(MessageType.RESULT)
        await device.infer(3, bytes(6000))
        await replica.work()


async def test_an_id_that_is_in_flight_cannot_be_used_again() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(1)
        await device.infer(1)
        assert (await error(device)).header.code == ProtocolError.code
        await replica.answer(await replica.work())
        await device.next(MessageType.RESULT)
        await device.infer(1)
        await replica.answer(await replica.work())
        await device.next(MessageType.RESULT)


async def test_a_dead_replicas_work_goes_to_another_and_its_own_late_answer_nowhere() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as survivor,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        async with FakeReplica(gateway.replica_endpoint, b"victim") as victim:
            await victim.hello()
            await device.hello(net="sha256:a")
            await device.infer(1)
            lost = await victim.work()
            await survivor.hello()
        work = await survivor.work()
        assert bytes(work.payloads[0]) == bytes(lost.payloads[0])
        async with FakeReplica(gateway.replica_endpoint, b"victim") as back:
            await back.answer(lost)
            assert (await back.next(MessageType.ERROR)).header.code == UnavailableError.code
            await back.hello()
            await back.answer(lost)
            await back.settled()
            await survivor.answer(work)
            assert (await device.next(MessageType.RESULT)).request_id == 1
            await device.settled()
            assert device.waiting(MessageType.RESULT) == 0


async def test_when_the_only_replica_dies_its_work_is_answered_as_unavailable() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        async with FakeReplica(gateway.replica_endpoint) as replica:
            await replica.hello(credits=1)
            await device.hello(net="sha256:a")
            await device.infer(1)
            await device.infer(2)
            await replica.work()
        replies = [await error(device) for _ in range(2)]
        assert {reply.request_id for reply in replies} == {1, 2}
        assert {reply.header.code for reply in replies} == {UnavailableError.code}
        assert gateway.ready("net") == 0


async def test_a_replica_that_is_connected_but_silent_is_lost() -> None:
    config = gateway_config(heartbeat_ms=20, heartbeat_timeout_ms=20)
    async with (
        running_gateway(config=config) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(1)
        assert (await error(device)).header.code == UnavailableError.code


async def test_a_replica_that_leaves_answers_what_it_has_and_is_released() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeReplica(gateway.replica_endpoint) as other,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello()
        await device.hello(net="sha256:a")
        await device.infer(1)
        work = await replica.work()
        await other.hello()
        await replica.send(Goodbye(reason="scaled down"))
        await device.infer(2)
        assert (await other.work()).request_id != work.request_id
        assert replica.waiting(MessageType.GOODBYE) == 0
        await replica.answer(work)
        await replica.next(MessageType.GOODBYE)
        assert (await device.next(MessageType.RESULT)).request_id == 1
        assert replica.waiting(MessageType.INFER) == 0


async def test_a_gone_devices_queued_work_is_dropped() -> None:
    async with (
        running_gateway(config=gateway_config(device_silence_s=0.2)) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
        FakeDevice(gateway.device_endpoint) as other,
    ):
        await replica.hello(credits=1)
        for polite in (True, False):
            await device.hello(net="sha256:a")
            await device.infer(1)
            busy = await replica.work()
            await device.infer(2)
            if polite:
                await device.send(Goodbye())
            await until(lambda: not gateway.status()["devices"])
            await other.hello(net="sha256:a")
            await other.infer(3)
            await replica.answer(busy)
            await replica.answer(await replica.work())
            assert (await other.next(MessageType.RESULT)).request_id == 3
            await other.send(Goodbye())
        assert device.waiting(MessageType.RESULT) == 0


async def test_a_cancelled_request_is_not_run_and_not_answered() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=1)
        await device.hello(net="sha256:a")
        for request_id in (1, 2, 3):
            await device.infer(request_id)
        for request_id in (1, 2, 99):
            await device.send(Cancel(), request_id=request_id)
        await device.settled()
        for _ in range(2):
            await replica.answer(await replica.work())
        assert (await device.next(MessageType.RESULT)).request_id == 3
        await device.settled()
        assert device.waiting(MessageType.RESULT) == 0
        assert replica.waiting(MessageType.INFER) == 0


async def test_a_replica_of_an_unknown_model_or_with_other_units_is_refused() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeReplica(gateway.replica_endpoint) as other,
    ):
        await replica.hello(digest="sha256:a")
        for model, units, expected in [("net", [1.0], ProtocolError), ("what", [], UnknownModelError)]:
            await other.greet(model, "sha256:a", unit_ms=units)
            assert (await other.next(MessageType.ERROR)).header.code == expected.code
        assert gateway.ready("net") == 1


async def test_a_new_version_is_served_beside_the_old_until_that_has_no_replicas_and_no_devices() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as new,
        FakeDevice(gateway.device_endpoint) as device,
        FakeDevice(gateway.device_endpoint) as moved,
    ):
        async with FakeReplica(gateway.replica_endpoint) as old:
            await old.hello(digest="sha256:old")
            await device.hello(net="sha256:old")
            await moved.hello(net="sha256:new")
            await new.hello(digest="sha256:new")
            card = (await moved.next(MessageType.CARD)).header.models[0]
            assert (card.digest, card.index, card.error) == ("sha256:new", 1, "")
            card = (await device.next(MessageType.CARD)).header.models[0]
            assert (card.digest, card.index, card.error) == ("sha256:old", 0, "")
            await device.infer(1, model=0)
            await moved.infer(2, model=1)
            for replica in (old, new):
                await replica.answer(await replica.work())
            assert (await device.next(MessageType.RESULT)).request_id == 1
            assert (await moved.next(MessageType.RESULT)).request_id == 2
            versions = gateway.status()["models"]["net"]["versions"]
            assert [(each["digest"], each["devices"], each["replicas"]) for each in versions] == [
                ("sha256:old", 1, 1),
                ("sha256:new", 1, 1),
            ]
        # The old one's last replica is gone: its device is told, and nobody forgets it yet.
        card = (await device.next(MessageType.CARD)).header.models[0]
        assert "sha256:old" in card.error
        assert "sha256:new" in card.error
        assert len(gateway.status()["models"]["net"]["versions"]) == 2
        await device.send(Goodbye())
        await until(lambda: len(gateway.status()["models"]["net"]["versions"]) == 1)


async def test_networks_come_and_go_without_a_restart_and_those_that_go_finish_their_work() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeReplica(gateway.replica_endpoint) as other,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=1)
        await device.hello(net="sha256:a", more="sha256:b")
        for request_id in (1, 2):
            await device.infer(request_id)
        work = await replica.work()
        gateway.reconfigure([ServedModelConfig(name="more")])
        cards = {card.name: card for card in (await device.next(MessageType.CARD)).header.models}
        assert (cards["more"].index, cards["more"].error) == (1, "")
        assert "there are more" in cards["net"].error
        await device.infer(3)
        assert (await error(device)).header.code == UnknownModelError.code
        await other.hello(model="more", digest="sha256:b")
        await device.infer(4, model=1)
        await other.answer(await other.work())
        assert (await device.next(MessageType.RESULT)).request_id == 4
        await replica.answer(work)
        await replica.answer(await replica.work())
        assert [(await device.next(MessageType.RESULT)).request_id for _ in range(2)] == [1, 2]
        await replica.send(Goodbye())
        await replica.next(MessageType.GOODBYE)
        await until(lambda: list(gateway.status()["models"]) == ["more"])


async def test_a_network_without_a_replica_is_reported_as_wanted_by_request_and_by_heartbeat() -> None:
    wanted: list[str] = []
    async with (
        running_gateway(NET, ServedModelConfig(name="other")) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        gateway.on_unserved = wanted.append
        await device.hello(net="sha256:a", other="sha256:b")
        await device.infer(1, model=0)
        await error(device)
        await until(lambda: wanted == ["net"])
        await device.send(Ping(wanted=[1, 77]))
        await until(lambda: wanted == ["net", "other"])
        await replica.hello()
        await device.send(Ping(wanted=[0, 1]))
        await until(lambda: wanted == ["net", "other", "other"])


async def test_devices_are_told_of_the_other_gateways_once() -> None:
    async with running_gateway() as gateway, FakeDevice(gateway.device_endpoint) as device:
        await device.hello(net="sha256:a")
        for _ in range(2):
            gateway.set_gateways(["tcp://a:1", "tcp://b:1"], ["tcp://a:2", "tcp://b:2"])
        card = (await device.next(MessageType.CARD)).header
        assert (card.gateways, card.load_endpoints) == (
            ["tcp://a:1", "tcp://b:1"],
            ["tcp://a:2", "tcp://b:2"],
        )
        assert card.load_endpoint == gateway.load_endpoint
        await device.settled()
        assert device.waiting(MessageType.CARD) == 0


async def test_a_request_that_could_not_be_answered_in_time_is_refused_at_once() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=1, unit_ms=[30_000.0, 30_000.0])
        await device.hello(net="sha256:a")
        await device.infer(1, cut=1)
        await replica.work()
        await device.infer(2, cut=1, budget_ms=40_000)
        reply = (await error(device)).header
        assert reply.code == OverloadedError.code
        # It would take what is left of the first, and 30 s of its own; 40 s are there.
        assert 0 < reply.retry_after_ms <= 20_000
        await device.infer(3, cut=0, budget_ms=40_000)
        assert (await error(device)).header.code == RefusedError.code
        # With enough time it waits.
        await device.infer(4, cut=1, budget_ms=65_000)
        await device.settled()
        assert device.waiting(MessageType.ERROR) == 0


async def test_what_a_replica_holds_for_another_gateway_is_waited_for_and_its_window_can_narrow() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=2, unit_ms=[1.0])
        await device.hello(net="sha256:a")
        await replica.send(Credit(credits=0, window=1, elsewhere_ms=60_000.0))
        await replica.settled()
        assert 55_000 < gateway.status()["models"]["net"]["wait_ms"] <= 60_000
        await device.infer(1, budget_ms=30_000)
        assert (await error(device)).header.code == OverloadedError.code
        for request_id in (2, 3):
            await device.infer(request_id)
        await device.settled()
        state = gateway.status()["models"]["net"]
        assert (state["in_flight"], state["queued"]) == (1, 1)


async def test_an_unreadable_answer_is_an_internal_error_and_the_replica_goes_on() -> None:
    async with (
        running_gateway() as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        await replica.hello(credits=1)
        await device.hello(net="sha256:a")
        await device.infer(1)
        work = await replica.work()
        frames = encode_message(Result(tensors=[], timings=TailTimings()), request_id=work.request_id)
        await replica.socket.send_multipart([frames[0], b"\xc1"])
        reply = await error(device)
        assert (reply.request_id, reply.header.code) == (1, InternalError.code)
        await device.infer(2)
        await replica.answer(await replica.work())
        assert (await device.next(MessageType.RESULT)).request_id == 2


async def test_the_load_feed_is_numbered_and_follows_the_queue() -> None:
    async with (
        running_gateway(ServedModelConfig(name="net", replicas=2)) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
    ):
        context = zmq.asyncio.Context()
        feed = context.socket(zmq.SUB)
        feed.subscribe(b"")
        feed.connect(gateway.load_endpoint)

        async def report() -> LoadReport:
            async with asyncio.timeout(PATIENCE_S):
                header = decode_message(await feed.recv_multipart(), LIMITS).header
            assert isinstance(header, LoadReport)
            return header

        try:
            first = await report()
            assert first.gateway == gateway.name
            (load,) = first.models
            assert (load.ready, load.starting, load.target) == (0, 2, 2)
            await replica.hello(credits=1, unit_ms=[400.0, 200.0])
            await device.hello(net="sha256:a")
            for request_id in (1, 2, 3):
                await device.infer(request_id, cut=1)
            following = [await report()]
            while following[-1].models[0].queued < 2:
                following.append(await report())
            (load,) = following[-1].models
            assert (load.ready, load.starting, load.in_flight) == (1, 1, 1)
            assert load.queue_ms == pytest.approx(400.0)
            # A device that has nothing waiting would run before the second of this one's.
            assert 200.0 < load.wait_ms <= 400.0
            assert load.index == 0
            numbers = [first.sequence, *(each.sequence for each in following)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        finally:
            context.destroy(linger=0)


async def test_a_late_subscriber_gets_a_snapshot_at_once_and_targets_are_in_it() -> None:
    # The next report would come in a minute.
    config = gateway_config(load_period_ms=60_000.0)
    async with running_gateway(config=config) as gateway:
        gateway.set_target("net", 5, 4)
        await until(lambda: gateway.status()["load_reports"] == 1)
        context = zmq.asyncio.Context()
        feed = context.socket(zmq.SUB)
        feed.subscribe(b"")
        feed.connect(gateway.load_endpoint)
        try:
            async with asyncio.timeout(PATIENCE_S):
                header = decode_message(await feed.recv_multipart(), LIMITS).header
        finally:
            context.destroy(linger=0)
        assert (header.sequence, header.period_ms) == (1, 60_000.0)
        (load,) = header.models
        assert (load.target, load.starting) == (5, 4)


async def test_too_many_devices_are_refused() -> None:
    async with (
        running_gateway(config=gateway_config(max_devices=1)) as gateway,
        FakeDevice(gateway.device_endpoint) as first,
        FakeDevice(gateway.device_endpoint) as second,
    ):
        await first.hello(net="sha256:a")
        await second.greet(net="sha256:a")
        assert (await error(second)).header.code == OverloadedError.code
        await first.hello(net="sha256:a")


async def test_limits_change_under_sessions_and_requests_that_go_on() -> None:
    tight = gateway_config(max_in_flight=1, max_devices=1, max_bytes=10_000, load_period_ms=10_000)
    wide = gateway_config(max_in_flight=3, max_devices=2, max_bytes=10_000_000, load_period_ms=50)
    async with (
        running_gateway(config=tight) as gateway,
        FakeReplica(gateway.replica_endpoint) as replica,
        FakeDevice(gateway.device_endpoint) as device,
        FakeDevice(gateway.device_endpoint) as other,
    ):
        await replica.hello(credits=8)
        await device.hello(net="sha256:a")
        await device.infer(1)
        work = await replica.work()
        await device.infer(2)
        assert "1 requests in flight" in (await error(device)).header.message
        await other.greet(net="sha256:a")
        assert "has 1 devices" in (await error(other)).header.message
        endpoint = gateway.device_endpoint

        gateway.reconfigure([NET], wide)
        card = (await device.next(MessageType.CARD)).header
        assert (card.limits.max_in_flight, card.models[0].error) == (3, "")
        await other.hello(net="sha256:a")
        await device.infer(3, bytes(50_000))
        await device.infer(4)
        assert [(await replica.work()).cut for _ in range(2)] == [0, 0]
        await device.infer(5)
        assert "3 requests in flight" in (await error(device)).header.message
        seen = gateway.status()["load_reports"]
        await until(lambda: gateway.status()["load_reports"] > seen + 2)
        await replica.answer(work)
        assert (await device.next(MessageType.RESULT)).request_id == 1
        assert device.waiting(MessageType.CARD) == 0
        assert gateway.device_endpoint == endpoint

        # Narrower again: nobody is sent away, nothing that was taken is dropped.
        gateway.reconfigure([NET], tight)
        assert (await device.next(MessageType.CARD)).header.limits.max_in_flight == 1
        await other.hello(net="sha256:a")
        await device.infer(6)
        assert "2 requests in flight" in (await error(device)).header.message
        # Nor does a connection stand still, however much goes over it.
        for _ in range(100):
            await device.settled()


async def test_stopping_says_goodbye_to_devices_and_replicas() -> None:
    async with running_gateway() as gateway:
        replica = FakeReplica(gateway.replica_endpoint)
        device = FakeDevice(gateway.device_endpoint)
        await replica.hello()
        await device.hello(net="sha256:a")
    await replica.next(MessageType.GOODBYE)
    await device.next(MessageType.GOODBYE)
    await replica.close()
    await device.close()


async def test_a_port_in_use_is_a_start_up_error_that_names_it() -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        config = gateway_config(bind_retry_s=0.0).model_copy(update={"replica_port": port})
        gateway = Gateway(config, [NET])
        with pytest.raises(StartupError, match=f"port {port} .* replicas is in use"):
            await gateway.start()


async def test_binding_waits_for_a_predecessor_that_still_holds_the_port() -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        gateway = Gateway(gateway_config().model_copy(update={"device_port": port}), [NET])
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(gateway.start())
            await asyncio.sleep(0.15)
            assert not starting.done()
            occupied.close()
    assert gateway.device_endpoint == f"tcp://127.0.0.1:{port}"
    await gateway.stop()


def test_an_address_that_others_can_reach_needs_keys_or_a_word() -> None:
    with pytest.raises(ConfigError, match="insecure: true"):
        Gateway(gateway_config(host="0.0.0.0"), [NET])
    with pytest.raises(ConfigError, match="CURVE"):
        Gateway(gateway_config(host="192.168.1.5"), [NET])
    Gateway(gateway_config(host="0.0.0.0", insecure=True), [NET])
