"""Networks by name: those of the Neurosurgeon paper, common later ones, and one with trained weights.

Importing this package costs no torch; :func:`build` does.  Weights are seeded and the same bit for bit
on every machine (:mod:`shared.zoo.initialise`), so a device and a cloud that build the same name agree
on its digest without shipping anything.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import UnknownModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["InputForm", "Network", "build", "names", "unknown_name"]

InputForm = Literal["image", "audio", "tokens", "tensor"]


@dataclass(frozen=True, slots=True)
class Network:
    """A network in eval mode and one realistic input.

    ``args`` and ``kwargs`` are a call at batch 1; dimension 0 of every tensor in them is the batch.
    Image networks take uint8 images, batch x channels x height x width, values 0 to 255, and normalise
    in the graph.  Outputs are logits unless the network's own docstring says otherwise.  ``labels``
    names the classes, and is given only where the weights are trained: names on random weights would
    mislead.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    input_form: InputForm = "tensor"


_BUILDERS = {
    "alexnet": "paper_vision:alexnet",
    "vgg19": "paper_vision:vgg19",
    "deepface": "paper_vision:deepface",
    "mnist": "paper_vision:mnist",
    "kaldi": "paper_speech_text:kaldi",
    "senna-pos": "paper_speech_text:senna_pos",
    "senna-chk": "paper_speech_text:senna_chk",
    "senna-ner": "paper_speech_text:senna_ner",
    "resnet50": "residual:resnet50",
    "mobilenetv2": "mobile:mobilenetv2",
    "efficientnet-lite0": "mobile:efficientnet_lite0",
    "googlenet": "inception:googlenet",
    "vit-tiny": "attention:vit_tiny",
    "bert-encoder": "attention:bert_encoder",
    "unet": "segmentation:unet",
}


def names() -> tuple[str, ...]:
    """All names that :func:`build` takes."""
    return tuple(_BUILDERS)


def build(name: str) -> Network:
    """Build a network, some seconds for the largest; the global random state is left as it was.

    Raises UnknownModelError with the nearest names, and ConfigError where the trained weights are not
    installed.
    """
    try:
        module_name, _, function = _BUILDERS[name].partition(":")
    except KeyError:
        raise unknown_name(name) from None
    network: Network = getattr(importlib.import_module(f"{__name__}.{module_name}"), function)()
    return network


def unknown_name(name: str) -> UnknownModelError:
    """The error for a name that is not in the zoo, with the names that come near it."""
    import difflib

    near = difflib.get_close_matches(name, _BUILDERS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(_BUILDERS)}"
    return UnknownModelError(f"no network named {name!r} in the zoo; {hint}")
