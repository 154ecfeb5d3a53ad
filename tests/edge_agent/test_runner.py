from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_agent.measuring import Question
from edge_agent.runner import Runner, Stopped, Work
from edge_agent.tensors import to_numpy
from shared.calibration import Calibration
from shared.codec import Codec, Form, encode
from shared.errors import CodecError
from shared.graph.capture import capture
from tests.edge_agent import edge_networks as networks

SAMPLES = Calibration("test 2", [[networks.BATCH_ONE], [networks.BATCH_ONE.flip(1)]], synthetic=False)


class Gate:
    """Holds the worker until opened, so that what waits behind it can be observed."""

    def __init__(self, runner: Runner, expected_ms: float = 0.0) -> None:
        self._open = threading.Event()
        self._entered = threading.Event()
        self.task = asyncio.ensure_future(runner.call(self._body, expected_ms=expected_ms))

    def _body(self) -> None:
        self._entered.set()
        assert self._open.wait(20)

    async def entered(self) -> None:
        await asyncio.to_thread(self._entered.wait, 20)

    async def open(self) -> None:
        self._open.set()
        await self.task


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    runner = Runner("cpu", 1)
    module, args = networks.photos()
    await runner.load("photos", capture(module, args, name="photos"))
    module, args, kwargs = networks.trees()
    await runner.load("trees", capture(module, args, kwargs, name="trees"))
    yield runner
    await runner.close()


def expected(factory: Callable[[], tuple[Any, ...]]) -> Any:
    module, args, *kwargs = factory()
    with torch.no_grad():
        return module(*args, **(kwargs[0] if kwargs else {}))


async def test_prefix_and_local_finish_equal_the_whole_network_at_every_cut(runner: Runner) -> None:
    want = expected(networks.photos).numpy()
    graph = runner.program("photos").graph
    for cut in graph.cuts:
        codecs = [Codec.FLOAT32] * len(cut.live)
        prefix = await runner.prefix("photos", [networks.BATCH_ONE.numpy()], cut, codecs, Work())
        assert prefix.payload_bytes == sum(memoryview(payload).nbytes for payload in prefix.payloads)
        for _ in range(2):  # the cut's tensors stay usable
            answer = await runner.finish("photos", cut, prefix, Work())
            (slot,) = graph.outputs
            np.testing.assert_allclose(to_numpy(answer.outputs[slot]), want, rtol=1e-5, atol=1e-6)


async def test_outputs_of_the_device_and_of_the_cloud_are_put_together(runner: Runner) -> None:
    want = expected(networks.trees)
    program = runner.program("trees")
    graph = program.graph
    _, args, kwargs = networks.trees()
    leaves = graph.flatten(args, kwargs)
    for cut in graph.cuts[:-1]:
        codecs = [Codec.FLOAT32] * len(cut.live)
        prefix = await runner.prefix("trees", leaves, cut, codecs, Work())
        state = program.resume(cut, prefix.live, 1)
        program.run(state, cut.cloud_units)
        cloud = program.outputs(state)
        reply = [encode(cloud[slot], Codec.FLOAT32, slot) for slot in graph.output_slots_of(cut)]
        answer = await runner.decode(
            "trees", cut, prefix, [header for header, _ in reply], [data for _, data in reply], Work()
        )
        outputs = graph.unflatten([to_numpy(answer.outputs[slot]) for slot in graph.outputs])
        np.testing.assert_allclose(outputs["early"], want["early"].numpy(), rtol=1e-5)
        np.testing.assert_allclose(outputs["late"][0], want["late"][0].numpy(), rtol=1e-5)
        assert outputs["late"][1].tolist() == want["late"][1].tolist()


async def test_an_answer_with_other_slots_or_sizes_is_a_codec_error(runner: Runner) -> None:
    graph = runner.program("photos").graph
    cut = graph.cuts[1]
    prefix = await runner.prefix("photos", [networks.BATCH_ONE], cut, [Codec.FLOAT32] * len(cut.live), Work())
    (slot,) = graph.outputs
    for tensor, named in [(torch.zeros(1, 5), slot + 1), (torch.zeros(1, 6), slot)]:
        header, data = encode(tensor, Codec.FLOAT32, named)
        with pytest.raises(CodecError):
            await runner.decode("photos", cut, prefix, [header], [data], Work())
    with pytest.raises(CodecError):
        await runner.decode("photos", cut, prefix, [], [], Work())


async def test_stopped_work_does_not_run_whether_it_waits_or_has_begun(runner: Runner) -> None:
    graph = runner.program("photos").graph
    cut = graph.cuts[-1]
    gate = Gate(runner)
    await gate.entered()
    work = Work()
    waiting = asyncio.ensure_future(runner.prefix("photos", [networks.BATCH_ONE], cut, [], work))
    await asyncio.sleep(0)
    work.stop()
    await gate.open()
    with pytest.raises(Stopped):
        await waiting

    prefix = await runner.prefix("photos", [networks.BATCH_ONE], graph.cuts[0], [Codec.FLOAT32], Work())
    stopped = Work()
    stopped.stop()
    with pytest.raises(Stopped):
        await runner.finish("photos", graph.cuts[0], prefix, stopped)


