"""Tables for every tensor that a cut sends; measured and judged on inputs that they were not fitted to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch
from torch import nn

from shared.calibration import fingerprint
from shared.codec import TRANSFORMS, Codec, Form
from shared.codec.network_tables import NetworkTables
from shared.graph import CapturedModel, Program, load
from shared.graph.capture import capture
from shared.plan.fidelity import measure_gate, missing
from shared.plan.fitting import fitting_steps
from shared.plan.gate import GateKey
from shared.plan.measure import measure_profile
from shared.plan.profile import Profile, ProfileKey
from shared.plan.steps import finish
from shared.zoo.image_input import synthetic_photo

FITTED = [[synthetic_photo(3, 24, 24, seed)] for seed in range(10)]
UNSEEN = [[synthetic_photo(3, 24, 24, 100 + seed)] for seed in range(4)]
KEY = GateKey("sha256:0", "made for the test", "cosine")
LADDER = [codec.form for codec in TRANSFORMS[::3]]
MENU = (Codec.FLOAT32_ZSTD, TRANSFORMS[0], TRANSFORMS[-1])


class Branches(nn.Module):
    """Two tensors across some cuts; an index that no codec rewrites across the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.stem(image.float()))
        both = x + torch.tanh(self.left(x))
        features = nn.functional.avg_pool2d(both, 4).flatten(1)
        return self.head(features), features.argmax(1)


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    network = Branches().eval()
    with torch.no_grad():
        network.stem.weight /= 64
    return capture(network, (torch.cat([FITTED[0][0], FITTED[1][0]]),), name="branches")


@pytest.fixture(scope="module")
def program(captured: CapturedModel) -> Program:
    return load(captured)


@pytest.fixture(scope="module")
def tables(captured: CapturedModel, program: Program) -> NetworkTables:
    said: list[tuple[int, int]] = []
    fitted = finish(fitting_steps(captured, program, FITTED), lambda done, total: said.append((done, total)))
    assert said == [(done, len(said)) for done in range(1, len(said) + 1)]
    return fitted


def floats_of(program: Program, live: Sequence[int]) -> set[int]:
    return {slot for slot in live if program.graph.values[slot].dtype.is_float}


def test_every_float_tensor_that_is_sent_has_tables_that_fit(program: Program, tables: NetworkTables) -> None:
    graph = program.graph
    sent = {slot for cut in graph.cuts if cut.cloud_units for slot in floats_of(program, cut.live)}
    assert tables.by_slot.keys() == sent
    tables.check(graph.digest, {slot: value.at(1) for slot, value in graph.values.items()})
    assert tables.fitted_to == {fingerprint(sample) for sample in FITTED}
    assert NetworkTables.from_bytes(tables.to_bytes()).digest == tables.digest


def test_fewer_than_two_samples_are_refused(captured: CapturedModel, program: Program) -> None:
    with pytest.raises(ValueError, match="at least two"):
        finish(fitting_steps(captured, program, FITTED[:1]))


def test_bytes_and_times_are_measured_on_what_was_not_fitted_to(
    program: Program, tables: NetworkTables
) -> None:
    key = ProfileKey(program.graph.digest, "cpu", 1, torch.__version__)
    samples = [*FITTED[:2], *UNSEEN[:2]]

    def measured(samples: Sequence[Sequence[torch.Tensor]], fitted: Collection[int] = ()) -> Profile:
        return measure_profile(
            program, samples, key, repeats=3, codecs=MENU, tables=tables.by_slot, fitted=fitted
        )

    profile, alone = measured(samples, {0, 1}), measured(UNSEEN[:2])
    for slot in tables.by_slot:
        costs = [profile.payloads[slot][codec] for codec in MENU[1:]]
        assert [cost.payload_bytes for cost in costs] == [
            alone.payloads[slot][codec].payload_bytes for codec in MENU[1:]
        ]
        assert all(cost.encode_ms > 0 and cost.decode_ms > 0 for cost in costs)
        assert costs[0].payload_bytes > costs[-1].payload_bytes
    image = profile.payloads[program.graph.inputs[0]]
    assert image[Codec.TRANSFORM_1] == image[Codec.FLOAT32_ZSTD]
    none = measured(FITTED[:2], {0, 1})
    assert not any(set(TRANSFORMS) & none.payloads[slot].keys() for slot in tables.by_slot)


def test_the_gate_judges_the_ladder_where_all_that_crosses_has_tables(
    program: Program, tables: NetworkTables
) -> None:
    graph = program.graph
    gate = measure_gate(program, UNSEEN, KEY, forms=LADDER, tables=tables.by_slot)
    for cut in graph.cuts:
        if not cut.cloud_units or not floats_of(program, cut.live):
            assert cut.live not in gate.measured
            continue
        judged = gate.measured[cut.live]
        assert set(judged) == set(LADDER)
        assert judged[LADDER[0]].agreement > 0.999
        assert judged[LADDER[0]].error < judged[LADDER[-1]].error
    some = dict(tables.by_slot)
    lacking = some.popitem()[0]
    wanted = missing(graph, graph.cuts, [Form.UINT8, *LADDER], None, coded=some)
    assert {(cut.live, len(forms)) for cut, forms in wanted} == {
        (cut.live, 1 if lacking in cut.live else 1 + len(LADDER))
        for cut in graph.cuts
        if floats_of(program, cut.live)
    }
    assert measure_gate(program, UNSEEN, KEY, forms=LADDER).measured == {}
