"""The whole cloud in this process, with small real networks, seen from a device's socket."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import torch

from cloud_cluster.executor import Outcome
from cloud_cluster.in_process import InProcessCloud
from shared.codec import Codec, decode, encode
from shared.config import CloudConfig, ServedModelConfig
from shared.errors import CodecError, ConfigError, InputMismatchError, ProtocolError, SutureError
from shared.graph import Cut, Program, load
from shared.models import Model, resolve
from shared.wire import SET_CUT, Message, MessageType
from shared.wire.messages import Infer, TensorHeader
from tests.cloud_cluster.cloud_peers import FakeDevice, gateway_config, until

NET = ServedModelConfig(name="net", factory="tests.cloud_cluster.cloud_peers:tiny_net")
TAGGER = ServedModelConfig(name="tagger", factory="tests.cloud_cluster.cloud_peers:tiny_tagger", credits=1)


class Prefix:
    """The device's half of a network."""

    def __init__(self, source: ServedModelConfig, index: int) -> None:
        self.model: Model = resolve(source)
        self.program: Program = load(self.model.captured)
        self.graph = self.program.graph
        self.index = index
        args, kwargs = self.model.example
        self.leaves: list[torch.Tensor] = self.graph.flatten(args, kwargs)
        self.whole = self.program(self.leaves)

    def tensors(self, cut: Cut, codec: Codec = Codec.FLOAT32) -> list[tuple[TensorHeader, object]]:
        state = self.program.start(self.leaves)
        self.program.run(state, cut.edge_units)
        return [
            encode(tensor, codec, slot)
            for tensor, slot in zip(self.program.live(state, cut), cut.live, strict=True)
        ]

    async def ask(self, device: FakeDevice, request_id: int, cut: Cut, **changes: object) -> None:
        """Send an INFER for the cut; ``changes`` replace fields of its header."""
        encoded = self.tensors(cut)
        fields = {
            "batch": 1,
            "tensors": [header for header, _ in encoded],
            "reply_codec": Codec.FLOAT32,
            "tail_units": self.graph.tail_units_mask(cut) if cut.index < 0 else b"",
        }
        index = SET_CUT if cut.index < 0 else cut.index
        infer = Infer(**{**fields, **changes})  # type: ignore[arg-type]
        payloads = [payload for _, payload in encoded]
        await device.send(infer, payloads, request_id=request_id, model=self.index, cut=index)

    def outputs(self, message: Message) -> dict[int, torch.Tensor]:
        specs = {slot: self.graph.values[slot].at(1) for slot in self.graph.outputs}
        return {
            header.slot: decode(header, payload, specs[header.slot])
            for header, payload in zip(message.header.tensors, message.payloads, strict=True)
        }


@pytest.fixture(scope="module")
def net() -> Prefix:
    return Prefix(NET, 0)


@pytest.fixture(scope="module")
def tagger() -> Prefix:
    return Prefix(TAGGER, 1)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[InProcessCloud]:
    config = CloudConfig(
        gateway=gateway_config(), models=[NET, TAGGER], cache_dir=tmp_path, profile_repeats=3
    )
    async with InProcessCloud(config) as running:
        yield running


@pytest.fixture
async def device(cloud: InProcessCloud, net: Prefix, tagger: Prefix) -> AsyncIterator[FakeDevice]:
    async with FakeDevice(cloud.device_endpoint) as connected:
        await connected.hello(net=net.graph.digest, tagger=tagger.graph.digest)
        yield connected


async def test_the_card_has_a_measured_time_for_every_unit(
    cloud: InProcessCloud, net: Prefix, tagger: Prefix
) -> None:
    async with FakeDevice(cloud.device_endpoint) as device:
        cards = (await device.hello(net=net.graph.digest, tagger=tagger.graph.digest)).header.models
    for card, prefix in zip(cards, (net, tagger), strict=True):
        assert card.error == ""
        assert card.digest == prefix.graph.digest
        assert len(card.unit_ms) == len(prefix.graph.units)
        assert all(ms > 0 for ms in card.unit_ms)


