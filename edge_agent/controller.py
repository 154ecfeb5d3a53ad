"""Which cut and codec the next request gets.  A pure state machine: events in, decisions out.

Every event that changes what is known (a card, a load report, a span, a ping, measured stages, the link
going up or down) re-solves the plans that it concerns, so that :meth:`Controller.decide` hands out a
decision that is already made.  Time is an argument, in ms of one steady clock: the same events give the
same decisions again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_agent.decision import Decision
from edge_agent.estimate import LinkEstimate, LinkEstimator
from edge_agent.load_merge import LoadMerge
from edge_agent.patience import Patience
from edge_agent.planned import LATENCY, UNCONSTRAINED, LinkState, PlannedModel
from edge_agent.probing import ProbeBudget
from shared.codec import Codec
from shared.errors import PlanError, UnknownModelError
from shared.plan.constraints import Constraints
from shared.plan.energy import Power
from shared.plan.explain import Explanation
from shared.plan.gate import Gate
from shared.plan.objective import Objective
from shared.plan.profile import Profile
from shared.plan.rows import Rows
from shared.plan.stages import Stage

if TYPE_CHECKING:
    from shared.config import CloudLinkConfig
    from shared.graph.ir import Cut, Graph
    from shared.wire.messages import Limits, LoadReport, ModelCard

__all__ = ["Controller", "Decision"]

_LEAST_BACKLOG_MS = 1.0
"""Less work than this before a request is no queue that would be worth another plan."""


class Controller:
    """Decides for every network of one agent over one link.

    Not thread-safe: events and :meth:`decide` come from one thread.  ``load_period_ms`` is the period of a
    load feed that names none; a report older than three of its periods counts as unknown.

    What the feed says is told to all devices at once.  With ``patience_ms`` a plan that is to change for
    nothing else does so at a moment of the device's own (:class:`edge_agent.patience.Patience`), drawn
    from ``seed``; a deadline that the plan in use would miss waits for no moment.
    """

    def __init__(
        self,
        link: CloudLinkConfig,
        *,
        load_period_ms: float = 100.0,
        log_length: int = 512,
        patience_ms: float = 0.0,
        seed: int | None = None,
    ) -> None:
        self._patience_ms = patience_ms
        self._seed = seed
        self._loads = LoadMerge(load_period_ms)
        self._models: dict[str, PlannedModel] = {}
        self._link = LinkEstimator(link.assumed_uplink_mbps * 1e6, link.assumed_rtt_ms)
        self._probes = ProbeBudget(link.probe_bytes, link.probe_interval_s * 1000.0)
        self._connected = False
        self._max_message_bytes = math.inf
        self.log: deque[Decision] = deque(maxlen=log_length)
        """Every decision made, newest last."""
        self.switches: deque[Decision] = deque(maxlen=log_length)
        """Those that changed the cut or the codec, newest last."""

    def add_model(
        self,
        name: str,
        graph: Graph,
        profile: Profile,
        now_ms: float,
        *,
        codecs: Sequence[Codec] | None = None,
        hysteresis: float = 0.05,
        objective: Objective = LATENCY,
        constraints: Constraints = UNCONSTRAINED,
        gate: Gate | None = None,
        power: Power | None = None,
        tables: str = "",
    ) -> None:
        """Plan for one more network.

        ``codecs`` are all that may be used, as in ``constraints``; None allows those of FAITHFUL, and all
        that pass where there is a gate.
        ``power`` says what the device draws, for the energy of decisions; ``tables`` is the digest of the
        transform's tables, which are used with a cloud that holds the same.  Raises PlanError when the
        constraints are impossible.
        """
        if codecs is not None:
            constraints = replace(constraints, codecs=tuple(codecs))
        self._models[name] = PlannedModel(
            name,
            graph,
            profile,
            hysteresis=hysteresis,
            objective=objective,
            constraints=constraints,
            gate=gate,
            power=power,
            patience=Patience(self._patience_ms, self._seed),
            tables=tables,
        )
        self._solve([self._models[name]], now_ms)

    def on_measured(
        self,
        model: str,
        now_ms: float,
        *,
        profile: Profile | None = None,
        gate: Gate | None = None,
        wide_cuts: Sequence[Cut] | None = None,
    ) -> None:
        """A profile, a gate, or cuts of :func:`shared.plan.wide.widened_cuts` that are there since; None
        leaves what is there."""
        planned = self._model(model)
        planned.on_measured(profile, gate, wide_cuts)
        self._solve([planned], now_ms)

    # -- what is known of the link

    def on_connected(self, now_ms: float) -> None:
        """The link is up, for the first time or again; what it can do is to be measured anew."""
        self._connected = True
        self._loads.on_lost()
        self._link.on_reconnected()
        self._probes.on_doubt()
        for model in self._models.values():
            model.on_connected()
        self._solve_all(now_ms)

    def on_disconnected(self, now_ms: float) -> None:
        """The link is down: every plan is local until it is up."""
        self._connected = False
        self._solve_all(now_ms)

    def on_limits(self, limits: Limits, now_ms: float) -> None:
        """What the gateway accepts: larger payloads are no candidates."""
        self._max_message_bytes = float(limits.max_message_bytes)
        self._solve_all(now_ms)

    def on_span(self, span_bytes: int, span_ms: float, now_ms: float) -> None:
        """The arrival span of a probe or of a request's payload, as the gateway reported it."""
        before_bps, measured = self._link.uplink_bps, self._link.measured
        if self._link.on_span(span_bytes, span_ms, now_ms):
            sample_bps = span_bytes * 8000.0 / span_ms
            self._probes.on_sample(sample_bps, before_bps if measured else sample_bps, now_ms)
            self._solve_all(now_ms)
        else:
            self._probes.on_hint(span_bytes, span_ms, before_bps)

    def on_rtt(self, rtt_ms: float, now_ms: float) -> None:
        """The round trip of a small ping.  Leave out pings that were sent behind a payload of ours: they
        measure that payload."""
        self._link.on_rtt(rtt_ms, now_ms)
        self._solve_all(now_ms)

    def wants_probe(self, now_ms: float) -> int:
        """The bytes of the probe to send now, 0 for none.  Cheap: ask as often as a heartbeat."""
        if not self._connected:
            return 0
        return self._probes.due_bytes(self._link.uplink_bps, now_ms)

    def on_probe_sent(self, probe_bytes: int, now_ms: float) -> None:
        self._probes.on_sent(probe_bytes, now_ms)

    def link(self, now_ms: float) -> LinkEstimate:
        return self._link.estimate(now_ms)

    # -- what is known of the cloud

    def on_card(self, card: ModelCard, now_ms: float) -> None:
        """What the cloud offers for one network.  A card of a network that is not planned is ignored."""
        model = self._models.get(card.name)
        if model is not None:
            model.on_card(card)
            self._solve([model], now_ms)

    def on_gateway(self, gateway: str, now_ms: float) -> None:
        """The link leads to the gateway of this name: its wait is ours."""
        self._loads.on_gateway(gateway)
        self._tell_loads(self._models.values(), now_ms)

    def on_load(self, report: LoadReport, now_ms: float) -> None:
        """A frame of any gateway's load feed; one that is not newer than its newest is ignored."""
        if self._loads.on_report(report, now_ms):
            named = {load.name for load in report.models}
            self._tell_loads([model for name, model in self._models.items() if name in named], now_ms)

    def _tell_loads(self, models: Iterable[PlannedModel], now_ms: float) -> None:
        for model in models:
            merged = self._loads.of(model.name, model.is_load_of, now_ms)
            if merged is not None:
                model.on_load(merged)
                self._solve([model], now_ms)

    # -- what became of requests

    def on_timings(self, decision: Decision, measured: Mapping[Stage, float], now_ms: float) -> None:
        """The stages of a request that went as decided, also when its answer came too late to be used.

        Stages that were not measured are left out, ``overhead`` too unless all sum to the latency.  The
        uplink's span goes to :meth:`on_span` as well; here it counts for the prediction error only.
        """
        model = self._model(decision.model)
        downloaded = False
        if Stage.NETWORK in measured and not decision.is_local:
            result_bytes = round(float(decision.rows.result_bytes[decision.row]) * decision.conditions.batch)
            crossing_ms = measured[Stage.NETWORK] + measured.get(Stage.DOWNLINK, 0.0)
            explained_ms = decision.conditions.rtt_ms + model.corrections.network_ms(now_ms)
            downloaded = self._link.on_download(result_bytes, crossing_ms - explained_ms)
        model.corrections.observe(decision, measured, now_ms, downloaded=downloaded)
        if Stage.CLOUD in measured and not decision.is_local:
            cloud_ms = measured[Stage.CLOUD] + measured.get(Stage.DECODE, 0.0)
            model.on_answered(sum(measured.values()), cloud_ms, now_ms)
        self._solve([model], now_ms)

    def on_overdue(self, decision: Decision, elapsed_ms: float, now_ms: float, queued_bytes: int = 0) -> None:
        """A request has no answer ``elapsed_ms`` after it was handed to the link, behind ``queued_bytes``
        of others.  Tell this when the device takes over or gives up.

        Had everything but the uplink gone as predicted, the payload would be the cause: the uplink is
        believed to be that slow at most.  When that explains nothing, or it happens again, remote rows
        are charged the delay for some seconds, longer each time.
        """
        model = self._model(decision.model)
        late_ms = elapsed_ms - decision.remote_ms
        if decision.is_local or late_ms <= 0:
            return
        upload_ms = late_ms + decision.predicted[Stage.UPLINK]
        explained = self._link.on_stalled(decision.payload_bytes + queued_bytes, upload_ms)
        model.caution.on_late(late_ms, explained, now_ms - elapsed_ms, now_ms)
        if explained:
            self._probes.on_doubt()
        self._solve_all(now_ms)

    def on_refused(self, model: str, retry_after_ms: float, now_ms: float) -> None:
        """The cloud would not take a request: the network stays local for as long as it said, or for a
        time that doubles with every refusal."""
        planned = self._model(model)
        planned.caution.on_refused(retry_after_ms, now_ms)
        self._solve([planned], now_ms)

    def reseed(self, seed: int) -> None:
        """Moments of another device from now on: for a copy that is to stand for a second one."""
        self._seed = seed
        for model in self._models.values():
            model.patience = Patience(self._patience_ms, seed)

    def next_moment_ms(self, model: str, now_ms: float) -> float:
        """When the network may next act on the load alone; may have passed."""
        return self._model(model).patience.next_ms(now_ms)

    # -- decisions

    def decide(
        self,
        model: str,
        now_ms: float,
        deadline_ms: float | None = None,
        batch: int = 1,
        objective: Objective | None = None,
        backlog_ms: float = 0.0,
    ) -> Decision:
        """The decision for a request that starts now, while ``backlog_ms`` of work wait for the device.

        With ``deadline_ms`` left, a row that is predicted to meet it is preferred to the plan in use that
        would not; the fastest row when none does.  ``objective`` replaces the model's for this request.
        Raises UnknownModelError, and PlanError when ``objective`` sets a limit that no row keeps.
        """
        planned = self._model(model)
        link: LinkState | None = None
        decision = planned.decision
        if decision is None or not planned.is_valid(now_ms):
            link = self._link_state(now_ms)
            decision = self._solve_one(planned, link, now_ms)
        if not planned.graph.dynamic_batch:
            batch = 1
        if backlog_ms < _LEAST_BACKLOG_MS:
            backlog_ms = 0.0
        if batch != 1 or objective is not None or backlog_ms:
            link = link or self._link_state(now_ms)
            decision = planned.solve_once(
                link, now_ms, batch=batch, objective=objective, backlog_ms=backlog_ms
            )
        if deadline_ms is not None and decision.predicted_ms > deadline_ms:
            link = link or self._link_state(now_ms)
            decision = planned.solve_once(
                link,
                now_ms,
                batch=batch,
                objective=objective,
                backlog_ms=backlog_ms,
                deadline_ms=deadline_ms,
            )
        return decision

    def pin(self, model: str, cut: int | Cut, codec: Codec | tuple[Codec, ...] = Codec.FLOAT32) -> None:
        """Always choose this cut and codec while the cloud can be reached; or one codec for each tensor of
        the cut, as in :meth:`shared.plan.rows.Rows.codecs_of`.  Raises PlanError when the network has no
        such cut or row, or when a constraint excludes it."""
        planned = self._model(model)
        if isinstance(cut, int):
            if not 0 <= cut < len(planned.graph.cuts):
                raise PlanError(f"{model} has cuts 0 to {len(planned.graph.cuts) - 1}, not {cut}")
            cut = planned.graph.cuts[cut]
        planned.pin(cut, *(codec if isinstance(codec, tuple) else (codec,)))

    def unpin(self, model: str) -> None:
        self._model(model).unpin()

    def rows(self, model: str) -> Rows:
        """The candidates of a network as they are known now."""
        return self._model(model).rows

    def explain(self, model: str, now_ms: float) -> Explanation:
        """Every candidate of a network stage by stage, and where the next switches lie.

        Takes milliseconds.  Its winner is the optimum of now; hysteresis or a pin may hold another plan.
        """
        return self._model(model).explain(self._link_state(now_ms), now_ms)

    def prediction_error(self, model: str) -> float | None:
        """The median of |predicted - measured| / measured over the last requests; None before the first."""
        return self._model(model).corrections.prediction_error

    def _model(self, name: str) -> PlannedModel:
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(self._models) or "none"
            raise UnknownModelError(f"no network {name!r} on this device; it has: {known}") from None

    def _link_state(self, now_ms: float) -> LinkState:
        estimate = self._link.estimate(now_ms)
        return LinkState(self._connected, estimate, self._max_message_bytes)

    def _solve_all(self, now_ms: float) -> None:
        self._solve(self._models.values(), now_ms)

    def _solve(self, models: Iterable[PlannedModel], now_ms: float) -> None:
        link = self._link_state(now_ms)
        for model in models:
            self._solve_one(model, link, now_ms)

    def _solve_one(self, model: PlannedModel, link: LinkState, now_ms: float) -> Decision:
        decision, switched = model.solve(link, now_ms)
        self.log.append(decision)
        if switched:
            self.switches.append(decision)
        return decision
