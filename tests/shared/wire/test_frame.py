import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError, VersionError
from shared.wire.frame import (
    FRAME0_BYTES,
    NO_BUDGET,
    SUPPORTED_VERSIONS,
    Frame0,
    budget_from_ms,
    peek,
    restamp,
)
from shared.wire.messages import MessageType

frames = st.builds(
    Frame0,
    type=st.sampled_from(MessageType),
    request_id=st.integers(0, 2**64 - 1),
    model=st.integers(0, 2**16 - 1),
    cut=st.integers(0, 2**16 - 1),
    codec=st.integers(0, 255),
    budget_ms=st.integers(0, 2**32 - 1),
    tensor_count=st.integers(0, 255),
)


@given(frames)
def test_packing_and_unpacking_are_inverse(frame0):
    data = frame0.pack()
    assert len(data) == FRAME0_BYTES == 24
    assert Frame0.unpack(data) == frame0
    assert Frame0.unpack(memoryview(data)) == frame0


def test_every_field_has_its_place():
    frame0 = Frame0(
        MessageType.INFER,
        request_id=0x1122334455667788,
        model=0x99AA,
        cut=0xBBCC,
        codec=0xDD,
        budget_ms=0x01020304,
        tensor_count=0xEE,
    )
    assert frame0.pack().hex(" ") == (
        "53 55 54 01 04 00 dd ee 88 77 66 55 44 33 22 11 04 03 02 01 aa 99 cc bb"
    )


@pytest.mark.parametrize(
    "field", [{"request_id": 2**64}, {"model": 2**16}, {"cut": -1}, {"codec": 256}, {"tensor_count": 256}]
)
def test_a_field_too_large_is_refused_by_the_sender(field):
    with pytest.raises(ValueError, match="does not fit frame 0"):
        Frame0(MessageType.INFER, **field).pack()


@pytest.mark.parametrize("size", [*range(24), 25, 1000])
def test_only_24_bytes_are_a_frame_0(size):
    data = (Frame0(MessageType.PING).pack() * 50)[:size]
    with pytest.raises(ProtocolError):
        Frame0.unpack(data)


def test_another_magic_is_no_message_at_all():
    data = b"GET / HTTP/1.1\r\nHost: a\r\n"[:24]
    assert peek(data) is None
    with pytest.raises(ProtocolError, match="do not start as a Suture message"):
        Frame0.unpack(data)


@pytest.mark.parametrize("extra", [b"", b"of a longer frame in a later version"])
def test_an_unknown_version_says_what_is_supported_and_whom_to_answer(extra):
    data = bytearray(Frame0(MessageType.INFER, request_id=77).pack() + extra)
    data[3] = 9
    with pytest.raises(VersionError, match="version 9 is not spoken here; versions 1 to 1") as caught:
        Frame0.unpack(data)
    assert caught.value.supported == SUPPORTED_VERSIONS == (1, 1)
    assert caught.value.request_id == 77


def test_version_0_is_unknown_too():
    data = bytearray(Frame0(MessageType.INFER).pack())
    data[3] = 0
    with pytest.raises(VersionError):
        Frame0.unpack(data)


@pytest.mark.parametrize("bit", range(8))
def test_undefined_flags_are_refused(bit):
    data = bytearray(Frame0(MessageType.INFER).pack())
    data[5] = 1 << bit
    with pytest.raises(ProtocolError, match=f"undefined flags {1 << bit:#04x}"):
        Frame0.unpack(data)


@pytest.mark.parametrize("kind", [0, 18, 255])
def test_unknown_message_types_are_refused(kind):
    data = bytearray(Frame0(MessageType.INFER).pack())
    data[4] = kind
    with pytest.raises(ProtocolError, match=f"message type {kind} "):
        Frame0.unpack(data)


@given(st.binary(max_size=40))
def test_peek_never_raises(data):
    seen = peek(data)
    assert (seen is None) == (len(data) < 16 or data[:3] != b"SUT")


def test_peek_reads_the_id_of_a_message_that_cannot_be_parsed():
    data = bytearray(Frame0(MessageType.INFER, request_id=5).pack())
    data[3], data[4], data[5] = 200, 201, 202
    assert peek(data[:16]) == (200, 201, 5)


@given(frames, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
def test_restamping_changes_what_was_named_and_nothing_else(frame0, request_id, budget_ms, model):
    data = frame0.pack()
    assert restamp(data) == data
    assert Frame0.unpack(restamp(memoryview(data), request_id=request_id, budget_ms=budget_ms)) == Frame0(
        frame0.type,
        request_id,
        frame0.model,
        frame0.cut,
        frame0.codec,
        budget_ms,
        frame0.tensor_count,
    )
    assert Frame0.unpack(restamp(data, model=model)).model == model


def test_restamping_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="23 bytes"):
        restamp(bytes(23), request_id=1)
    with pytest.raises(ValueError, match="does not fit"):
        restamp(Frame0(MessageType.INFER).pack(), request_id=-1)


def test_budgets_are_whole_milliseconds_rounded_down():
    assert budget_from_ms(None) == NO_BUDGET
    assert budget_from_ms(12.9) == 12
    assert budget_from_ms(0.9) == 0
    assert budget_from_ms(-5.0) == 0
    assert budget_from_ms(1e300) == budget_from_ms(float("inf")) == NO_BUDGET - 1
