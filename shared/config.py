"""What a person writes in YAML, checked by pydantic: unknown keys are errors, units are in the names.

Any value can be overridden by the environment: ``SUTURE_`` and the path of keys joined by ``__``, e.g.
``SUTURE_CLOUD__GATEWAY=tcp://10.0.0.5:5555`` for ``cloud: {gateway: ...}``.
"""

from __future__ import annotations

import os
import re
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from shared.errors import ConfigError

__all__ = [
    "AgentConfig",
    "AutoscaleConfig",
    "CalibrationConfig",
    "CloudConfig",
    "CloudLinkConfig",
    "GatewayConfig",
    "GatewayKeysConfig",
    "LinkKeysConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelSource",
    "ObjectiveConfig",
    "PowerConfig",
    "ServedModelConfig",
    "load_config",
    "parse_config",
]

_ENV_PREFIX = "SUTURE_"
_MAX_FILE_BYTES = 2**20
_MAX_ERRORS = 20

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSource(_Section):
    """Where a network comes from: exactly one of ``zoo``, ``factory`` and ``bundle``.

    With none of them, ``name`` is looked up in the zoo.
    """

    name: str = Field(min_length=1, max_length=128)
    zoo: str | None = None
    factory: Annotated[str | None, Field(pattern=r"^[\w.]+:[\w.]+$")] = None
    bundle: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if sum(source is not None for source in (self.zoo, self.factory, self.bundle)) > 1:
            raise ValueError("give one of zoo, factory and bundle, not several")
        return self


class CalibrationConfig(_Section):
    """Typical inputs: payload sizes and the accuracy gate are measured on them.

    Give a folder of files (images for an image network, .npy arrays for any network of one input) or a
    factory that returns a list of calls, each a tuple of arguments at batch 1.  With neither, inputs are
    made up from the network's example, and plans say so.
    """

    folder: Path | None = None
    factory: Annotated[str | None, Field(pattern=r"^[\w.]+:[\w.]+$")] = None
    samples: int = Field(default=16, ge=1, le=1024, description="at most so many inputs are used")

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationConfig:
        if self.folder is not None and self.factory is not None:
            raise ValueError("give folder or factory, not both")
        return self


class ObjectiveConfig(_Section):
    """What plans minimise: ``latency``, the device's ``energy``, the period of a stream (``throughput``), or
    ``weighted`` prices.  A bare name stands for ``{minimise: name}``.

    ``energy`` may be held within ``deadline_ms``, ``latency`` within ``energy_mj``; ``throughput`` may be
    given the ``rate_hz`` to keep up with.
    """

    minimise: Literal["latency", "energy", "throughput", "weighted"] = "latency"
    deadline_ms: float | None = Field(default=None, gt=0)
    energy_mj: float | None = Field(default=None, gt=0)
    rate_hz: float | None = Field(default=None, gt=0)
    per_ms: float | None = Field(default=None, ge=0)
    per_mj: float | None = Field(default=None, ge=0)
    per_uplink_kb: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"minimise": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_what_applies(self) -> ObjectiveConfig:
        applies = {
            "latency": {"energy_mj"},
            "energy": {"deadline_ms"},
            "throughput": {"rate_hz"},
            "weighted": {"per_ms", "per_mj", "per_uplink_kb"},
        }[self.minimise]
        given = {
            key for key in type(self).model_fields if key != "minimise" and getattr(self, key) is not None
        }
        if given - applies:
            raise ValueError(
                f"minimise: {self.minimise} takes {', '.join(sorted(applies))}, "
                f"not {', '.join(sorted(given - applies))}"
            )
        if self.minimise == "weighted" and not sum(getattr(self, key) or 0.0 for key in given):
            raise ValueError("weighted needs a price above 0: per_ms, per_mj or per_uplink_kb")
        return self


class PowerConfig(_Section):
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


class ModelConfig(ModelSource):
    """A network on the device."""

    deadline_ms: float = Field(default=2000.0, gt=0)
    codecs: list[str] | None = None
    min_agreement: float = Field(
        default=0.99, ge=0, le=1, description="lossy codecs below it are no candidates"
    )
    calibration: CalibrationConfig = CalibrationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    input_never_leaves: bool | str = Field(
        default=False,
        description="true: no cut before the input's resolution is gone; or the unit that must run here",
    )
    max_uplink_bytes: int | None = Field(default=None, ge=1, description="per request at batch 1")
    cut: int | None = Field(default=None, ge=0, description="always cut here while the cloud is there")
    hysteresis: float = Field(default=0.05, ge=0, lt=1)


