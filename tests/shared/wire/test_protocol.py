import copy
import math

import msgspec
import pytest

from shared.errors import (
    InternalError,
    LimitError,
    OverloadedError,
    ProtocolError,
    UnknownModelError,
    VersionError,
)
from shared.wire import (
    NO_BUDGET,
    SET_CUT,
    Frame0,
    MessageType,
    WireLimits,
    decode_message,
    encode_message,
    error_from_reply,
    error_reply,
)
from shared.wire.messages import (
    Announce,
    Card,
    Credit,
    ErrorReply,
    Goodbye,
    Hello,
    Infer,
    Limits,
    LoadReport,
    LocalInfer,
    LocalResult,
    ModelCard,
    ModelLoad,
    Ping,
    Pong,
    Result,
    TailTimings,
    TensorHeader,
)

LIMITS = WireLimits()


def tensor(slot=3, shape=(2, 3), payload_bytes=24, **changed):
    fields = {"dtype": 1, "codec": 0x10, "order": list(range(len(shape)))} | changed
    return TensorHeader(slot=slot, shape=list(shape), payload_bytes=payload_bytes, **fields)


def infer(*tensors, **changed):
    return Infer(tensors=list(tensors), **({"batch": 1, "reply_codec": 0x10} | changed))


def local_infer(tree):
    return LocalInfer(model="m", tensors=[], tree=tree)


def local_result(**changed):
    fields = {
        "tensors": [],
        "tree": None,
        "where": "device",
        "cut": 0,
        "cut_name": "",
        "codec": "",
        "uplink_bytes": 0,
        "latency_ms": 1.0,
        "breakdown": {"device": 1.0},
    }
    return LocalResult(**(fields | changed))


def load_report():
    load = ModelLoad(
        name="m", ready=1, starting=0, target=1, queue_ms=0.0, wait_ms=2.5, slowdown=1.25, batch_requests=1.5
    )
    return LoadReport(gateway="g", sequence=7, models=[load])


def frames_of(kind, header, payloads=(), **fields):
    """A message as a peer might send it: nothing here checks that the parts agree."""
    frame0 = Frame0(kind, tensor_count=len(payloads), **fields).pack()
    body = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    return [frame0, body, *payloads]


class TestGoodMessages:
    def test_a_request_comes_out_as_it_went_in(self):
        header = infer(tensor(3), tensor(9, (2, 1, 4), 8, dtype=6, order=[2, 0, 1]), batch=2)
        payloads = [bytes(range(24)), bytearray(8)]
        frames = encode_message(header, payloads, request_id=5, model=1, cut=7, codec=0x31, budget_ms=250)
        message = decode_message(frames, LIMITS)
        assert message.type is MessageType.INFER
        assert (message.request_id, message.model, message.cut) == (5, 1, 7)
        assert (message.codec, message.budget_ms) == (0x31, 250)
        assert message.frame0.tensor_count == 2
        assert message.header == header
        assert [bytes(payload) for payload in message.payloads] == payloads

    def test_payloads_are_views_of_the_frames(self):
        payload = bytearray(24)
        message = decode_message(encode_message(infer(tensor()), [payload]), LIMITS)
        payload[5] = 99
        assert message.payloads[0][5] == 99
        assert encode_message(infer(tensor()), [payload])[2] is payload

    @pytest.mark.parametrize(
        "header",
        [
            Hello(agent="a", software="s", models=[]),
            Announce(payload_bytes=5),
            Pong(span_ms=1.5, span_bytes=100),
            Credit(credits=2),
            Goodbye(),
            ErrorReply(code=31, message="queue full", retry_after_ms=20.0),
            Result(tensors=[], timings=TailTimings()),
            local_infer([{"image": 0}, [None, True, 1.5, "x"]]),
            local_result(decision={"runner_up": {"cut": 3}}),
        ],
    )
    def test_every_header_without_payload(self, header):
        message = decode_message(encode_message(header, request_id=1), LIMITS)
        assert message.header == header
        assert message.budget_ms == NO_BUDGET
        assert message.payloads == ()

    def test_a_probe_carries_its_padding(self):
        message = decode_message(encode_message(Ping(probe_bytes=300), [bytes(300)]), LIMITS)
        assert message.payloads[0].nbytes == 300
        assert decode_message(encode_message(Ping()), LIMITS).header == Ping()

    def test_a_card_of_the_largest_network_passes(self):
        unit_ms = [1.5] * 65535
        card = Card(
            gateway="g",
            software="s",
            limits=Limits(),
            models=[ModelCard(name="m", digest="d", index=0, unit_ms=unit_ms, replicas=1)],
        )
        assert decode_message(encode_message(card), LIMITS).header.models[0].unit_ms == unit_ms

    def test_load_is_one_frame(self):
        frames = encode_message(load_report())
        assert len(frames) == 1
        assert decode_message(frames, LIMITS).header == load_report()

    def test_a_cut_of_a_set_of_units_names_them(self):
        header = infer(tensor(), tail_units=b"\x0c")
        message = decode_message(encode_message(header, [bytes(24)], cut=SET_CUT), LIMITS)
        assert message.header.tail_units == b"\x0c"

    def test_fields_of_a_newer_peer_are_ignored(self):
        fields = msgspec.to_builtins(Credit(credits=3)) | {"colour": [1, {"deep": None}], "weight": 2.0}
        frames = frames_of(MessageType.CREDIT, msgspec.msgpack.encode(fields))
        assert decode_message(frames, LIMITS).header == Credit(credits=3)

    def test_whole_numbers_serve_as_durations(self):
        frames = frames_of(MessageType.PONG, {"span_ms": 3})
        assert decode_message(frames, LIMITS).header.span_ms == 3.0