async def test_every_cut_gives_the_whole_networks_answer(
    device: FakeDevice, net: Prefix, tagger: Prefix
) -> None:
    for prefix in (net, tagger):
        for cut in prefix.graph.cuts:
            await prefix.ask(device, cut.index, cut)
            answer = await device.next(MessageType.RESULT)
            outputs = prefix.outputs(answer)
            assert set(outputs) == set(prefix.graph.output_slots_of(cut))
            for slot, whole in zip(prefix.graph.outputs, prefix.whole, strict=True):
                if slot in outputs:
                    torch.testing.assert_close(outputs[slot], whole, rtol=1e-5, atol=1e-6)
        assert prefix.graph.output_slots_of(prefix.graph.cuts[0])


async def test_a_cut_that_is_no_prefix_of_the_units_gives_the_same_answer(
    device: FakeDevice, tagger: Prefix
) -> None:
    graph = tagger.graph
    cuts = []
    for left_out in range(len(graph.units)):
        try:
            cut = graph.set_cut([unit for unit in range(len(graph.units)) if unit != left_out])
        except ProtocolError:
            continue
        cuts += [cut] if cut.index < 0 else []
    assert cuts
    for number, cut in enumerate(cuts):
        await tagger.ask(device, number, cut)
        outputs = tagger.outputs(await device.next(MessageType.RESULT))
        assert set(outputs) == set(graph.output_slots_of(cut))
        for slot, value in outputs.items():
            torch.testing.assert_close(value, tagger.whole[graph.outputs.index(slot)])


async def test_many_devices_at_once_each_get_their_own_answers(cloud: InProcessCloud, net: Prefix) -> None:
    devices = [FakeDevice(cloud.device_endpoint) for _ in range(5)]
    for device in devices:
        await device.hello(net=net.graph.digest)
    for request_id in range(6):
        for device in devices:
            await net.ask(device, request_id, net.graph.cuts[request_id % 3])
    for device in devices:
        answers = [await device.next(MessageType.RESULT) for _ in range(6)]
        assert sorted(answer.request_id for answer in answers) == list(range(6))
        for answer in answers:
            (output,) = net.outputs(answer).values()
            torch.testing.assert_close(output, net.whole[0], rtol=1e-5, atol=1e-6)
        await device.close()


def with_header(prefix: Prefix, cut: Cut, **changes: object) -> list[TensorHeader]:
    """The cut's tensor headers, the first one changed."""
    first, *rest = [header for header, _ in prefix.tensors(cut)]
    fields = {name: getattr(first, name) for name in first.__struct_fields__}
    return [TensorHeader(**{**fields, **changes}), *rest]


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"reply_codec": 200}, CodecError, "reply codec"),
        ({"header": {"codec": 201}}, CodecError, "codec 0xc9"),
        ({"header": {"slot": 3}}, InputMismatchError, "takes slots"),
        ({"header": {"shape": [1, 8, 12, 13]}}, InputMismatchError, r"\[1, 8, 12, 12\]"),
        ({"header": {"dtype": 7}}, InputMismatchError, "dtype"),
        ({"batch": 2}, InputMismatchError, r"\[2, 8, 12, 12\]"),
        ({"header": {"codec": int(Codec.FLOAT32_ZSTD)}}, CodecError, "4608"),
    ],
)
async def test_what_does_not_fit_the_cut_is_a_typed_error_and_the_replica_goes_on(
    device: FakeDevice,
    net: Prefix,
    changes: dict[str, object],
    expected: type[SutureError],
    words: str,
) -> None:
    cut = net.graph.cuts[1]
    fields = {name: value for name, value in changes.items() if name != "header"}
    if isinstance(header := changes.get("header"), dict):
        fields["tensors"] = with_header(net, cut, **header)
    await net.ask(device, 1, cut, **fields)
    reply = await device.next(MessageType.ERROR)
    assert reply.request_id == 1
    assert reply.header.code == expected.code
    assert re.search(words, reply.header.message)
    await net.ask(device, 2, cut)
    assert (await device.next(MessageType.RESULT)).request_id == 2


