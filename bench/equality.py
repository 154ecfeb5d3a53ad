"""Is a network cut in two still the same network?

``python -m bench.equality --json FILE [--model NAME] [--quick]``.  At every cut of every zoo network
(evenly spread ones where there are more than MAX_CUTS) the device's half runs, what crosses the cut goes
through the bytes of a real INFER message, the cloud's half runs on what arrived, and its outputs go back
through the bytes of a real RESULT.  The judge is the module itself, run eagerly by torch at batch 1.

* ``bit_equal``: cuts at which every bit of every output is the judge's, with the exact program;
* ``fused_error``: the largest error over all cuts of the fused program, relative to the judge's largest
  output;
* ``eager_error``: the same for the judge itself against the network in float64, which is what the
  rounding of float32 does to this network anyway: a random deep network amplifies it, a trained one less.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.contract import Bench
from shared import zoo
from shared.codec import Codec, decode, encode
from shared.graph import CapturedModel, EnumArg, Graph, Op, Program, load
from shared.graph.capture import capture
from shared.graph.ir import Arg, Cut
from shared.graph.tree import tree_of
from shared.tensor import DType, TensorSpec
from shared.wire import WireLimits, decode_message, encode_message
from shared.wire.messages import Infer, Result, TailTimings

__all__ = ["MAX_CUTS", "Equality", "compare", "eager", "in_float64", "main"]

MAX_CUTS = 150
FUSED_BOUND = 1e-5
_QUICK = ("mnist", "senna-pos", "mobilenetv2", "vit-tiny")
_QUICK_CUTS = 12
_LIMITS = WireLimits()


@dataclasses.dataclass(frozen=True, slots=True)
class Equality:
    """What was found for one network."""

    cuts: int
    tried: int
    bit_equal: int
    unequal: tuple[str, ...]
    fused_error: float
    eager_error: float


def compare(network: zoo.Network, captured: CapturedModel, max_cuts: int = MAX_CUTS) -> Equality:
    """Both halves at every cut (at most ``max_cuts``, evenly spread, both ends included) against eager."""
    leaves = captured.graph.flatten(network.args, network.kwargs)
    judge = eager(network.module, network.args, network.kwargs)
    cuts = _spread(captured.graph.cuts, max_cuts)
    unequal = [
        cut.name
        for cut, outputs in _halves(load(captured, mode="exact"), leaves, cuts)
        if not all(_same_bits(got, want) for got, want in zip(outputs, judge, strict=True))
    ]
    fused = max(_error(outputs, judge) for _, outputs in _halves(load(captured), leaves, cuts))
    precise = load(in_float64(captured), mode="exact")
    truth = precise([leaf.double() if leaf.dtype == torch.float32 else leaf for leaf in leaves])
    return Equality(
        cuts=len(captured.graph.cuts),
        tried=len(cuts),
        bit_equal=len(cuts) - len(unequal),
        unequal=tuple(unequal),
        fused_error=fused,
        eager_error=_error(judge, truth),
    )


def eager(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The leaves of the module's own result, without the fast path that no exported graph contains."""
    with torch.no_grad(), _no_fast_path():
        return tree_of(module(*args, **kwargs), Tensor)[1]


def in_float64(captured: CapturedModel) -> CapturedModel:
    """The same network with every float32 made float64."""
    graph = captured.graph
    changed = dataclasses.replace(
        graph,
        preamble=tuple(map(_precise_op, graph.preamble)),
        units=tuple(dataclasses.replace(unit, ops=tuple(map(_precise_op, unit.ops))) for unit in graph.units),
        values={
            slot: dataclasses.replace(spec, dtype=DType.FLOAT64) if spec.dtype == DType.FLOAT32 else spec
            for slot, spec in graph.values.items()
        },
    )
    weights = {
        key: weight.detach().double() if weight.dtype == torch.float32 else weight
        for key, weight in captured.weights.items()
    }
    return CapturedModel(changed, weights)


def _precise_op(op: Op) -> Op:
    def convert(arg: Arg) -> Arg:
        if arg == EnumArg("dtype", "float32"):
            return EnumArg("dtype", "float64")
        return tuple(map(convert, arg)) if isinstance(arg, tuple) else arg

    return Op(op.target, tuple(map(convert, op.args)), tuple((key, convert(arg)) for key, arg in op.kwargs),
              op.outputs)  # fmt: skip


