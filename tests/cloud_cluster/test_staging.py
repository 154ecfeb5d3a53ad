"""Requests are decoded where they lie, on their way to the device while others compute, and awaited there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import zmq

from cloud_cluster.curves import BatchCurves
from cloud_cluster.executor import Job, Outcome
from cloud_cluster.replica_request import Done
from cloud_cluster.staging import Sent, staging_for
from cloud_cluster.torch_executor import TorchExecutor
from cloud_cluster.worker import Worker
from shared.errors import InputMismatchError, SutureError
from shared.wire import Message, WireLimits, decode_message
from tests.cloud_cluster.batch_peers import Served, from_zoo, run

PATIENCE_S = 20


def received(message: Message) -> tuple[Message, list[zmq.Frame]]:
    """The message as it comes out of a socket, and its payloads' frames."""
    from shared.wire import encode_message

    context = zmq.Context()
    left, right = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    right.connect(f"tcp://127.0.0.1:{left.bind_to_random_port('tcp://127.0.0.1')}")
    left.send_multipart(encode_message(message.header, message.payloads, cut=message.cut))
    frames = right.recv_multipart(copy=False)
    context.destroy(linger=0)
    return decode_message([frame.buffer for frame in frames], WireLimits()), frames[2:]


def test_plain_payloads_are_not_copied_out_of_their_frames() -> None:
    # Larger frames than those that libzmq packs together, at any address.
    net, batch = from_zoo("mnist"), 32
    cut = net.graph.cuts[1]
    message, frames = received(net.message(cut, batch))
    assert all(len(frame) > 8192 for frame in frames)
    job = net.executor.accept(message)
    net.executor.decode(job)
    tensors = job.body.tensors.take()
    assert len(tensors) == len(frames) > 0
    for tensor, frame in zip(tensors, frames, strict=True):
        first = np.frombuffer(frame.buffer, np.uint8).ctypes.data
        assert first <= tensor.data_ptr() < first + len(frame)
    (answer,) = run(net, [message])
    (got,), (expected,) = net.tensors(answer, cut, batch), net.alone(cut, batch, 0)
    assert torch.equal(got, expected)


class Late:
    """A staging whose tensors hold nothing before somebody has waited for them."""

    def __init__(self) -> None:
        self.sent_in: list[int] = []
        self.arrived_in: list[int] = []

    def send(self, tensors: Sequence[torch.Tensor]) -> Sent:
        self.sent_in.append(threading.get_ident())
        there = [torch.full_like(tensor, float("nan")) for tensor in tensors]

        def arrived() -> None:
            self.arrived_in.append(threading.get_ident())
            for to, tensor in zip(there, tensors, strict=True):
                to.copy_(tensor)

        return Sent(there, arrived)


def test_tensors_are_awaited_before_anything_is_computed_on_them() -> None:
    net = from_zoo("mnist")
    late = Late()
    executor = TorchExecutor(net.program, net.executor.curves, staging=late)
    cut = net.graph.cuts[1]
    (answer,) = run(Served(net.program, net.sample, executor), [net.message(cut)])
    assert len(late.arrived_in) == 1
    (got,), (expected,) = net.tensors(answer, cut, 1), net.alone(cut, 1, 0)
    assert torch.equal(got, expected)


def test_on_the_host_there_is_nothing_to_bring() -> None:
    tensors = [torch.ones(3)]
    assert staging_for(torch.device("cpu")).send(tensors).take() is tensors


class Gated:
    """An executor that decodes ahead; a request's cut says what is to happen to it."""

    digest, unit_ms, precision, tables_digest = "sha256:a", (1.0,), "", ""
    curves, max_batch, decodes_ahead = BatchCurves.flat((1.0,)), 1, True
    WRONG, DEFECT = 7, 8

    def __init__(self) -> None:
        self.computing = threading.Event()
        self.go_on = threading.Event()
        self.decoded: list[tuple[int, int, bool]] = []
        self.computed_in: list[int] = []

    def place_from(self, unit: int) -> int:
        return 1

    def accept(self, message: Message) -> Job:
        return Job(1, range(1), 1, message)

    def decode(self, job: Job) -> None:
        if job.body.cut == self.WRONG:
            raise InputMismatchError("wrong")
        if job.body.cut == self.DEFECT:
            raise ZeroDivisionError("a defect")
        self.decoded.append((job.body.request_id, threading.get_ident(), self.computing.is_set()))

    def run(self, parts: Sequence[Any], units: Sequence[int]) -> tuple[Any, float]:
        self.computed_in.append(threading.get_ident())
        self.computing.set()
        assert self.go_on.wait(PATIENCE_S)
        self.computing.clear()
        return parts[0], 1.0

    def finish(self, work: Any, jobs: Sequence[Job]) -> list[Outcome]:
        return [Outcome(tensors=[], payloads=[])]


def infer(request_id: int, cut: int = 0) -> Message:
    from shared.wire import encode_message
    from shared.wire.messages import Infer

    frames = encode_message(Infer(batch=1, tensors=[], reply_codec=0), request_id=request_id, cut=cut)
    return decode_message([bytes(frame) for frame in frames], WireLimits())


async def test_what_arrives_during_a_computation_is_decoded_meanwhile_in_another_thread() -> None:
    executor = Gated()
    worker = Worker(lambda: executor, "test")
    await worker.start()
    done: asyncio.Queue[tuple[int, Done]] = asyncio.Queue()

    def submit(request_id: int, cut: int = 0) -> None:
        worker.submit(infer(request_id, cut), lambda each: done.put_nowait((request_id, each)))

    async with asyncio.timeout(PATIENCE_S):
        submit(1)
        await asyncio.to_thread(executor.computing.wait, PATIENCE_S)
        submit(2)
        submit(3, Gated.WRONG)
        while len(executor.decoded) < 2:  # noqa: ASYNC110 - the other thread gives no signal
            await asyncio.sleep(0.005)
        executor.go_on.set()
        outcomes = dict([await done.get() for _ in range(3)])
    assert isinstance(outcomes[3].outcome, InputMismatchError)
    assert not isinstance(outcomes[1].outcome, SutureError)
    assert not isinstance(outcomes[2].outcome, SutureError)
    (first, _, _), (second, decoder, meanwhile) = executor.decoded
    assert (first, second, meanwhile) == (1, 2, True)
    assert decoder not in executor.computed_in
    await worker.stop()
    assert not any("decoder" in thread.name for thread in threading.enumerate())


async def test_a_defect_while_decoding_ahead_ends_the_replica() -> None:
    executor = Gated()
    worker = Worker(lambda: executor, "test")
    await worker.start()
    worker.submit(infer(1), lambda _: None)
    await asyncio.to_thread(executor.computing.wait, PATIENCE_S)
    worker.submit(infer(2, Gated.DEFECT), lambda _: None)
    executor.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(ZeroDivisionError):
            await worker.failed()
    await worker.stop()
