"""The vision networks of Neurosurgeon (Kang et al., ASPLOS 2017, table 3): IMC, FACE, DIG and VGG.

Layer orders follow the Tonic suite that the paper runs (Hauswald et al., ISCA 2015), without its
closing softmax and argmax, which no cut would ever separate from the last layer.
"""

from __future__ import annotations

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make
from shared.zoo.locally_connected import LocallyConnected2d

__all__ = ["AlexNet", "DeepFace", "LeNet5", "Vgg19", "alexnet", "deepface", "mnist", "vgg19"]


class AlexNet(nn.Module):
    """Krizhevsky et al., NIPS 2012, with its two groups: 60,965,224 parameters.

    227 x 227 RGB in, 1000 logits out.  Pooling comes before normalisation, as in CaffeNet.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(5),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(5),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = _fully_connected(256 * 6 * 6)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(self.normalise(image)).flatten(1))
        return logits


class Vgg19(nn.Module):
    """Simonyan and Zisserman, ICLR 2015, configuration E: 143,667,240 parameters.

    224 x 224 RGB in, 1000 logits out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        layers: list[nn.Module] = []
        channels = 3
        for width, depth in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = _fully_connected(512 * 7 * 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(self.normalise(image)).flatten(1))
        return logits


class DeepFace(nn.Module):
    """Taigman et al., CVPR 2014: C1, M2, C3, L4, L5, L6, F7, F8; 118.9 M parameters.

    152 x 152 RGB in, logits over the 4,030 identities of its training set out.  L4 to L6 are locally
    connected without shared weights, which is where 73 M of the parameters are.  (Tonic's copy was
    trained on 1,710 identities and has 109 M; the paper counts 120 M.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.c1 = nn.Conv2d(3, 32, 11)
        self.m2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.c3 = nn.Conv2d(32, 16, 9)
        self.l4 = LocallyConnected2d(16, 16, size=63, kernel=9)
        self.l5 = LocallyConnected2d(16, 16, size=55, kernel=7, stride=2)
        self.l6 = LocallyConnected2d(16, 16, size=25, kernel=5)
        self.f7 = nn.Linear(16 * 21 * 21, 4096)
        self.f8 = nn.Linear(4096, 4030)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.m2(torch.relu(self.c1(self.normalise(image))))
        x = torch.relu(self.c3(x))
        x = torch.relu(self.l4(x))
        x = torch.relu(self.l5(x))
        x = torch.relu(self.l6(x))
        logits: torch.Tensor = self.f8(torch.relu(self.f7(x.flatten(1))))
        return logits


class LeNet5(nn.Module):
    """LeCun et al., Proc. IEEE 1998, with full connections in C3 and ReLU: 61,706 parameters.

    28 x 28 grey in, 10 logits out.  The paper counts 60 K for its MNIST network.  Caffe's example of
    the same name, which is what Tonic ships, is another network of 431 K and is not this one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise(mean=(33.3,), std=(78.6,))
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(self.normalise(image)).flatten(1))
        return logits


def _fully_connected(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)
    )


def alexnet() -> Network:
    return _image_network("alexnet", make(AlexNet, seed=1), channels=3, side=227)


def vgg19() -> Network:
    return _image_network("vgg19", make(Vgg19, seed=2), channels=3, side=224)


def deepface() -> Network:
    return _image_network("deepface", make(DeepFace, seed=3), channels=3, side=152)


def mnist() -> Network:
    return _image_network("mnist", make(LeNet5, seed=4), channels=1, side=28)


def _image_network(name: str, module: nn.Module, channels: int, side: int) -> Network:
    image = synthetic_photo(channels, side, side, seed=len(name))
    return Network(name, module, (image,), input_form="image")