def _halves(
    program: Program, leaves: Sequence[Tensor], cuts: Sequence[Cut]
) -> Iterator[tuple[Cut, list[Tensor]]]:
    """The merged outputs at each cut; the device's half goes on from cut to cut."""
    graph = program.graph
    state = program.start(leaves)
    for cut in cuts:
        program.run(state, range(state.next, cut.index))
        outputs = program.outputs(state)
        live = program.live(state, cut)
        sent = _through_infer(graph, cut, live)
        for tensor, arrived in zip(live, sent, strict=True):
            assert arrived.data_ptr() != tensor.data_ptr() or not tensor.numel()
        tail = program.resume(cut, sent, state.batch)
        program.run(tail, cut.cloud_units)
        slots = graph.output_slots_of(cut)
        computed = program.outputs(tail)
        outputs.update(
            zip(slots, _through_result(graph, slots, [computed[slot] for slot in slots]), strict=True)
        )
        yield cut, [outputs[slot] for slot in graph.outputs]


def _through_infer(graph: Graph, cut: Cut, tensors: Sequence[Tensor]) -> list[Tensor]:
    coded = [encode(tensor, Codec.FLOAT32, slot) for slot, tensor in zip(cut.live, tensors, strict=True)]
    header = Infer(batch=1, tensors=[item for item, _ in coded], reply_codec=int(Codec.FLOAT32))
    return _received(header, [payload for _, payload in coded], graph.live_specs(cut, 1), cut.index)


def _through_result(graph: Graph, slots: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    coded = [encode(tensor, Codec.FLOAT32, slot) for slot, tensor in zip(slots, tensors, strict=True)]
    header = Result(tensors=[item for item, _ in coded], timings=TailTimings())
    return _received(header, [payload for _, payload in coded], graph.specs(slots, 1), 0)


def _received(
    header: Infer | Result, payloads: Sequence[Any], specs: Sequence[TensorSpec], cut: int
) -> list[Tensor]:
    """What the other side has once the frames have crossed as bytes."""
    frames = [bytes(frame) for frame in encode_message(header, payloads, cut=cut)]
    message = decode_message(frames, _LIMITS)
    arrived = message.header
    assert isinstance(arrived, Infer | Result)
    return [
        decode(item, payload, spec)
        for item, payload, spec in zip(arrived.tensors, message.payloads, specs, strict=True)
    ]


def _spread(cuts: Sequence[Cut], most: int) -> list[Cut]:
    if len(cuts) <= most:
        return list(cuts)
    return [cuts[round(index * (len(cuts) - 1) / (most - 1))] for index in range(most)]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


def _error(outputs: Sequence[Tensor], judge: Sequence[Tensor]) -> float:
    """The largest difference of any output over that output's largest value."""
    worst = 0.0
    for got, want in zip(outputs, judge, strict=True):
        difference = float((got.double() - want.double()).abs().max())
        worst = max(worst, difference / max(float(want.double().abs().max()), sys.float_info.min))
    return worst


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench(
        "equality",
        argv,
        description="Cuts at which both halves equal the whole bit for bit; the error of fused programs.",
        arguments=lambda parser: parser.add_argument(
            "--model", metavar="NAME", choices=zoo.names(), help="one network of the zoo instead of all"
        ),
    )
    chosen = bench.options.model
    names = (chosen,) if chosen else _QUICK if bench.quick else zoo.names()
    most = _QUICK_CUTS if bench.quick else MAX_CUTS
    bench.config = {"max_cuts": most, "codec": Codec.FLOAT32.label, "threads": torch.get_num_threads()}
    results: list[Equality] = []
    for name in bench.track(names, "networks"):
        network = zoo.build(name)
        result = compare(network, capture(network.module, network.args, network.kwargs, name=name), most)
        results.append(result)
        bench.row(network=name, **dataclasses.asdict(result))
    share = sum(result.bit_equal for result in results) / sum(result.tried for result in results)
    bench.target("cuts that are bit-equal", share, "share", 1.0, "at_least")
    worst = max(result.fused_error for result in results)
    bench.target("worst error of a fused program", worst, "relative", FUSED_BOUND, "at_most")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
