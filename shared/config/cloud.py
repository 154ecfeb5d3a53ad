"""The configuration of the Serve application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.config.model import CalibrationConfig, ModelSource
from shared.config.section import KeyPath, Section, default_cache, require_unique

__all__ = ["AutoscaleConfig", "CloudConfig", "GatewayConfig", "GatewayKeysConfig", "ServedModelConfig"]


class AutoscaleConfig(Section):
    """How many replicas of a network there are, by its load; with ``min_replicas: 0`` none while nobody asks.

    A replica is added before work waits longer than ``target_queue_ms``, once the load has asked for it for
    ``upscale_delay_s``, and leaves once it was not needed for ``downscale_delay_s``.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(ge=1)
    target_queue_ms: float = Field(default=100.0, gt=0)
    upscale_delay_s: float = Field(default=2.0, ge=0)
    downscale_delay_s: float = Field(default=30.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> AutoscaleConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}"
            )
        return self


class ServedModelConfig(ModelSource):
    """A network in the cloud.

    ``version`` tells two networks of one name apart while devices move from one to the other: each has
    replicas of its own.
    """

    version: str = Field(default="", max_length=64)
    replicas: int = Field(default=1, ge=0, description="with autoscale: leave it out")
    autoscale: AutoscaleConfig | None = None
    num_cpus: float = Field(default=0.5, gt=0, description="what Ray reserves for one replica")
    num_gpus: float = Field(default=0.0, ge=0)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int | None = Field(default=None, ge=1, description="torch threads; None: the whole of num_cpus")
    credits: int = Field(default=2, ge=1, description="requests that a replica holds at once, or more")
    max_batch: int = Field(default=8, ge=1, le=256, description="samples that may run together; 1: never")
    max_queue: int = Field(default=256, ge=1)
    precision: Literal["auto", "float32", "float16"] = Field(
        default="float32", description="auto: float16 on a GPU, where min_agreement is shown to be kept"
    )
    min_agreement: float = Field(default=0.99, ge=0, le=1, description="of float16 with float32")
    calibration: CalibrationConfig = CalibrationConfig()
    surge_percent: int = Field(
        default=25,
        ge=0,
        le=100,
        description="replicas that may start before outdated ones leave, rounded up; 0: where none has room",
    )
    handover_s: float = Field(
        default=60.0, ge=0, description="how long a replaced network serves on while devices still hold it"
    )

    @model_validator(mode="after")
    def _fixed_or_autoscaled(self) -> ServedModelConfig:
        if self.autoscale is not None and "replicas" in self.model_fields_set:
            raise ValueError("give replicas or autoscale, not both")
        return self

    @model_validator(mode="after")
    def _half_on_cuda_only(self) -> ServedModelConfig:
        if self.precision == "float16" and self.device == "cpu":
            raise ValueError("precision float16 needs device: cuda; on a CPU it is slower and less exact")
        return self

    @property
    def label(self) -> str:
        """The name, and the version where there is one."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def torch_threads(self) -> int:
        """At least one, and no more than Ray reserves cpus for."""
        return self.threads or max(int(self.num_cpus), 1)

    @property
    def first_replicas(self) -> int:
        """How many replicas there are at the start."""
        return self.replicas if self.autoscale is None else self.autoscale.min_replicas


class GatewayKeysConfig(Section):
    """Who may connect.  Key files are those of `edge-agent keys new`.

    Of both pairs the gateway's machine needs the gateway's secret and the replicas' public file, and a
    machine with replicas the replicas' secret and the gateway's public file, in the same places.
    """

    secret: KeyPath = Field(description="the gateway's NAME.key_secret")
    devices: KeyPath = Field(description="a directory with one .key file for each device that is served")
    replicas: KeyPath = Field(description="the NAME.key_secret that all replicas share")


class GatewayConfig(Section):
    replicas: int = Field(default=1, ge=1, description="gateways, one for each node of the Ray cluster")
    host: str = "127.0.0.1"
    device_port: int = Field(default=5555, ge=0, le=65535, description="0 takes a free port")
    replica_port: int = Field(default=5556, ge=0, le=65535)
    load_port: int = Field(default=5557, ge=0, le=65535)
    keys: GatewayKeysConfig | None = None
    insecure: bool = Field(default=False, description="serve other machines although anyone may connect")
    num_cpus: float = Field(default=0.2, gt=0)
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="custom resources of Ray that a gateway's node must have"
    )
    bind_retry_s: float = Field(default=10.0, ge=0)
    load_period_ms: float = Field(default=100.0, gt=0)
    max_devices: int = Field(default=1024, ge=1)
    max_in_flight: int = Field(default=32, ge=1, description="per device")
    max_in_flight_bytes: int = Field(default=64 * 2**20, ge=1, description="per device")
    max_bytes: int = Field(default=2**30, ge=1, description="of all admitted requests of this gateway")
    max_parked_bytes: int = Field(
        default=256 * 2**20, ge=1, description="of all messages that have not arrived whole, per port"
    )
    max_message_bytes: int = Field(default=32 * 2**20, ge=1)
    heartbeat_ms: float = Field(default=100.0, gt=0)
    heartbeat_timeout_ms: float = Field(default=300.0, gt=0)
    device_silence_s: float = Field(default=10.0, gt=0, description="after which a device counts as gone")


class CloudConfig(Section):
    """What the Serve application takes, as a file or as arguments."""

    gateway: GatewayConfig = GatewayConfig()
    models: list[ServedModelConfig] = Field(min_length=1)
    cache_dir: Path = Field(default_factory=default_cache)
    profile_repeats: int = Field(default=10, ge=3)
    log: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _names_are_unique(self) -> CloudConfig:
        require_unique([model.label for model in self.models])
        return self
