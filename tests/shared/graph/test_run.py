"""Both halves of every cut of the hard networks give the bits of the whole, and of eager torch."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shared.errors import InputMismatchError
from shared.graph import CapturedModel, Program, load
from shared.graph.capture import capture
from tests.shared.graph import hard_networks
from tests.shared.graph.shipping import eager, same_bits, shipped, through


@functools.cache
def captured(name: str) -> CapturedModel:
    module, args, kwargs = hard_networks.build(name)
    return capture(module, args, kwargs, name=name)


@functools.cache
def exact(name: str) -> Program:
    return load(captured(name), mode="exact")


def batch_of(name: str, size: int) -> tuple[tuple[object, ...], dict[str, object]]:
    """``size`` different examples, concatenated leaf by leaf."""
    graph = captured(name).graph
    examples = [hard_networks.build(name, seed)[1:] for seed in range(size)]
    leaves = [graph.flatten(args, kwargs) for args, kwargs in examples]
    return graph.input_tree.unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)])


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_every_cut_gives_the_bits_of_eager(name: str) -> None:
    module, _, _ = hard_networks.build(name)
    _, args, kwargs = hard_networks.build(name, seed=3)
    program = exact(name)
    leaves = program.graph.flatten(args, kwargs)
    expected = eager(module, args, kwargs)
    for cut in program.graph.cuts:
        for got, want in zip(through(program, cut, leaves), expected, strict=True):
            assert same_bits(got, want), f"cut {cut.index} after {cut.name}"


@pytest.mark.parametrize("name", hard_networks.NAMES)
@pytest.mark.parametrize("size", [2, 5])
def test_a_batch_gives_the_bits_of_eager_at_that_batch(name: str, size: int) -> None:
    assert captured(name).graph.dynamic_batch
    module, _, _ = hard_networks.build(name)
    args, kwargs = batch_of(name, size)
    program = exact(name)
    leaves = program.graph.flatten(args, kwargs)
    expected = eager(module, args, kwargs)
    cuts = program.graph.cuts
    for cut in (cuts[0], cuts[len(cuts) // 2], cuts[-1]):
        for got, want in zip(through(program, cut, leaves), expected, strict=True):
            assert same_bits(got, want), f"cut {cut.index} after {cut.name}"


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_live_tensors_are_what_the_card_says(name: str) -> None:
    program = exact(name)
    args, kwargs = batch_of(name, 3)
    state = program.start(program.graph.flatten(args, kwargs))
    for cut in program.graph.cuts:
        for tensor, spec in zip(program.live(state, cut), program.graph.live_specs(cut, 3), strict=True):
            assert tuple(tensor.shape) == spec.shape
            assert str(tensor.dtype) == f"torch.{spec.dtype.label}"
            assert shipped(tensor).stride() == spec.strides or 1 in spec.shape
        if cut.cloud_units:
            program.run(state, range(cut.index, cut.index + 1))


@pytest.mark.parametrize("name", hard_networks.NAMES)
def test_the_device_can_finish_from_its_cut(name: str) -> None:
    module, args, kwargs = hard_networks.build(name)
    program = exact(name)
    for cut in program.graph.cuts:
        state = program.start(program.graph.flatten(args, kwargs))
        program.run(state, cut.edge_units)
        sent = [shipped(tensor) for tensor in program.live(state, cut)]
        program.run(state, cut.cloud_units)
        got = [state.slots[slot] for slot in program.graph.outputs]
        for one, want in zip(got, eager(module, args, kwargs), strict=True):
            assert same_bits(one, want)
        assert len(sent) == len(cut.live)


@pytest.mark.parametrize("name", ["residual", "class-token", "recurrent", "photograph"])
def test_unaligned_inputs_give_the_same_bits(name: str) -> None:
    module, args, kwargs = hard_networks.build(name)
    program = exact(name)
    leaves = program.graph.flatten(args, kwargs)
    shifted = []
    for leaf in leaves:
        room = torch.empty(leaf.numel() + 1, dtype=leaf.dtype)[1:].view(leaf.shape)
        shifted.append(room.copy_(leaf))
        assert shifted[-1].data_ptr() % 64
    for cut in program.graph.cuts:
        assert all(map(same_bits, through(program, cut, shifted), eager(module, args, kwargs)))


@pytest.mark.parametrize("name", ["residual", "cache-step", "class-token"])
def test_a_finished_run_holds_its_outputs_only(name: str) -> None:
    program = exact(name)
    _, args, kwargs = hard_networks.build(name)
    state = program.start(program.graph.flatten(args, kwargs))
    program.run(state, range(len(program.graph.units)))
    graph = program.graph
    held = {
        slot
        for unit in graph.units
        for op in unit.ops
        for slot in op.written
        if state.slots[slot] is not None
    }
    allowed = {slot for output in graph.outputs for slot in (output, graph.flow.root(output))}
    assert held <= allowed


def test_states_of_many_threads_do_not_meet() -> None:
    program = exact("class-token")
    module, _, _ = hard_networks.build("class-token")
    examples = [hard_networks.build("class-token", seed)[1] for seed in range(16)]
    wanted = [eager(module, args, {})[0] for args in examples]
    cut = program.graph.cuts[7]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda args: through(program, cut, list(args))[0], examples * 4))
    for one, want in zip(got, wanted * 4, strict=True):
        assert same_bits(one, want)


def test_unit_times_has_a_sample_for_each_unit_and_repeat() -> None:
    program = exact("residual")
    _, args, _ = hard_networks.build("residual")
    ticks = iter(range(10_000))
    times = program.unit_times(args, 3, clock=lambda: float(next(ticks)))
    assert len(times) == len(program.graph.units)
    assert all(samples == [1000.0] * 3 for samples in times)


def test_wrong_inputs_are_named() -> None:
    program = exact("photograph")
    with pytest.raises(InputMismatchError, match=r"image .* must be uint8 \[batch, 16, 16, 3\], not float32"):
        program.start([torch.zeros(1, 16, 16, 3)])
    with pytest.raises(InputMismatchError, match=r"not uint8 \[2, 16, 15, 3\]"):
        program.start([torch.zeros(2, 16, 15, 3, dtype=torch.uint8)])
    with pytest.raises(InputMismatchError, match="complex64"):
        program.start([torch.zeros(1, 16, 16, 3, dtype=torch.complex64)])


def test_units_out_of_order_are_refused() -> None:
    program = exact("residual")
    _, args, _ = hard_networks.build("residual")
    state = program.start(args)
    with pytest.raises(ValueError, match="cannot run now: it needs"):
        program.run(state, [2])