async def test_a_damaged_payload_is_a_codec_error_and_the_replica_goes_on(
    device: FakeDevice, net: Prefix
) -> None:
    cut = net.graph.cuts[1]
    (spec,) = net.graph.live_specs(cut, 1)
    header, payload = encode(torch.zeros(spec.shape), Codec.FLOAT32_ZSTD, cut.live[0])
    damaged = bytearray(payload)
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    infer = Infer(batch=1, tensors=[header], reply_codec=Codec.FLOAT32)
    for request_id, sent in ((1, damaged), (2, payload)):
        await device.send(infer, [sent], request_id=request_id, cut=cut.index)
    reply = await device.next(MessageType.ERROR)
    assert (reply.request_id, reply.header.code) == (1, CodecError.code)
    assert (await device.next(MessageType.RESULT)).request_id == 2


async def test_a_cut_that_does_not_exist_is_a_protocol_error(device: FakeDevice, net: Prefix) -> None:
    encoded = net.tensors(net.graph.cuts[0])
    infer = Infer(batch=1, tensors=[header for header, _ in encoded], reply_codec=Codec.FLOAT32)
    await device.send(infer, [payload for _, payload in encoded], request_id=1, cut=999)
    reply = await device.next(MessageType.ERROR)
    assert reply.header.code == ProtocolError.code
    assert "cuts 0 to" in reply.header.message


async def test_values_that_the_network_cannot_take_are_an_error_of_the_request(
    device: FakeDevice, tagger: Prefix
) -> None:
    cut = tagger.graph.cuts[0]
    header, payload = encode(torch.tensor([[1, 2, 3, 10_000]]), Codec.FLOAT32, cut.live[0])
    infer = Infer(batch=1, tensors=[header], reply_codec=Codec.FLOAT32)
    await device.send(infer, [payload], request_id=1, model=1)
    reply = await device.next(MessageType.ERROR)
    assert reply.header.code == InputMismatchError.code
    await tagger.ask(device, 2, cut)
    assert (await device.next(MessageType.RESULT)).request_id == 2


async def test_the_profile_is_kept_and_used_again(tmp_path: Path) -> None:
    config = CloudConfig(
        gateway=gateway_config(), models=[NET], cache_dir=tmp_path / "cache", profile_repeats=3
    )
    times: list[list[float]] = []
    for _ in range(2):
        async with InProcessCloud(config) as cloud, FakeDevice(cloud.device_endpoint) as device:
            times.append((await device.hello()).header.models[0].unit_ms)
    assert times[0] == times[1]
    for kept in (tmp_path / "cache").iterdir():
        kept.write_text("{ not a profile")
    async with InProcessCloud(config) as cloud, FakeDevice(cloud.device_endpoint) as device:
        assert len((await device.hello()).header.models[0].unit_ms) == len(times[0])


async def test_replicas_come_and_go(cloud: InProcessCloud, device: FakeDevice, net: Prefix) -> None:
    added = await cloud.add_replica(NET)
    assert cloud.gateway.ready("net") == 2
    await cloud.remove_replica(added)
    await until(lambda: cloud.gateway.ready("net") == 1)
    await net.ask(device, 1, net.graph.cuts[1])
    await device.next(MessageType.RESULT)


async def test_a_network_that_cannot_be_loaded_leaves_nothing_behind() -> None:
    config = CloudConfig(
        gateway=gateway_config(), models=[ServedModelConfig(name="net", factory="nowhere:nothing")]
    )
    with pytest.raises(ConfigError, match="nowhere"):
        async with InProcessCloud(config):
            pass


async def test_the_bodys_own_exception_is_not_wrapped() -> None:
    class Nothing:
        digest = "sha256:none"
        unit_ms: Sequence[float] = ()

        def execute(self, message: Message) -> Outcome:
            raise AssertionError

    config = CloudConfig(gateway=gateway_config(), models=[NET])
    with pytest.raises(KeyError, match="the body's"):
        async with InProcessCloud(config, executor_for=lambda _model: Nothing()):
            raise KeyError("the body's")
