"""Attack: a message or a payload that ends early, at every offset of every frame."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.errors import ProtocolError
from shared.wire import WireLimits, decode_message
from tests.attacks.harness import Attack, joined, siege, try_all, vectors


def cut_messages(step: int) -> Iterator[bytes]:
    for frames in vectors().values():
        whole = [(index, size) for index, frame in enumerate(frames) for size in range(len(frame))]
        for index, size in whole[::step]:
            yield joined([*frames[:index], frames[index][:size], *frames[index + 1 :]])
        for count in range(len(frames)):
            yield joined(frames[:count])


def cut_payloads(step: int) -> Iterator[bytes]:
    for header, payload, _ in vectors(payloads=True).values():
        for size in range(0, len(payload), step):
            yield joined([header, payload[:size]])


ATTACKS = (
    Attack("messages cut short", "message", cut_messages),
    Attack("payloads cut short", "payload", cut_payloads),
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.target)
def test_no_cut_crashes_or_bloats_the_parser(attack: Attack) -> None:
    tried = try_all(attack, step=1 if attack.target == "message" else 2)
    assert tried.inputs > 400
    assert tried.peak_bytes < attack.bound_bytes


def test_no_message_that_is_cut_short_is_read_as_one() -> None:
    for frames in vectors().values():
        for index, frame in enumerate(frames):
            for size in range(len(frame)):
                with pytest.raises(ProtocolError):
                    decode_message([*frames[:index], frame[:size], *frames[index + 1 :]], WireLimits())


async def test_a_gateway_serves_on_among_them() -> None:
    halves = [[*frames[:-1], frames[-1][: len(frames[-1]) // 2]] for frames in vectors().values()]
    async with siege() as besieged:
        for at_replicas in (False, True):
            assert await besieged.throw(halves, at_replicas) == len(halves)
            await besieged.serves()
