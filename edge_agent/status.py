"""The state of a running agent as plain values: what ``edge-agent top`` and ``edge-agent infer`` ask for."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.agent import EdgeAgent

__all__ = ["agent_status"]


def agent_status(agent: EdgeAgent, *, with_labels: bool = False) -> dict[str, Any]:
    """JSON values; what is not known yet is None.

    ``with_labels`` adds the names of a classifier's classes, which can be many.  Times are ms, rates Mbps,
    sizes bytes, energy mJ; ages are since the newest measurement.
    """
    return {
        "agent": agent.config.name,
        "software": f"suture {version('suture')}",
        "device": agent.config.device,
        "socket": agent.config.socket,
        "up_s": agent.up_s,
        "link": {"state": str(agent.link_state), "reason": agent.link_reason},
        "in_flight": agent.pipeline.in_flight,
        "models": [_model(agent, name, with_labels) for name in agent.models],
    }


def _model(agent: EdgeAgent, name: str, with_labels: bool) -> dict[str, Any]:
    model, graph = agent.models[name], agent.graph(name)
    batch = 1 if graph.dynamic_batch else graph.captured_batch
    found: dict[str, Any] = {
        "name": name,
        "digest": graph.digest,
        "inputs": [
            {"dtype": spec.dtype.label, "shape": list(spec.shape)}
            for spec in graph.specs(graph.inputs, batch)
        ],
        "any_batch": graph.dynamic_batch,
        "input_form": model.input_form,
        "units": [unit.name for unit in graph.units],
        "plan": agent.decision(name).as_dict(),
        "prediction_error": agent.prediction_error(name),
        **agent.counters(name).as_dict(),
    }
    if with_labels:
        found["labels"] = None if model.labels is None else list(model.labels)
    return found
