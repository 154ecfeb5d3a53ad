from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.photos import load_photos
from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.paper_speech_text import WindowTagger

Build = Callable[[str], Network]


@pytest.mark.slow
def test_the_trained_network_recognises_the_photographs(network: Build) -> None:
    built = network("efficientnet-lite0")
    assert built.labels is not None
    seen = {}
    for photo in load_photos(224):
        with torch.inference_mode():
            seen[photo.name] = built.labels[int(built.module(torch.from_numpy(photo.image)).argmax())]
    assert seen["grace_hopper.jpg"] == "military uniform"
    assert seen["china.jpg"] == "palace"
    assert {seen[name] for name in seen if name.startswith("flower.jpg")} == {"daisy"}


def test_normalise_is_ordinary_arithmetic_on_the_bytes() -> None:
    image = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    layer = Normalise(mean=(127.0, 127.0, 0.0), std=(127.0, 1.0, 255.0))
    assert layer(image).flatten().tolist() == [-1.0, 0.0, 1.0]


def test_a_synthetic_photo_is_as_smooth_as_a_photograph() -> None:
    image = synthetic_photo(3, 224, 224, seed=5).float()
    neighbours = torch.corrcoef(torch.stack([image[..., 1:].flatten(), image[..., :-1].flatten()]))
    assert 0.9 < float(neighbours[0, 1]) < 0.999
    assert not torch.equal(image, synthetic_photo(3, 224, 224, seed=6).float())


def test_the_tagger_sees_two_words_to_either_side(network: Build) -> None:
    tagger = network("senna-pos").module
    assert isinstance(tagger, WindowTagger)
    (sentence,) = network("senna-pos").args
    changed = sentence.clone()
    changed[0, 10] += 1.0
    differs = (tagger(sentence) != tagger(changed)).any(dim=2)[0]
    assert differs.nonzero().flatten().tolist() == [8, 9, 10, 11, 12]
    padded = torch.cat([torch.zeros(1, 2, 60), sentence[:, :3]], dim=1).reshape(1, 300)
    alone = tagger.tags(torch.nn.functional.hardtanh(tagger.hidden(padded)))
    torch.testing.assert_close(tagger(sentence)[:, 0], alone)


def test_masked_tokens_do_not_reach_the_visible_ones(network: Build) -> None:
    built = network("bert-encoder")
    ids, mask = built.kwargs["input_ids"], built.kwargs["attention_mask"]
    other = torch.where(mask.bool(), ids, torch.full_like(ids, 777))
    with torch.inference_mode():
        first, second = built.module(ids, mask), built.module(other, mask)
    visible = mask.bool()
    torch.testing.assert_close(first["tokens"][visible], second["tokens"][visible])
    torch.testing.assert_close(first["sentence"], second["sentence"])
    assert not torch.allclose(first["tokens"][~visible], second["tokens"][~visible])
    torch.testing.assert_close(first["sentence"].norm(dim=1), torch.ones(1))