class TestSender:
    def test_payloads_must_be_those_of_the_header(self):
        with pytest.raises(ValueError, match="INFER describes 1 payloads, got 0"):
            encode_message(infer(tensor()))
        with pytest.raises(ValueError, match="PONG describes 0 payloads, got 1"):
            encode_message(Pong(), [b"x"])

    def test_errors_travel_by_code(self):
        reply = error_reply(OverloadedError("queue full", 40.0))
        received = decode_message(encode_message(reply), LIMITS).header
        error = error_from_reply(received)
        assert type(error) is OverloadedError
        assert str(error) == "queue full"
        assert error.retry_after_ms == 40.0
        assert type(error_from_reply(error_reply(UnknownModelError("no m")))) is UnknownModelError
        assert type(error_from_reply(ErrorReply(code=999, message="?"))) is InternalError

    def test_a_long_error_is_cut_so_that_it_can_be_read(self):
        frames = encode_message(error_reply(ProtocolError("x" * 5000)))
        assert len(decode_message(frames, LIMITS).header.message) == 1024

    def test_a_version_error_crosses_the_wire(self):
        assert type(error_from_reply(error_reply(VersionError("v", (1, 1), 3)))) is VersionError


class TestFrameList:
    def test_no_frames(self):
        with pytest.raises(ProtocolError, match="without frames"):
            decode_message([], LIMITS)

    def test_no_header(self):
        with pytest.raises(ProtocolError, match="PONG needs a header"):
            decode_message(encode_message(Pong())[:1], LIMITS)

    def test_a_header_glued_to_frame_0(self):
        frame0, body = encode_message(Pong())
        with pytest.raises(ProtocolError, match="PONG needs a header"):
            decode_message([frame0 + body], LIMITS)

    def test_load_in_two_frames(self):
        (frame,) = encode_message(load_report())
        with pytest.raises(ProtocolError, match="LOAD is one frame"):
            decode_message([frame[:24], frame[24:]], LIMITS)

    def test_load_without_a_report(self):
        (frame,) = encode_message(load_report())
        with pytest.raises(ProtocolError, match="the header of LOAD"):
            decode_message([frame[:24]], LIMITS)

    def test_trailing_frames(self):
        frames = encode_message(infer(tensor()), [bytes(24)])
        with pytest.raises(ProtocolError, match="counts 1 payloads, 2 came"):
            decode_message([*frames, b""], LIMITS)

    def test_missing_frames(self):
        with pytest.raises(ProtocolError, match="counts 1 payloads, 0 came"):
            decode_message(encode_message(infer(tensor()), [bytes(24)])[:2], LIMITS)

    def test_frame_0_and_header_count_differently(self):
        frames = frames_of(MessageType.INFER, infer(tensor(1), tensor(2)), [bytes(24)])
        with pytest.raises(ProtocolError, match="INFER describes 2 payloads, 1 came"):
            decode_message(frames, LIMITS)

    def test_payloads_where_none_belong(self):
        with pytest.raises(ProtocolError, match="GOODBYE describes 0 payloads, 1 came"):
            decode_message(frames_of(MessageType.GOODBYE, Goodbye(), [b"x"]), LIMITS)

    def test_a_probe_of_another_size(self):
        with pytest.raises(ProtocolError, match="a probe of 5 bytes calls itself 6"):
            decode_message(frames_of(MessageType.PING, Ping(probe_bytes=6), [bytes(5)]), LIMITS)

    def test_more_frames_than_frame_0_can_count(self):
        frames = frames_of(MessageType.INFER, infer(), [])
        with pytest.raises(LimitError, match="258 frames"):
            decode_message([*frames, *[b""] * 256], LIMITS)


