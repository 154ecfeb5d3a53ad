"""A replica decodes the transform by tables that it holds, and says so when it holds none."""

from __future__ import annotations

import pytest
import torch

from cloud_cluster.torch_executor import TorchExecutor
from shared.codec import Codec, encode
from shared.codec.network_tables import NetworkTables
from shared.codec.transform import fit
from shared.errors import CodecError
from shared.wire import Message, WireLimits, decode_message, encode_message
from shared.wire.messages import Infer
from tests.cloud_cluster.batch_peers import Served, from_zoo


def sent(net: Served, batch: int = 1) -> tuple[Message, NetworkTables, torch.Tensor]:
    """A request in the transform, the tables that it was made with, and the tensor as it was."""
    graph = net.graph
    cut = next(cut for cut in graph.cuts if len(cut.live) == 1 and graph.values[cut.live[0]].dtype.is_float)
    state = net.program.start(net.leaves(24, 1))
    net.program.run(state, cut.edge_units)
    (live,) = net.program.live(state, cut)
    table, (slot,) = fit(live), cut.live
    header, payload = encode(live[:batch], Codec.TRANSFORM_1, slot, table)
    assert header.codec == Codec.TRANSFORM_1
    infer = Infer(batch=batch, tensors=[header], reply_codec=Codec.FLOAT32)
    frames = encode_message(infer, [payload], cut=cut.index, codec=Codec.TRANSFORM_1)
    message = decode_message([bytes(frame) for frame in frames], WireLimits())
    return message, NetworkTables(graph.digest, {slot: table}), live[:batch]


@pytest.mark.parametrize("batch", [1, 3])
def test_what_was_sent_is_what_is_computed_on(batch: int) -> None:
    net = from_zoo("mnist")
    message, tables, tensor = sent(net, batch)
    executor = TorchExecutor(net.program, net.executor.curves, tables=tables)
    assert executor.tables_digest == tables.digest
    job = executor.accept(message)
    executor.decode(job)
    (decoded,) = job.body.tensors.take()
    assert float((decoded - tensor).norm() / tensor.norm()) < 0.05


def test_without_tables_it_is_an_error_that_names_the_codec() -> None:
    net = from_zoo("mnist")
    message, _, _ = sent(net)
    assert net.executor.tables_digest == ""
    job = net.executor.accept(message)
    with pytest.raises(CodecError, match=r"in transform-1; this side has no tables"):
        net.executor.decode(job)
