"""The configuration of an agent."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.config.model import ModelConfig
from shared.config.section import KeyPath, Section, default_cache, require_unique

__all__ = ["AgentConfig", "CloudLinkConfig", "LinkKeysConfig", "MetricsConfig", "PowerConfig"]


class PowerConfig(Section):
    """What the device draws, for plans and for the model meter; measure your own with a power meter.

    The defaults are those of a small single-board computer, and ``link`` names the radio of
    :mod:`shared.plan.radio`.
    """

    busy_w: float = Field(default=5.0, ge=0)
    idle_w: float = Field(default=1.5, ge=0)
    link: Literal["wired", "wifi", "lte", "3g", "lte-modern", "5g-low-band", "5g-mmwave"] = "wired"
    meter: Literal["auto", "ina3221", "rapl", "model"] = Field(
        default="auto", description="what measures energy; auto: what the hardware has, else the model"
    )
    rail: str | None = Field(default=None, description="label of the Jetson rail to measure; None: the board")

    @model_validator(mode="after")
    def _idle_is_less(self) -> PowerConfig:
        if self.idle_w > self.busy_w:
            raise ValueError(f"idle_w {self.idle_w} is more than busy_w {self.busy_w}")
        return self


class LinkKeysConfig(Section):
    """The device's key pair, and the gateway's public key, by which the device knows the gateway."""

    secret: KeyPath = Field(description="this device's NAME.key_secret, from `edge-agent keys new`")
    server: str = Field(description="the gateway's public key, or the path of its .key file")


class CloudLinkConfig(Section):
    """How the device reaches the cloud.  Without ``keys`` nothing is encrypted."""

    gateway: str | Annotated[list[str], Field(min_length=1, max_length=64)] = Field(
        default="tcp://127.0.0.1:5555", description="or a list; a name stands for all of its addresses"
    )
    keys: LinkKeysConfig | None = None
    load_feed: str | list[str] | None = Field(
        default=None, description="or a list; taken from the gateway's card when left out"
    )
    heartbeat_ms: float = Field(default=100.0, gt=0)
    heartbeat_timeout_ms: float = Field(default=300.0, gt=0)
    reconnect_min_ms: float = Field(default=100.0, gt=0)
    reconnect_max_ms: float = Field(default=2000.0, gt=0)
    probe_interval_s: float = Field(default=2.0, gt=0, description="idle time before an active probe")
    probe_bytes: int = Field(default=32_768, ge=0, le=1_048_576, description="0 turns active probes off")
    patience_ms: float = Field(
        default=2000.0, ge=0, description="before a plan follows the load feed alone, on average; 0: at once"
    )
    assumed_uplink_mbps: float = Field(default=10.0, gt=0, description="until the first measurement")
    assumed_rtt_ms: float = Field(default=20.0, ge=0, description="until the first measurement")

    @property
    def gateways(self) -> list[str]:
        return [self.gateway] if isinstance(self.gateway, str) else self.gateway

    @property
    def load_feeds(self) -> list[str]:
        """Empty when they are to be taken from the gateway's card."""
        return [self.load_feed] if isinstance(self.load_feed, str) else self.load_feed or []


def _default_socket() -> str:
    # In a directory that is this user's alone: in /tmp itself another user's socket could be there first.
    own = os.environ.get("XDG_RUNTIME_DIR") or f"{tempfile.gettempdir()}/suture-{os.getuid()}"
    return f"ipc://{own}/suture-agent.sock"


def _mode(value: Any) -> Any:
    # YAML reads 0660 as a number in octal; in JSON it can only be text.
    return int(value, 8) if isinstance(value, str) and re.fullmatch("0?o?[0-7]{3}", value) else value


def _who_may_connect(mode: int) -> int:
    if mode not in (0o600, 0o660, 0o666):
        raise ValueError("one of 0600 (this user), 0660 (its group too) and 0666 (everyone on this device)")
    return mode


SocketMode = Annotated[int, BeforeValidator(_mode), AfterValidator(_who_may_connect)]


class MetricsConfig(Section):
    """Where a Prometheus server finds /metrics."""

    host: str = Field(default="127.0.0.1", description="another address lets other machines read them")
    port: int = Field(default=9464, ge=0, le=65535)


class AgentConfig(Section):
    """The whole of an ``edge-agent --config`` file."""

    name: str = "edge"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, description="torch threads; None: torch's own choice")
    socket: str = Field(default_factory=_default_socket, pattern=r"^(ipc|tcp)://")
    socket_mode: SocketMode = Field(default=0o600, description="who may use an ipc socket")
    socket_token_file: KeyPath | None = Field(
        default=None, description="who can read it may use a tcp socket; made if missing"
    )
    metrics: MetricsConfig | None = None
    drain_s: float = Field(default=5.0, ge=0, description="for requests in flight when the agent is stopped")
    cloud: CloudLinkConfig = CloudLinkConfig()
    power: PowerConfig = PowerConfig()
    models: list[ModelConfig] = Field(min_length=1)
    max_in_flight: int = Field(default=32, ge=1)
    max_in_flight_bytes: int = Field(default=256 * 2**20, ge=1)
    cache_dir: Path = Field(default_factory=default_cache)
    profile_repeats: int = Field(default=10, ge=3)
    log: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _names_are_unique(self) -> AgentConfig:
        require_unique([model.name for model in self.models])
        return self
