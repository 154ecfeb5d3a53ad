"""Where a request's time went: what is kept of it while it lives, and the Result that comes of that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from edge_agent.actions import Complete, Source
from edge_agent.decision import Decision
from edge_agent.power import Activity, PowerMeter
from edge_agent.result import Result, Where, breakdown
from edge_agent.runner import Answer, Prefix, Work
from edge_agent.served import Served
from edge_agent.tensors import to_numpy
from shared.plan.energy import BUSY
from shared.plan.stages import Stage
from shared.wire import Message

__all__ = ["Request", "cloud_stages"]


@dataclass(slots=True, eq=False)
class Request:
    """One request while it lives.  Times are ms of the agent's clock, 0 while it has not come to that.

    ``queued_bytes`` were under way on the link when this was sent; ``ended`` resolves when the table has
    decided how the request ends; ``power_mark`` is the meter's at the start; ``lost_ms`` passed between
    sending it to a gateway that was lost and sending it again.
    """

    request_id: int
    served: Served
    decision: Decision
    leaves: Sequence[Any] | None
    batch: int
    started_ms: float
    ended: asyncio.Future[Complete]
    power_mark: float | None = None
    work: Work = field(default_factory=Work)
    prefix: Prefix | None = None
    sent_bytes: int = 0
    queued_bytes: int = 0
    sent_ms: float = 0.0
    lost_ms: float = 0.0
    answered_ms: float = 0.0
    message: Message | None = None
    decoded: Answer | None = None
    finish_began_ms: float = 0.0
    finished: Answer | None = None

    def result(self, complete: Complete, now_ms: float, meter: PowerMeter) -> Result:
        """What the application gets at ``now_ms``, on the clock of ``started_ms``."""
        decision = self.decision
        outputs, where, stages = self._outcome(complete)
        latency_ms = now_ms - self.started_ms
        measured = breakdown(latency_ms, stages)
        return Result(
            outputs=self.served.graph.unflatten(
                [to_numpy(outputs[slot]) for slot in self.served.graph.outputs]
            ),
            where=where,
            cut_index=decision.cut.index,
            cut=decision.cut.name,
            codec=decision.codec_label,
            uplink_bytes=self.sent_bytes,
            latency_ms=latency_ms,
            breakdown=measured,
            decision={**decision.as_dict(), "measured": measured},
            fallback=complete.fallback,
            energy_mj=meter.energy_mj(self.power_mark, self._activity(measured)),
            meter=meter.name,
        )

    def _activity(self, measured: Mapping[str, float]) -> Activity:
        """What the device did, for a meter that reckons; rates are measured where there was a span."""
        conditions = self.decision.conditions
        uplink_ms = measured.get(Stage.UPLINK, 0.0)
        busy_ms = sum(measured.get(stage, 0.0) for stage in BUSY)
        return Activity(
            busy_ms=busy_ms,
            idle_ms=sum(measured.values()) - busy_ms,
            uplink_bytes=self.sent_bytes,
            uplink_mbps=(self.sent_bytes * 0.008 / uplink_ms if uplink_ms else conditions.uplink_bps / 1e6),
            downlink_bytes=sum(each.payload_bytes for each in self.message.header.tensors)
            if self.message is not None
            else 0,
            downlink_mbps=conditions.downlink_bps / 1e6,
        )

    def _outcome(self, complete: Complete) -> tuple[Mapping[int, torch.Tensor], Where, dict[str, float]]:
        """Outputs by slot, who computed them, and the stages that were measured."""
        prefix = self.prefix
        assert prefix is not None
        stages: dict[str, float] = {
            Stage.QUEUE: prefix.wait_ms,
            Stage.DEVICE: prefix.compute_ms,
            Stage.ENCODE: prefix.encode_ms,
        }
        if complete.source is Source.CLOUD:
            assert self.decoded is not None
            assert self.message is not None
            stages |= cloud_stages(self.message, self.answered_ms - self.sent_ms)
            if self.lost_ms:
                stages["gave_up_after"] = self.lost_ms
            stages[Stage.RESULT_DECODE] = self.decoded.wait_ms + self.decoded.compute_ms
            return self.decoded.outputs, Where.SPLIT if self.decision.cut.edge_units else Where.CLOUD, stages
        if complete.fallback is None:
            return prefix.outputs, Where.DEVICE, stages
        assert self.finished is not None
        if self.sent_ms:
            stages["gave_up_after"] = self.finish_began_ms - self.sent_ms
        stages[Stage.QUEUE] += self.finished.wait_ms
        stages[Stage.DEVICE] += self.finished.compute_ms
        return self.finished.outputs, Where.DEVICE_FALLBACK, stages


def cloud_stages(message: Message, elapsed_ms: float) -> dict[str, float]:
    """From sending to the answer, as the cloud reports it; what it does not account for is the network.

    The cloud's clock may run a little fast: its durations are scaled down rather than sum to more.
    """
    header = message.header
    timings = header.timings
    stages: dict[str, float] = {
        Stage.UPLINK: header.span_ms,
        Stage.NETWORK: 0.0,
        Stage.WAIT: header.queue_ms + timings.wait_ms,
        Stage.DECODE: timings.decode_ms,
        Stage.CLOUD: timings.compute_ms,
        Stage.RESULT_ENCODE: timings.encode_ms,
    }
    told_ms = sum(stages.values())
    if told_ms > elapsed_ms:
        return {stage: ms * elapsed_ms / told_ms for stage, ms in stages.items()}
    stages[Stage.NETWORK] = elapsed_ms - told_ms
    return stages
