"""Calibration for real, with a very small sweep: a file that predicts networks that were never run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_agent.calibrate import calibration_key, kept_predictor, run_calibration
from shared import zoo
from shared.errors import StartupError
from shared.graph.capture import capture
from shared.plan.predict import predict_profile


@pytest.mark.slow
def test_a_calibrated_machine_predicts_a_network_that_it_never_ran(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    steps: list[tuple[int, int, str]] = []
    path = run_calibration(
        tmp_path / "cache", threads=1, progress=lambda *step: steps.append(step), share=0.01
    )
    assert torch.get_num_threads() == threads
    assert steps[0][0] == 0
    assert steps[-1] == (steps[0][1], steps[0][1], "")

    predictor, warning = kept_predictor(path.parent, "cpu", 1)
    assert warning is None
    assert predictor is not None
    assert (predictor.key.threads, predictor.key.torch_version) == (1, torch.__version__)
    assert kept_predictor(path.parent, "cpu", 3) == (None, None)

    small, large = (
        capture(network.module, network.args, name=network.name)
        for network in (zoo.build("mnist"), zoo.build("mobilenetv2"))
    )
    small_ms, large_ms = (predict_profile(captured.graph, predictor) for captured in (small, large))
    assert len(small_ms) == len(small.graph.units)
    assert all(ms > 0 for ms in (*small_ms, *large_ms))
    # 57 units and 0.6 GFLOP against 10 units and 0.8 MFLOP
    assert sum(large_ms) > sum(small_ms)


def test_a_calibration_that_cannot_be_kept_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared.plan import sweep
    from shared.plan.features import UnitFeatures
    from shared.plan.predict import Sample

    unit = UnitFeatures(0, "relu", "relu", "elementwise", 1.0, 4, 4, 0, 1, ())
    monkeypatch.setattr(sweep, "run_sweep", lambda *args, **kwargs: [Sample(unit, 1.0)])
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="set cache_dir to a directory"):
        run_calibration(tmp_path / "file")


def test_torchs_own_number_of_threads_is_part_of_the_key() -> None:
    assert calibration_key("cpu", None).threads == torch.get_num_threads()
    assert calibration_key("cpu", 1) != calibration_key("cuda:0", 1)