def _absolute(path: Path) -> Path:
    # Ray's workers have another working directory than whoever wrote the path.
    return path.expanduser().absolute()


KeyPath = Annotated[Path, AfterValidator(_absolute)]


class LinkKeysConfig(_Section):
    """The device's key pair, and the gateway's public key, by which the device knows the gateway."""

    secret: KeyPath = Field(description="this device's NAME.key_secret, from `edge-agent keys new`")
    server: str = Field(description="the gateway's public key, or the path of its .key file")


class CloudLinkConfig(_Section):
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


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "suture"


class MetricsConfig(_Section):
    """Where a Prometheus server finds /metrics."""

    host: str = Field(default="127.0.0.1", description="another address lets other machines read them")
    port: int = Field(default=9464, ge=0, le=65535)


class AgentConfig(_Section):
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
    cache_dir: Path = Field(default_factory=_default_cache)
    profile_repeats: int = Field(default=10, ge=3)
    log: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _names_are_unique(self) -> AgentConfig:
        _require_unique([model.name for model in self.models])
        return self


class AutoscaleConfig(_Section):
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


class GatewayKeysConfig(_Section):
    """Who may connect.  Key files are those of `edge-agent keys new`.

    Of both pairs the gateway's machine needs the gateway's secret and the replicas' public file, and a
    machine with replicas the replicas' secret and the gateway's public file, in the same places.
    """

    secret: KeyPath = Field(description="the gateway's NAME.key_secret")
    devices: KeyPath = Field(description="a directory with one .key file for each device that is served")
    replicas: KeyPath = Field(description="the NAME.key_secret that all replicas share")


class GatewayConfig(_Section):
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


class CloudConfig(_Section):
    """What the Serve application takes, as a file or as arguments."""

    gateway: GatewayConfig = GatewayConfig()
    models: list[ServedModelConfig] = Field(min_length=1)
    cache_dir: Path = Field(default_factory=_default_cache)
    profile_repeats: int = Field(default=10, ge=3)
    log: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _names_are_unique(self) -> CloudConfig:
        _require_unique([model.label for model in self.models])
        return self


def _require_unique(names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"models named more than once: {', '.join(repeated)}")


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], path: str | Path, environ: Mapping[str, str] = os.environ) -> ConfigT:
    """Read, override from the environment and check a YAML file.

    Raises ConfigError naming the file, the key and the next step.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes, which no configuration is")
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    values = _from_yaml(text, str(path))
    return parse_config(cls, {} if values is None else values, str(path), environ)


def parse_config(
    cls: type[ConfigT], values: Any, origin: str, environ: Mapping[str, str] = os.environ
) -> ConfigT:
    """Check plain values as read from YAML; ``origin`` names them in errors.  Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} must hold a mapping of keys to values, not a {type(values).__name__}")
    try:
        return cls.model_validate(_overridden(cls, values, environ))
    except ValidationError as error:
        found = error.errors()
        lines = [f"  {_dotted(item['loc'])}: {_plainly(item)}" for item in found[:_MAX_ERRORS]]
        if len(found) > _MAX_ERRORS:
            lines.append(f"  and {len(found) - _MAX_ERRORS} more")
        raise ConfigError(f"{origin} is not valid:\n" + "\n".join(lines)) from error


def _from_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # What PyYAML's constructors raise on a tag with a value that it does not fit, or on deep nesting.
        raise ConfigError(f"{origin} has a value that YAML cannot read: {error!r}") from error


def _overridden(cls: type[BaseModel], values: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = dict(values)
    for variable in sorted(environ):
        path = variable.removeprefix(_ENV_PREFIX).lower().split("__")
        if not variable.startswith(_ENV_PREFIX) or path[0] not in cls.model_fields:
            continue
        section = merged
        for key in path[:-1]:
            inner = section.get(key) or {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{variable} overrides a key of {key}, which is a {type(inner).__name__}")
            section[key] = dict(inner)
            section = section[key]
        section[path[-1]] = _from_yaml(environ[variable], f"the environment variable {variable}")
    return merged


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part)[:80] for part in location) or "(top level)"


def _plainly(item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key; remove it, or compare with the commented files in configs/"
    if item["type"] == "missing":
        return "is required"
    # Aliases make a few lines of YAML stand for billions of values: never all of them in one text.
    return f"{item['msg']} (got {_SHORT.repr(item['input'])})"
