"""Attack: messages of 0 to 64 frames, and of more than there may be, whatever frame 0 counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.errors import LimitError, ProtocolError
from shared.wire import Frame0, MessageType, WireLimits, decode_message
from tests.attacks.harness import Attack, joined, siege, try_all, vectors


def counted(step: int) -> Iterator[bytes]:
    seen = {frames[0][4]: frames for frames in vectors().values() if len(frames) > 1}
    for frames in list(seen.values())[::step]:
        kind = MessageType(frames[0][4])
        for count in range(65):
            body = [frames[1], *[b"x" * size for size in range(count)]]
            for claimed in (0, count, count - 1, 64, 255):
                if claimed >= 0:
                    yield joined([Frame0(kind, tensor_count=claimed).pack(), *body][: count + 1])
        yield joined([frames[0], frames[1], *[b""] * 300])


ATTACK = Attack("frames that are not counted", "message", counted)
ATTACKS = (ATTACK,)


def test_no_number_of_frames_crashes_or_bloats_the_parser() -> None:
    tried = try_all(ATTACK)
    assert tried.inputs > 3000
    assert tried.peak_bytes < ATTACK.bound_bytes


def test_only_the_right_number_is_read() -> None:
    for name, frames in vectors().items():
        for count in range(65):
            if count == len(frames):
                continue
            others = [*frames, *[b""] * 64][:count]
            with pytest.raises(ProtocolError):
                decode_message(others, WireLimits())
        with pytest.raises((LimitError, ProtocolError)):
            decode_message([*frames, *[b""] * (258 - len(frames))], WireLimits())
        assert decode_message(frames, WireLimits()).frame0.tensor_count == len(frames[2:]), name


async def test_a_gateway_serves_on_among_them() -> None:
    frame0 = Frame0(MessageType.INFER, 9, tensor_count=2).pack()
    async with siege() as besieged:
        for at_replicas in (False, True):
            messages = [[frame0, *[b""] * count][: count or 1] for count in (*range(65), 256, 258, 5000)]
            assert await besieged.throw(messages, at_replicas) == 68
            await besieged.serves()
