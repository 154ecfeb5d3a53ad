"""Measuring a real network: complete, in the clock's own time, with sizes that are those on the wire."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.codec import TRANSFORMS, Codec, Form, encode
from shared.graph import Program, load
from shared.graph.capture import capture
from shared.plan.latency import Conditions, latency_ms
from shared.plan.measure import measure_profile
from shared.plan.profile import Profile, ProfileKey
from shared.plan.rows import build_rows
from shared.plan.solve import uplink_segments


class Branches(nn.Module):
    """An image in, two outputs, two tensors across some cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.stem(image.float() / 255.0))
        left = torch.relu(self.left(x))
        both = left + torch.relu(self.right(x))
        return self.head(both.mean((2, 3))), left.amax((2, 3))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    return load(capture(Branches().eval(), (image,), name="branches"))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(
        0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="module")
def profile(program: Program, image: torch.Tensor) -> Profile:
    return measure_profile(program, [[image]], key_of(program), repeats=3)


def key_of(program: Program) -> ProfileKey:
    return ProfileKey(program.graph.digest, "cpu", torch.get_num_threads(), torch.__version__)


def test_every_unit_and_every_tensor_of_every_cut_is_measured(program: Program, profile: Profile) -> None:
    graph = program.graph
    assert len(profile.unit_ms) == len(profile.unit_spread_ms) == len(graph.units)
    assert all(ms > 0 for ms in profile.unit_ms)
    assert profile.whole_ms > 0
    assert profile.digest == graph.digest
    for slot in {slot for cut in graph.cuts for slot in cut.live} | set(graph.outputs):
        assert set(profile.payloads[slot]) == set(Codec) - set(TRANSFORMS)
        assert all(cost.encode_ms > 0 and cost.decode_ms > 0 for cost in profile.payloads[slot].values())


def test_what_is_not_of_floats_costs_the_same_in_every_form(program: Program, profile: Profile) -> None:
    slot = program.graph.inputs[0]
    assert not program.graph.values[slot].dtype.is_float
    for codec, cost in profile.payloads[slot].items():
        assert cost == profile.payloads[slot][Codec.of(Form.EXACT, codec.stage)]
    assert len(set(profile.payloads[slot].values())) == 3


def test_payloads_are_what_the_wire_would_carry(
    program: Program, image: torch.Tensor, profile: Profile
) -> None:
    graph = program.graph
    state = program.start([image])
    for cut in graph.cuts:
        program.run(state, range(cut.index - 1, cut.index) if cut.index else range(0))
        for slot, tensor in zip(cut.live, program.live(state, cut), strict=True):
            for codec in (Codec.FLOAT32, Codec.UINT8_ZSTD):
                header, _ = encode(tensor, codec, slot)
                assert profile.payloads[slot][codec].payload_bytes == header.payload_bytes


def test_sizes_are_means_over_the_examples(program: Program, image: torch.Tensor) -> None:
    blank = torch.zeros_like(image)
    key, codec = key_of(program), Codec.FLOAT32_ZSTD
    one, other, both = (
        measure_profile(program, examples, key, repeats=3, codecs=[codec])
        for examples in ([[image]], [[blank]], [[image], [blank]])
    )
    slot = program.graph.inputs[0]
    sizes = [each.payloads[slot][codec].payload_bytes for each in (one, other, both)]
    assert sizes[1] < sizes[0]
    assert sizes[2] == (sizes[0] + sizes[1]) / 2


def test_progress_counts_every_step_once(program: Program, image: torch.Tensor) -> None:
    seen: list[tuple[int, int]] = []
    measure_profile(
        program,
        [[image], [image]],
        key_of(program),
        repeats=3,
        codecs=[Codec.FLOAT32],
        progress=lambda done, steps: seen.append((done, steps)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_times_are_those_of_the_clock_that_is_given(program: Program, image: torch.Tensor) -> None:
    ticks = 0.0

    def clock() -> float:
        nonlocal ticks
        ticks += 0.001
        return ticks

    profile = measure_profile(program, [[image]], key_of(program), repeats=3, clock=clock)
    assert profile.unit_ms == pytest.approx([1.0] * len(program.graph.units))
    assert profile.unit_spread_ms == pytest.approx([0.0] * len(program.graph.units), abs=1e-9)
    assert profile.whole_ms == pytest.approx(1.0)
    assert profile.payloads[program.graph.inputs[0]][Codec.UINT8].encode_ms == pytest.approx(1.0)


def test_a_measured_profile_makes_a_plan_that_moves_with_the_link(program: Program, profile: Profile) -> None:
    slow = Profile.from_json(profile.to_json()).stretched(1000.0)
    rows = build_rows(program.graph, slow, profile.unit_ms)
    at = Conditions(uplink_bps=1e6, rtt_ms=1.0)
    segments = uplink_segments(rows, at)
    places = [rows.cut_of(segment.row).index for segment in segments]
    assert rows.cut_of(segments[0].row) is program.graph.cuts[-1]
    assert len(set(places)) >= 2
    costs = latency_ms(rows, replace(at, uplink_bps=segments[-1].from_bps * 2))
    assert int(costs.argmin()) == segments[-1].row
