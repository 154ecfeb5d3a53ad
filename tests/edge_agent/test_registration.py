"""What is measured before the first request, what is kept of it, and what plans make of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_cluster.in_process import InProcessCloud
from edge_agent import EdgeAgent
from edge_agent.judging import lossy_forms
from shared.codec import Codec, Form
from shared.errors import ConfigError
from shared.plan.constraints import Constraints
from shared.plan.gate import Gate
from tests.edge_agent import edge_networks as networks
from tests.edge_agent.agents import NOWHERE, agent_config, cloud_config, model
from tests.edge_agent.fake_gateway import eventually

IMAGE = networks.BATCH_ONE.numpy()


class Steps:
    """Keeps which slow steps were reported, and that each came to its end."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, int]] = {}

    def __call__(self, model: str, step: str, done: int, total: int) -> None:
        self.last[step] = (done, total)


def gates_in(cache_dir: Path) -> list[Gate]:
    return [Gate.from_json(path.read_bytes()) for path in cache_dir.glob("gate-*.json")]


async def test_a_second_start_measures_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos", cut=3, calibration={"samples": 3}))
    for expected in ({"capture", "profile", "accuracy"}, {"capture"}):
        steps = Steps()
        caplog.clear()
        async with EdgeAgent.from_config(config, progress=steps) as agent:
            assert steps.last.keys() == expected
            assert all(done == total > 0 for step, (done, total) in steps.last.items() if step != "capture")
            decision = agent.decision("photos")
            assert (decision.calibration, decision.as_dict()["calibration"]) == ("synthetic", "synthetic")
        said = [each for each in caplog.records if "calibration: synthetic" in each.getMessage()]
        assert len(said) == 1
        assert said[0].levelno == logging.WARNING
    (gate,) = gates_in(tmp_path)
    assert gate.samples > 3  # more were made up, for pairs of which three say too little
    assert gate.key.calibration.startswith("synthetic 3 ")


async def test_inputs_of_the_application_are_what_is_measured_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "inputs").mkdir()
    for index in range(2):
        np.save(tmp_path / "inputs" / f"{index}.npy", np.full((16, 16, 3), 40 * index, np.uint8))
    typical = {"folder": str(tmp_path / "inputs")}
    config = agent_config(tmp_path, NOWHERE, model("photos", cut=3, calibration=typical))
    async with EdgeAgent.from_config(config) as agent:
        assert agent.decision("photos").calibration == "folder"
    assert "synthetic" not in caplog.text
    assert [(gate.samples, gate.key.calibration.split()[0]) for gate in gates_in(tmp_path)] == [(2, "folder")]


async def test_a_lossy_pair_is_a_candidate_only_where_it_was_shown_to_keep_the_answer(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"calibration": {"samples": 20}, "min_agreement": 0.98}
    async with InProcessCloud(cloud_config(tmp_path, model("calls"))) as cloud:
        config = agent_config(tmp_path, cloud.device_endpoint, model("calls", **settings))
        async with EdgeAgent.from_config(config) as agent:
            await eventually(lambda: "not judged yet" not in agent.explain("calls").exclusions)
            explanation = agent.explain("calls")
            candidates = explanation.candidates
            shown = {
                (each.cut_name, each.codec): each.agreement_shown
                for each in candidates
                if each.codec in ("float16", "uint8", "int4")
            }
            assert len(shown) > 6
            assert {agreement < 0.98 for agreement in shown.values() if agreement} == {True, False}
            for each in candidates:
                if each.codec:
                    assert each.agreement is not None
                    assert each.agreement_shown is not None
                    assert each.agreement_shown <= each.agreement
                    assert each.excluded.startswith("min_agreement") == (each.agreement_shown < 0.98)
                    assert (each.inputs is None) == (each.codec.startswith("float32"))
            assert any(
                each.excluded.startswith("min_agreement: 1.000 on ") for each in candidates
            )  # seen to agree, and not shown to
            rows = agent.decision("calls").rows
            used = {(rows.cut_of(row).name, rows.label_of(row)) for row in range(len(rows))}
            assert used & shown.keys() == {
                pair for pair, agreement in shown.items() if (agreement or 0) >= 0.98
            }
            told = explanation.as_dict()
            assert len(told["candidates"]) == len(candidates)
            assert told["candidates"][told["winner"]]["excluded"] == ""


def test_only_forms_that_may_be_used_are_judged() -> None:
    assert lossy_forms(Constraints()) == tuple(form for form in Form if form is not Form.EXACT)
    assert lossy_forms(Constraints(codecs=(Codec.FLOAT32_ZSTD, Codec.UINT8, Codec.UINT8_LZ4))) == (
        Form.UINT8,
    )
    assert lossy_forms(Constraints(codecs=(Codec.FLOAT32,))) == ()


@pytest.mark.parametrize(("codecs", "forms"), [(["float32", "uint8"], {Form.UINT8}), (["float32+lz4"], None)])
async def test_the_gate_costs_nothing_that_is_not_needed(
    tmp_path: Path, codecs: list[str], forms: set[Form] | None
) -> None:
    steps = Steps()
    photos = model("photos", cut=3, codecs=codecs, calibration={"samples": 2})
    config = agent_config(tmp_path, NOWHERE, photos)
    async with EdgeAgent.from_config(config, progress=steps):
        assert ("accuracy" in steps.last) == (forms is not None)
    found = [set(measured) for gate in gates_in(tmp_path) for measured in gate.measured.values()]
    assert all(each == forms for each in found)
    assert bool(found) == (forms is not None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"cut": 99}, "model photos: cut 99 is pinned, but photos has cuts 0 to"),
        ({"cut": 0, "input_never_leaves": True}, "model photos: cut 0 .* input_never_leaves forbids it"),
        ({"input_never_leaves": "nothing"}, "model photos: input_never_leaves names 'nothing'"),
        (
            {"cut": 1, "max_uplink_bytes": 1},
            "model photos: cut 1 .* max_uplink_bytes 1; the nearest",
        ),
        ({"calibration": {"folder": "/nowhere"}}, "calibration folder /nowhere of photos is not a directory"),
    ],
)
async def test_what_cannot_be_planned_is_said_at_the_start(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    config = agent_config(tmp_path, NOWHERE, model("photos", **({"calibration": {"samples": 1}} | values)))
    with pytest.raises(ConfigError, match=said):
        async with EdgeAgent.from_config(config):
            pass
