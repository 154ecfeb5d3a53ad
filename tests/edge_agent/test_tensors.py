from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_agent.tensors import check_device, to_numpy, to_tensor
from shared.errors import StartupError


def test_inputs_of_any_memory_become_tensors_of_the_same_values() -> None:
    base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in (base, base.transpose(2, 0, 1), base[:, ::-1], frozen, np.float32(3.5), np.array([True])):
        assert np.array_equal(to_tensor(array, "cpu").numpy(), array)
    parameter = torch.nn.Parameter(torch.ones(2))
    assert not to_tensor(parameter, "cpu").requires_grad
    assert to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32


def test_a_device_that_is_not_there_is_refused_with_the_key_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(StartupError, match=r"device: cuda:0.*without CUDA.*SUTURE_DEVICE=cpu"):
        check_device("cuda:0")
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StartupError, match=r"no usable GPU.*SUTURE_DEVICE=cpu"):
        check_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(StartupError, match=r"finds 1 GPU.*SUTURE_DEVICE=cpu"):
        check_device("cuda:3")
    check_device("cuda")
