"""What an agent needs beyond the device: keys, a gateway that answers, and the same networks there."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from edge_agent.checks import Check, Verdict
from edge_agent.keys import LinkKeys
from edge_agent.scout import Visit
from shared.config import AgentConfig
from shared.errors import SutureError
from shared.wire.messages import ModelOffer

__all__ = ["gateway_checks", "key_check", "reach_checks"]

_CONNECT_S = 3.0


def reach_checks(config: AgentConfig) -> Iterator[Check]:
    """Whether each gateway's port takes connections, which a firewall or a wrong address prevents."""
    gateways = config.cloud.gateway
    for endpoint in [gateways] if isinstance(gateways, str) else gateways:
        yield _reachable(endpoint)


def key_check(config: AgentConfig) -> Check:
    if config.cloud.keys is None:
        return Check("keys", Verdict.OK, "none: nothing is encrypted, as a gateway on this machine allows")
    try:
        LinkKeys.load(config.cloud.keys)
    except SutureError as error:
        return Check("keys", Verdict.FAILURE, str(config.cloud.keys.secret), str(error))
    return Check(
        "keys", Verdict.OK, f"{config.cloud.keys.secret}, for a gateway with {config.cloud.keys.server}"
    )


def _reachable(endpoint: str) -> Check:
    host, _, port = endpoint.partition("://")[2].rpartition(":")
    began_s = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S):
            took_ms = (time.monotonic() - began_s) * 1e3
    except socket.gaierror as error:
        return Check(
            "reach", Verdict.FAILURE, f"{endpoint}: {error.strerror}", "check the name and the DNS here"
        )
    except TimeoutError:
        return Check(
            "reach",
            Verdict.FAILURE,
            f"{endpoint}: no answer in {_CONNECT_S:.0f} s",
            "a firewall drops it, or the address is wrong; open the gateway's device_port",
        )
    except OSError as error:
        remedy = (
            "the machine is there, but no gateway listens: start the cloud, or correct the port"
            if error.errno == errno.ECONNREFUSED
            else "check the network of this device"
        )
        return Check("reach", Verdict.FAILURE, f"{endpoint}: {error.strerror}", remedy)
    return Check("reach", Verdict.OK, f"{endpoint} in {took_ms:.1f} ms")


def gateway_checks(config: AgentConfig, visit: Visit, offers: Sequence[ModelOffer]) -> Iterator[Check]:
    if visit.card is None:
        yield Check(
            "gateway",
            Verdict.FAILURE,
            visit.problem or "no answer",
            "the agent computes everything here until this is mended; see also the gateway's log",
        )
        return
    here, there = f"suture {version('suture')}", visit.card.software
    same = here == there
    yield Check(
        "gateway",
        Verdict.OK if same else Verdict.WARNING,
        f"{visit.card.gateway}, {there}, {'encrypted' if config.cloud.keys else 'not encrypted'}",
        "" if same else f"this is {here}: update the older of the two",
    )
    rtt = f"round trip {visit.link.rtt_ms:.1f} ms" if visit.rtt_measured else "round trip not measured"
    uplink = f"{visit.link.uplink_bps / 1e6:.3g} Mbps up" if visit.uplink_measured else "uplink not measured"
    loaded = "load feed heard" if visit.loads else "no load feed"
    yield Check(
        "link",
        Verdict.OK if visit.loads else Verdict.WARNING,
        f"{rtt}, {uplink}, {loaded}",
        "" if visit.loads else "open the gateway's load_port, or set cloud.load_feed behind a relay",
    )
    for offer in offers:
        yield _offered(offer, visit)


def _offered(offer: ModelOffer, visit: Visit) -> Check:
    name = f"cloud {offer.name}"
    card = visit.model(offer.name)
    if card is None:
        return Check(name, Verdict.WARNING, "not served there", "list it under models: of the cloud, too")
    if card.error or (card.digest and card.digest != offer.digest):
        found = card.error or f"another network: {card.digest[:15]} there, {offer.digest[:15]} here"
        return Check(
            name, Verdict.FAILURE, found, "give both sides the same bundle, or the same code and weights"
        )
    if not card.replicas:
        return Check(
            name, Verdict.WARNING, "no replica is ready", "wait for it to start, or see the cloud's log"
        )
    return Check(name, Verdict.OK, f"the same network, {card.replicas} replica(s) ready")