class TestLimits:
    def test_message_bytes_count_every_frame(self):
        frames = encode_message(infer(tensor()), [bytes(24)])
        total = sum(len(frame) for frame in frames)
        decode_message(frames, WireLimits(max_message_bytes=total))
        with pytest.raises(LimitError, match=f"a message of {total} bytes; at most {total - 1}"):
            decode_message(frames, WireLimits(max_message_bytes=total - 1))

    def test_header_bytes(self):
        with pytest.raises(LimitError, match="a header of"):
            decode_message(encode_message(Goodbye(reason="x" * 100)), WireLimits(max_header_bytes=100))

    def test_batch(self):
        frames = encode_message(infer(tensor(), batch=65), [bytes(24)])
        with pytest.raises(LimitError, match="a batch of 65; at most 64"):
            decode_message(frames, LIMITS)

    @pytest.mark.parametrize("shape", [(2**28,), (2**31 - 1,) * 8, (0, 2**31 - 1, 2**31 - 1)])
    def test_what_a_small_payload_claims_to_become(self, shape):
        frames = encode_message(infer(tensor(shape=shape)), [bytes(24)])
        with pytest.raises(LimitError, match="decoded size"):
            decode_message(frames, LIMITS)

    def test_decoded_bytes_are_summed_over_the_tensors(self):
        tensors = [tensor(slot, (1024,), 0) for slot in range(4)]
        frames = encode_message(infer(*tensors), [b""] * 4)
        decode_message(frames, WireLimits(max_decoded_bytes=4 * 4096))
        with pytest.raises(LimitError, match="slot 3 brings the decoded size to 16384"):
            decode_message(frames, WireLimits(max_decoded_bytes=4 * 4096 - 1))

    def test_a_device_takes_the_limits_of_the_card(self):
        limits = WireLimits.from_card(Limits(max_message_bytes=1000, max_batch=3))
        assert (limits.max_message_bytes, limits.max_batch) == (1000, 3)

    @pytest.mark.parametrize("shape", [(2**31,), (-1,), (1,) * 9])
    def test_dimensions_out_of_bounds(self, shape):
        frames = frames_of(MessageType.INFER, infer(tensor(shape=shape)), [bytes(24)])
        with pytest.raises(ProtocolError, match=r"header of INFER.*shape"):
            decode_message(frames, LIMITS)


class TestTensors:
    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            (tensor(dtype=0), "dtype 0 is not in the table"),
            (tensor(dtype=11), "dtype 11 is not in the table"),
            (tensor(order=[0, 0]), "no permutation"),
            (tensor(order=[1, 2]), "no permutation"),
            (tensor(order=[0]), "no permutation"),
            (tensor(order=[0, 1, 2]), "no permutation"),
            (tensor(payload_bytes=23), "a payload of 24 bytes calls itself 23"),
            (tensor(payload_bytes=25), "a payload of 24 bytes calls itself 25"),
            (tensor(payload_bytes=-1), r"payload_bytes"),
            (tensor(slot=-1), "slot"),
            (tensor(codec=256), "codec"),
            (tensor(codec=-1), "codec"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, wrong, reason):
        with pytest.raises(ProtocolError, match=reason):
            decode_message(frames_of(MessageType.INFER, infer(wrong), [bytes(24)]), LIMITS)

    @pytest.mark.parametrize(
        ("kind", "header"),
        [
            (MessageType.INFER, infer(tensor(4), tensor(4))),
            (MessageType.RESULT, Result(tensors=[tensor(4), tensor(4)], timings=TailTimings())),
            (MessageType.LOCAL_INFER, LocalInfer(model="m", tensors=[tensor(4), tensor(4)], tree=None)),
            (MessageType.LOCAL_RESULT, local_result(tensors=[tensor(4), tensor(4)])),
        ],
    )
    def test_a_slot_twice(self, kind, header):
        with pytest.raises(ProtocolError, match="same slot"):
            decode_message(frames_of(kind, header, [bytes(24)] * 2), LIMITS)

    @pytest.mark.parametrize(("cut", "units"), [(3, b"\x01"), (SET_CUT, b"")])
    def test_unit_sets_belong_to_one_cut_id(self, cut, units):
        frames = encode_message(infer(tensor(), tail_units=units), [bytes(24)], cut=cut)
        with pytest.raises(ProtocolError, match="tail_units"):
            decode_message(frames, LIMITS)


