"""The accuracy gate says what a lossy codec does to the answer, and survives being kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.codec import Codec, Form, decode, encode
from shared.graph.capture import capture
from shared.graph.run import load
from shared.plan.fidelity import agreement_of, measure_gate, missing
from shared.plan.gate import Fidelity, Gate, GateKey, load_gate, save_gate


class Classifier(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 5)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)) * self.scale)


class Mapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.conv(x))
        return y, y.mean(dim=(2, 3))


def _program(module: nn.Module, *args: torch.Tensor):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return load(capture(module.eval(), args, name="net"), mode="exact")


def _samples(count: int, *shape: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(1, *shape, generator=generator)] for _ in range(count)]


def _key(agreement: str = "top1") -> GateKey:
    return GateKey("sha256:0", "made for the test", agreement)  # type: ignore[arg-type]


def test_a_classifier_is_judged_by_its_class_and_others_by_direction() -> None:
    assert agreement_of(_program(Classifier(1.0), torch.zeros(1, 8)).graph) == "top1"
    assert agreement_of(_program(Mapper(), torch.zeros(1, 3, 8, 8)).graph) == "cosine"


def test_fidelity_falls_with_the_bits() -> None:
    program = _program(Classifier(1.0), torch.zeros(1, 8))
    steps: list[tuple[int, int]] = []
    gate = measure_gate(program, _samples(64, 8), _key(), progress=lambda *step: steps.append(step))
    live = program.graph.cuts[1].live
    half, eight, four = (gate.measured[live][form] for form in (Form.HALF, Form.UINT8, Form.INT4))
    assert half.error < 1e-3 < eight.error * 2 < four.error
    assert half.agreement >= eight.agreement >= four.agreement
    assert half.agreement == 1.0
    assert gate.samples == 64
    assert {total for _, total in steps} == {64 * 3 * len(gate.measured)}  # three forms, no sample left out
    assert steps[-1][0] == steps[-1][1]


def test_agreement_counts_the_samples_whose_class_changes() -> None:
    program = _program(Classifier(1.0), torch.zeros(1, 8))
    samples = _samples(40, 8)
    live = program.graph.cuts[0].live
    gate = measure_gate(program, samples, _key(), forms=[Form.INT4])
    changed = 0
    for (leaf,) in samples:
        low, high = min(0.0, float(leaf.min())), max(0.0, float(leaf.max()))
        assert low < high
        header, payload = encode(leaf, Codec.INT4, live[0])
        coarse = decode(header, payload, program.graph.live_specs(program.graph.cuts[0], 1)[0])
        changed += int(program([leaf])[0].argmax() != program([coarse])[0].argmax())
    assert changed > 0
    assert gate.measured[live][Form.INT4].agreement == pytest.approx(1 - changed / 40)


def test_several_outputs_are_as_alike_as_the_worst() -> None:
    program = _program(Mapper(), torch.zeros(1, 3, 8, 8))
    gate = measure_gate(program, _samples(4, 3, 8, 8), _key("cosine"))
    for forms in gate.measured.values():
        assert 0.99 < forms[Form.UINT8].agreement <= 1.0
        assert forms[Form.INT4].agreement < forms[Form.UINT8].agreement


def test_what_is_exact_or_sends_nothing_is_the_same() -> None:
    gate = Gate(_key(), 1, {(3,): {Form.UINT8: Fidelity(0.9, 0.1)}})
    assert gate.fidelity((3,), Codec.FLOAT32_ZSTD) == Fidelity(1.0, 0.0)
    assert gate.fidelity((), Codec.INT4) == Fidelity(1.0, 0.0)
    assert gate.fidelity((3,), Codec.UINT8_LZ4) == Fidelity(0.9, 0.1)
    assert gate.fidelity((3,), Codec.INT4) is None
    assert gate.fidelity((4,), Codec.UINT8) is None


def test_a_mix_is_as_bad_as_the_worst_form_in_it() -> None:
    forms = {Form.UINT8: Fidelity(0.9, 0.1), Form.HALF: Fidelity(0.95, 0.2)}
    gate = Gate(_key(), 1, {(3, 5): forms})
    assert gate.fidelity((3, 5), Codec.UINT8_LZ4, Codec.FLOAT16) == Fidelity(0.9, 0.2)
    assert gate.fidelity((3, 5), Codec.FLOAT32_LZ4, Codec.FLOAT16_ZSTD) == Fidelity(0.95, 0.2)
    assert gate.fidelity((3, 5), Codec.FLOAT32_LZ4, Codec.FLOAT32) == Fidelity(1.0, 0.0)
    assert gate.fidelity((3, 5), Codec.UINT8, Codec.INT4) is None


def test_a_kept_gate_is_the_same_gate(tmp_path: Path) -> None:
    judged = {Form.UINT8: Fidelity(0.9, 0.1, 0.8, 0.95, 16), Form.HALF: Fidelity(1.0, 0.0)}
    gate = Gate(_key(), 7, {(3, 5): judged})
    assert save_gate(tmp_path / "new", gate) is None
    assert load_gate(tmp_path / "new", gate.key) == (gate, None)
    assert load_gate(tmp_path, _key("cosine")) == (None, None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"format": 99}', '{"format": 1}', "null", "[" * 100_000],
)
def test_a_damaged_file_is_measured_again_and_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / _key().file_name).write_text(content)
    gate, warning = load_gate(tmp_path, _key())
    assert gate is None
    assert warning is not None
    assert _key().file_name in warning


def test_a_gate_of_something_else_is_not_used(tmp_path: Path) -> None:
    (tmp_path / _key().file_name).write_text(Gate(_key("cosine"), 1, {}).to_json())
    gate, warning = load_gate(tmp_path, _key())
    assert gate is None
    assert warning is not None
    assert "cosine" in warning


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    warning = save_gate(tmp_path / "file" / "cache", Gate(_key(), 1, {}))
    assert warning is not None
    assert warning.startswith("the accuracy gate is not kept: cannot write")


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)
        self.top = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = torch.tanh(self.left(x))
        return self.top(torch.cat([left, torch.tanh(self.right(x))], dim=1))


def test_a_cut_that_is_not_topological_has_the_fidelity_of_what_it_sends() -> None:
    program = _program(Towers(), torch.zeros(1, 8))
    graph, samples = program.graph, _samples(20, 8)
    names = [unit.name for unit in graph.units]
    right = [index for index, name in enumerate(names) if name.startswith("right")]
    wide = graph.set_cut(right)
    assert wide.index < 0
    gate = measure_gate(program, samples, _key(), cuts=[wide, *graph.cuts])
    state = program.start([torch.cat([sample[0] for sample in samples])])
    program.run(state, list(wide.edge_units))
    sent = []
    for tensor, spec in zip(program.live(state, wide), graph.live_specs(wide, 20), strict=True):
        header, payload = encode(tensor, Codec.INT4, 0)
        sent.append(decode(header, payload, spec))
    tail = program.resume(wide, sent, 20)
    program.run(tail, wide.cloud_units)
    (answer,) = program.outputs(tail).values()
    (whole,) = program([torch.cat([sample[0] for sample in samples])])
    same = float((answer.argmax(1) == whole.argmax(1)).double().mean())
    fidelity = gate.fidelity(wide.live, Codec.INT4)
    assert fidelity is not None
    assert fidelity.agreement == same
    assert 0 < fidelity.error == pytest.approx(float((answer - whole).abs().max() / whole.abs().max()))
    assert gate.measured.keys() > measure_gate(program, samples, _key(), cuts=[wide]).measured.keys()


def test_a_pair_is_judged_on_no_more_samples_than_it_takes() -> None:
    program = _program(Classifier(1.0), torch.zeros(1, 8))
    graph = program.graph
    taken = 0

    def samples() -> Iterator[list[torch.Tensor]]:
        nonlocal taken
        for sample in _samples(10_000, 8):
            taken += 1
            yield sample

    def judge(enough: float | None, known: Gate | None = None) -> dict[Form, Fidelity]:
        gate = measure_gate(
            program, samples(), _key(), cuts=graph.cuts[:1], enough=enough, most=64, known=known
        )
        return gate.measured[graph.cuts[0].live]

    easy = judge(0.5)
    assert taken == max(each.samples for each in easy.values()) < 64
    assert easy[Form.HALF].samples == 4
    strict = judge(0.98)
    assert strict[Form.HALF].shown >= 0.98
    assert strict[Form.HALF].samples < strict[Form.UINT8].samples
    for fidelity in strict.values():
        assert fidelity.shown <= fidelity.agreement <= fidelity.at_most
        assert fidelity.shown >= 0.98 or fidelity.samples == 64 or fidelity.is_decided("top1", 0.98, 64)
    assert {each.samples for each in judge(None).values()} == {64}

    wanted = missing(graph, graph.cuts[:1], [Form.HALF], Gate(_key(), 4, {graph.cuts[0].live: easy}), 0.9999)
    assert [forms for _, forms in wanted] == [[Form.HALF]]  # seen on four, and a stricter word is asked
    assert missing(graph, graph.cuts[:1], [Form.HALF], Gate(_key(), 4, {graph.cuts[0].live: easy}), 0.5) == []


class Overflowing(nn.Module):
    """Of numbers beyond 65,504, where half precision ends, and below which the logarithm has no value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.exp(self.first(x)) * 1e6 + 1e5 - 7e4)


