"""The speech and language networks of Neurosurgeon (Kang et al., ASPLOS 2017, table 3): ASR, POS, CHK, NER.

As in the Tonic suite that the paper runs (Hauswald et al., ISCA 2015), features are computed before the
network: filter banks spliced over 11 frames for speech, looked-up word features for text.  The tables
that the latter come from are therefore no part of these networks, and every parameter is counted.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.initialise import make

__all__ = ["AcousticModel", "WindowTagger", "kaldi", "senna_chk", "senna_ner", "senna_pos"]

_FRAMES = 100
_WORDS = 28
_WINDOW = 5


class AcousticModel(nn.Module):
    """Kaldi's hybrid DNN: six sigmoid layers of 2048 over 440 features a frame; 30,080,928 parameters.

    batch x frames x 440 in, one row of logits over the HMM states per frame out.  The number of states
    belongs to the corpus (Tonic's has 1,706, which makes 25 M); 4,000 gives the paper's 30 M.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = [440, *[2048] * 6]
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.states = nn.Linear(2048, 4000)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features
        for layer in self.hidden:
            x = torch.sigmoid(layer(x))
        logits: torch.Tensor = self.states(x)
        return logits


class WindowTagger(nn.Module):
    """SENNA's window approach (Collobert et al., JMLR 2011, section 3.2.1): one hidden layer, hard tanh.

    batch x words x ``features`` in, batch x words x ``tags`` logits out.  Each word is tagged from the
    features of the five words around it; beyond the sentence they are zero.
    """

    def __init__(self, features: int, hidden: int, tags: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(_WINDOW * features, hidden)
        self.tags = nn.Linear(hidden, tags)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        reach = _WINDOW // 2
        padded = nn.functional.pad(words, (0, 0, reach, reach))
        length = words.shape[1]
        windows = torch.cat([padded[:, start : start + length] for start in range(_WINDOW)], dim=2)
        logits: torch.Tensor = self.tags(nn.functional.hardtanh(self.hidden(windows)))
        return logits


def kaldi() -> Network:
    """One second of speech, 100 frames.  (A query of Tonic's is 548 frames.)"""
    # Sigmoids of pre-activations with a deviation of 2 have a variance of about 0.1.
    module = make(AcousticModel, seed=5, gain=40.0)
    generator = torch.Generator().manual_seed(5)
    frames = _smooth(torch.randn(_FRAMES + 10, 40, generator=generator))
    spliced = torch.cat([frames[start : start + _FRAMES] for start in range(11)], dim=1)
    return Network("kaldi", module, (spliced.unsqueeze(0),), input_form="audio")


# The released taggers have 300 hidden units and 104 to 118 K parameters; the paper counts 180 K for
# each.  Features and tags are the released ones, and the hidden layer is widened to the paper's count.


def senna_pos() -> Network:
    """Part of speech: 179,965 parameters.  50 features of the word, 5 of its case, 5 of its suffix."""
    return _tagger("senna-pos", features=60, hidden=520, tags=45, seed=6)


def senna_chk() -> Network:
    """Chunks: 180,117 parameters.  50 features of the word, 5 of its case, 5 of its part of speech."""
    return _tagger("senna-chk", features=60, hidden=525, tags=42, seed=7)


def senna_ner() -> Network:
    """Named entities: 180,011 parameters.  50 features of the word, 5 of its case, 4 x 5 of gazetteers."""
    return _tagger("senna-ner", features=75, hidden=458, tags=17, seed=8)


def _tagger(name: str, features: int, hidden: int, tags: int, seed: int) -> Network:
    module = make(lambda: WindowTagger(features, hidden, tags), seed=seed, gain=1.0, centred=False)
    generator = torch.Generator().manual_seed(seed)
    sentence = torch.randn(1, _WORDS, features, generator=generator)
    return Network(name, module, (sentence,))


def _smooth(frames: torch.Tensor) -> torch.Tensor:
    """Neighbouring frames of speech overlap, and so resemble each other."""
    padded = nn.functional.pad(frames.T.unsqueeze(0), (2, 2), mode="replicate")
    return nn.functional.avg_pool1d(padded, 5, stride=1)[0].T * 5**0.5