class TestHeaders:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300, "3", None])
    @pytest.mark.parametrize("field", ["span_ms", "span_bytes"])
    def test_durations_and_counts_are_finite_and_not_negative(self, field, value):
        with pytest.raises(ProtocolError, match=field):
            decode_message(frames_of(MessageType.PONG, {field: value}), LIMITS)

    def test_unit_times_too(self):
        hello = {"replica": "r", "model": "m", "digest": "d", "unit_ms": [1.0, math.nan], "credits": 1}
        with pytest.raises(ProtocolError, match="unit_ms"):
            decode_message(frames_of(MessageType.REPLICA_HELLO, hello), LIMITS)
        hello["unit_ms"] = [0.0] * 65536
        with pytest.raises(ProtocolError, match="unit_ms"):
            decode_message(frames_of(MessageType.REPLICA_HELLO, hello), LIMITS)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xc1",
            b"\x90",
            b"\x80\x80",
            msgspec.msgpack.encode({"reason": "x"}) + b"\x00",
            msgspec.msgpack.encode({"reason": "x" * 1025}),
            b"\x81\xa6reason\xa2\xff\xfe",
            b"\x81\xa6reason\xdb\xff\xff\xff\xff",
            b"\x81\xa5extra" + b"\x91" * 100_000,
            b"\x81\xa5extra" + b"\x81\xa1a" * 100_000,
            b"\x81\xa5extra\xdd\xff\xff\xff\xff",
        ],
    )
    def test_malformed_msgpack(self, body):
        with pytest.raises(ProtocolError, match="the header of GOODBYE is not valid"):
            decode_message(frames_of(MessageType.GOODBYE, body), LIMITS)

    def test_text_that_is_too_long(self):
        hello = Hello(agent="a" * 129, software="s", models=[])
        with pytest.raises(ProtocolError, match="agent"):
            decode_message(encode_message(hello), LIMITS)

    def test_missing_fields(self):
        with pytest.raises(ProtocolError, match="credits"):
            decode_message(frames_of(MessageType.CREDIT, {}), LIMITS)


class TestFreeForm:
    @pytest.mark.parametrize(
        "tree",
        [math.nan, math.inf, b"bytes", [b"x"], {1: 2}, {"a": {None: 1}}, {"a": [{"b": math.nan}]}],
    )
    def test_only_plain_values(self, tree):
        with pytest.raises(ProtocolError, match="free-form"):
            decode_message(encode_message(local_infer(tree)), LIMITS)
        with pytest.raises(ProtocolError, match="free-form"):
            decode_message(encode_message(local_result(decision=tree)), LIMITS)

    def test_extension_types_and_dates_are_not_plain(self):
        body = msgspec.msgpack.encode({"model": "m", "tensors": [], "tree": msgspec.msgpack.Ext(5, b"x")})
        with pytest.raises(ProtocolError, match="Ext"):
            decode_message(frames_of(MessageType.LOCAL_INFER, body), LIMITS)
        stamp = b"\x83\xa5model\xa1m\xa7tensors\x90\xa4tree\xd6\xff\x00\x00\x00\x01"
        with pytest.raises(ProtocolError, match="datetime"):
            decode_message(frames_of(MessageType.LOCAL_INFER, stamp), LIMITS)

    def test_32_levels_pass_and_33_do_not(self):
        tree = 0
        for _ in range(31):
            tree = [tree]
        assert decode_message(encode_message(local_infer(tree)), LIMITS).header.tree == tree
        with pytest.raises(ProtocolError, match="deeper than 32"):
            decode_message(encode_message(local_infer([tree])), LIMITS)

    @pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
    def test_no_depth_breaks_the_parser(self, opening):
        body = b"\x83\xa5model\xa1m\xa7tensors\x90\xa4tree" + opening * 50_000 + b"\xc0"
        with pytest.raises(ProtocolError):
            decode_message(frames_of(MessageType.LOCAL_INFER, body), LIMITS)

    def test_the_breakdown_is_checked_as_numbers(self):
        with pytest.raises(ProtocolError, match="breakdown"):
            decode_message(encode_message(local_result(breakdown={"device": math.nan})), LIMITS)
        with pytest.raises(ProtocolError, match="breakdown"):
            decode_message(
                encode_message(local_result(breakdown={str(stage): 1.0 for stage in range(65)})), LIMITS
            )


def test_headers_are_immutable():
    header = copy.copy(Pong())
    with pytest.raises(AttributeError):
        header.span_ms = 5.0