def test_an_answer_that_is_no_number_keeps_no_class() -> None:
    program = _program(Overflowing(), torch.zeros(1, 8))
    graph = program.graph
    cut = graph.cuts[[unit.name for unit in graph.units].index("add") + 1]
    gate = measure_gate(program, _samples(8, 8), _key(), cuts=[cut], forms=[Form.HALF])
    half = gate.measured[cut.live][Form.HALF]
    assert half.shown == 0.0
    assert math.isfinite(half.error)


def test_without_a_sample_there_is_no_gate() -> None:
    program = _program(Classifier(1.0), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="no sample"):
        measure_gate(program, [], _key())


def test_what_is_known_is_not_measured_again() -> None:
    program = _program(Classifier(1.0), torch.zeros(1, 8))
    graph, samples = program.graph, _samples(4, 8)
    first = measure_gate(program, samples, _key(), forms=[Form.HALF], cuts=graph.cuts[:1])
    assert {form for forms in first.measured.values() for form in forms} == {Form.HALF}
    assert missing(graph, graph.cuts[:1], [Form.HALF], first, most=4) == []
    steps: list[tuple[int, int]] = []
    marked = Gate(first.key, 4, {live: {Form.HALF: Fidelity(0.5, 9.0)} for live in first.measured})
    whole = measure_gate(
        program,
        samples,
        _key(),
        known=marked,
        most=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    for live in first.measured:
        assert whole.measured[live][Form.HALF] == Fidelity(0.5, 9.0)
        assert set(whole.measured[live]) == {Form.HALF, Form.UINT8, Form.INT4}
    assert steps[-1] == (4 * (3 * len(whole.measured) - 1), 4 * (3 * len(whole.measured) - 1))
    none = measure_gate(
        program, samples, _key(), known=whole, most=4, progress=lambda done, total: steps.clear()
    )
    assert none == whole
    assert steps