async def test_a_cancelled_caller_takes_its_queued_work_along(runner: Runner) -> None:
    gate = Gate(runner)
    await gate.entered()
    ran: list[int] = []
    waiting = asyncio.ensure_future(runner.call(lambda: ran.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await gate.open()
    await runner.call(lambda: None)
    assert ran == []


async def test_the_time_queued_for_the_worker_is_visible(runner: Runner) -> None:
    assert runner.queued_ms() == 0.0
    gate = Gate(runner, expected_ms=0.0)
    await gate.entered()
    waiting = [asyncio.ensure_future(runner.call(lambda: None, expected_ms=30.0)) for _ in range(2)]
    await asyncio.sleep(0)
    assert runner.queued_ms() == 60.0
    await gate.open()
    await asyncio.gather(*waiting)
    assert runner.queued_ms() == 0.0


async def test_every_compute_section_and_the_profile_pass_one_gate(tmp_path: Path) -> None:
    class Stretched(Runner):
        """As a bench slows a device down."""

        factor = 50.0
        sections: list[str] = []  # noqa: RUF012

        def _timed(self, section: str, body: Callable[[], Any]) -> tuple[Any, float]:
            value, ms = super()._timed(section, body)
            self.sections.append(section)
            return value, ms * self.factor

        def profile_clock(self) -> float:
            return time.perf_counter() * self.factor

        @property
        def profile_device(self) -> str:
            return f"cpu stretched {self.factor:g}"

    module, args = networks.photos()
    captured = capture(module, args, name="photos")
    totals = []
    for kind in (Runner, Stretched):
        runner = kind("cpu", 1)
        graph = await runner.load("photos", captured)
        profile = await runner.profile("photos", SAMPLES, cache_dir=tmp_path, repeats=3)
        assert len(profile.unit_ms) == len(graph.units)
        assert profile.key.threads == 1
        totals.append(sum(profile.unit_ms))
        again = await runner.profile("photos", SAMPLES, cache_dir=tmp_path, repeats=3)
        assert again == profile  # kept
        await runner.close()
    assert totals[1] > totals[0] * 5

    runner = Stretched("cpu", 1)
    await runner.load("photos", captured)
    cut = runner.program("photos").graph.cuts[2]
    prefix = await runner.prefix("photos", args, cut, [Codec.UINT8] * len(cut.live), Work())
    await runner.finish("photos", cut, prefix, Work())
    assert {"start", "compute", "encode"} <= set(Stretched.sections)
    await runner.close()


async def test_profile_and_gate_are_of_the_calibration_inputs_and_kept(tmp_path: Path) -> None:
    module, args = networks.photos()
    runner = Runner("cpu", 1)
    await runner.load("photos", capture(module, args, name="photos"))
    graph = runner.program("photos").graph
    steps: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    profile = await runner.profile("photos", SAMPLES, cache_dir=tmp_path, repeats=3, progress=progress)
    assert profile.key.calibration == SAMPLES.name
    assert profile.payloads[graph.inputs[0]][Codec.FLOAT32].payload_bytes == networks.BATCH_ONE.nbytes
    assert steps[-1][0] == steps[-1][1] > 0
    steps.clear()
    half = Question([Form.HALF], None)
    gate = await runner.gate("photos", SAMPLES, half, cache_dir=tmp_path, progress=progress)
    assert (gate.samples, gate.key.calibration, gate.key.agreement) == (2, SAMPLES.name, "top1")
    assert steps[-1][0] == steps[-1][1] == 2 * len(gate.measured) > 0
    steps.clear()
    again = await runner.gate("photos", SAMPLES, half, cache_dir=tmp_path, progress=progress)
    assert again == gate
    assert steps == []  # kept
    other, cuts = tmp_path / "elsewhere", graph.cuts[3:4]
    four_bits = Question([Form.INT4], None, cuts)
    more = await runner.gate("photos", SAMPLES, four_bits, cache_dir=other, known=gate)
    live = graph.cuts[3].live
    assert more.measured[live].keys() == {Form.HALF, Form.INT4}
    assert {key: value for key, value in more.measured.items() if key != live} == {
        key: value for key, value in gate.measured.items() if key != live
    }
    await runner.close()


async def test_a_full_device_memory_makes_the_cpu_compute_until_there_is_room(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    want = expected(networks.photos).numpy()
    program = runner.program("photos")
    graph = program.graph
    run, full = program.run, True

    def patched(state: Any, units: Any) -> None:
        if full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        run(state, units)

    program.run = patched  # type: ignore[method-assign]
    cut = graph.cuts[3]
    for _ in range(2):
        prefix = await runner.prefix(
            "photos", [networks.BATCH_ONE], cut, [Codec.FLOAT32] * len(cut.live), Work()
        )
        answer = await runner.finish("photos", cut, prefix, Work())
        (slot,) = graph.outputs
        np.testing.assert_allclose(to_numpy(answer.outputs[slot]), want, rtol=1e-5, atol=1e-6)
    said = [record.message for record in caplog.records]
    assert len(said) == 1  # once, not for each request
    assert "no memory left for photos, which runs on the CPU" in said[0]
    assert "20.00 MiB" in said[0]
    full = False
    await runner.finish("photos", cut, prefix, Work())
    assert "photos fits into the device's memory again" in caplog.text
