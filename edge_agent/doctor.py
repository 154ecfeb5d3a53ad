"""``edge-agent doctor``: everything that an agent needs on this device and beyond it, looked at once.

Each check says what it found and, where something is amiss, what to do; none of them changes anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from edge_agent.checks import Check, Verdict
from edge_agent.cloud_checks import gateway_checks, key_check, reach_checks
from edge_agent.device_checks import device_checks, model_checks
from edge_agent.scout import visit_gateway
from shared.config import AgentConfig

__all__ = ["examine"]

_VISIT_S = 5.0


def examine(config: AgentConfig) -> Iterator[Check]:
    """All checks, each as soon as it is done; seconds in all, most of them to load the networks."""
    yield from device_checks(config)
    offers = []
    for check, offer in model_checks(config):
        yield check
        if offer is not None:
            offers.append(offer)
    keys = key_check(config)
    yield keys
    yield from reach_checks(config)
    if keys.verdict is not Verdict.FAILURE:
        visit = asyncio.run(visit_gateway(config.cloud, config.name, offers, _VISIT_S))
        yield from gateway_checks(config, visit, offers)
