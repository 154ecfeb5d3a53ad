"""Attack: golden vectors with any one bit turned over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.attacks.harness import MIB, Attack, joined, siege, try_all, vectors


def flipped(frames: list[bytes], index: int, bit: int) -> list[bytes]:
    damaged = bytearray(frames[index])
    damaged[bit // 8] ^= 1 << bit % 8
    return [*frames[:index], bytes(damaged), *frames[index + 1 :]]


def flipped_messages(step: int) -> Iterator[bytes]:
    for frames in vectors().values():
        bits = [(index, bit) for index, frame in enumerate(frames) for bit in range(8 * len(frame))]
        for index, bit in bits[::step]:
            yield joined(flipped(frames, index, bit))


def flipped_payloads(step: int) -> Iterator[bytes]:
    for header, payload, _ in vectors(payloads=True).values():
        frames = [header, payload]
        bits = [(index, bit) for index, frame in enumerate(frames) for bit in range(8 * len(frame))]
        for index, bit in bits[::step]:
            yield joined(flipped(frames, index, bit))


ATTACKS = (
    Attack("bits of messages", "message", flipped_messages),
    # A flipped dimension may make a tensor of 2**16 elements, which is then decoded and thrown away.
    Attack("bits of payloads", "payload", flipped_payloads, 2 * MIB),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.target)
def test_no_bit_crashes_or_bloats_the_parser(attack: Attack) -> None:
    tried = try_all(attack, step=11)
    assert tried.inputs > 2000
    assert tried.peak_bytes < attack.bound_bytes


async def test_a_gateway_serves_on_among_them() -> None:
    async with siege() as besieged:
        for at_replicas in (False, True):
            frames = vectors()["replica-hello.v1.bin" if at_replicas else "hello.v1.bin"]
            bits = [(index, bit) for index, frame in enumerate(frames) for bit in range(0, 8 * len(frame), 7)]
            thrown = await besieged.throw((flipped(frames, *place) for place in bits), at_replicas)
            assert thrown > 50
            await besieged.serves()
