"""Transformers: an image classifier and a text encoder."""

from __future__ import annotations

import torch
from torch import nn

from shared.zoo import Network
from shared.zoo.image_input import Normalise, synthetic_photo
from shared.zoo.initialise import make

__all__ = ["SelfAttention", "TextEncoder", "VitTiny", "bert_encoder", "vit_tiny"]

_TOKENS = 128


class SelfAttention(nn.Module):
    """Multi-head self-attention over batch x tokens x ``width``.

    ``visible``, batch x 1 x 1 x tokens and bool, marks the tokens that may be attended to.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        batch, tokens, width = x.shape
        split = self.query_key_value(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return result


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class _PreNormBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = _feed_forward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        result: torch.Tensor = x + self.feed_forward(self.norm2(x))
        return result


class VitTiny(nn.Module):
    """Dosovitskiy et al., ICLR 2021, in the tiny size of DeiT (Touvron et al., ICML 2021).

    224 x 224 RGB in, 1000 logits out; patches of 16, 12 blocks, width 192, 3 heads; 5,717,416
    parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 192
        self.normalise = Normalise()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 14 * 14 + 1, width))
        self.blocks = nn.Sequential(*[_PreNormBlock(width, heads=3) for _ in range(12)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.classifier = nn.Linear(width, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patches(self.normalise(image)).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(image.shape[0], -1, -1)
        x = self.blocks(torch.cat([class_token, patches], dim=1) + self.positions)
        logits: torch.Tensor = self.classifier(self.norm(x)[:, 0])
        return logits


class _PostNormBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.feed_forward = _feed_forward(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, visible))
        result: torch.Tensor = self.norm2(x + self.feed_forward(x))
        return result


class TextEncoder(nn.Module):
    """A BERT encoder (Devlin et al., NAACL 2019) of 6 layers, width 384, 12 heads; 22.6 M parameters.

    ``input_ids`` and ``attention_mask``, batch x tokens and int64, in; a dict out: ``tokens``, batch x
    tokens x 384, and ``sentence``, their mean over the visible tokens scaled to length 1, batch x 384.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 384
        self.words = nn.Embedding(30_522, width)
        self.positions = nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(_PostNormBlock(width, heads=12) for _ in range(6))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.words(input_ids) + self.positions.weight[: input_ids.shape[1]])
        visible = attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, visible)
        weights = attention_mask.to(x.dtype).unsqueeze(2)
        mean = (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return {"tokens": x, "sentence": nn.functional.normalize(mean, dim=1)}


def vit_tiny() -> Network:
    module = make(VitTiny, seed=13, gain=1.0, centred=False)
    return Network("vit-tiny", module, (synthetic_photo(3, 224, 224, seed=13),), input_form="image")


def bert_encoder() -> Network:
    """128 tokens, of which a sentence of 90 between [CLS] and [SEP] is visible."""
    module = make(TextEncoder, seed=14, gain=1.0, centred=False)
    generator = torch.Generator().manual_seed(14)
    input_ids = torch.zeros(1, _TOKENS, dtype=torch.int64)
    input_ids[0, 1:91] = torch.randint(1000, 30_522, (90,), generator=generator)
    input_ids[0, 0], input_ids[0, 91] = 101, 102
    attention_mask = (input_ids != 0).to(torch.int64)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return Network("bert-encoder", module, (), inputs, input_form="tokens")
