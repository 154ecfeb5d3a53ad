"""A network of a configuration: where it comes from, and what its plans are to be best at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.config.section import KeyPath, Section

__all__ = ["CalibrationConfig", "ModelConfig", "ModelSource", "ObjectiveConfig"]


class ModelSource(Section):
    """Where a network comes from: exactly one of ``zoo``, ``factory`` and ``bundle``.

    With none of them, ``name`` is looked up in the zoo.  ``transform_tables`` are what the transform codecs
    need; a bundle may hold its own.
    """

    name: str = Field(min_length=1, max_length=128)
    zoo: str | None = None
    factory: Annotated[str | None, Field(pattern=r"^[\w.]+:[\w.]+$")] = None
    bundle: Path | None = None
    transform_tables: KeyPath | None = Field(
        default=None, description="from `edge-agent fit`, the same on the device and in the cloud"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if sum(source is not None for source in (self.zoo, self.factory, self.bundle)) > 1:
            raise ValueError("give one of zoo, factory and bundle, not several")
        return self


class CalibrationConfig(Section):
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


class ObjectiveConfig(Section):
    """What plans minimise: ``latency``, the device's ``energy``, the period of a stream (``throughput``), or
    ``weighted`` prices.  A bare name stands for ``{minimise: name}``.  Or what they maximise: the
    ``fidelity`` of the answer, within ``deadline_ms``.

    ``energy`` may be held within ``deadline_ms``, ``latency`` within ``energy_mj``; ``throughput`` may be
    given the ``rate_hz`` to keep up with.
    """

    minimise: Literal["latency", "energy", "throughput", "weighted"] = "latency"
    maximise: Literal["fidelity"] | None = None
    deadline_ms: float | None = Field(default=None, gt=0)
    energy_mj: float | None = Field(default=None, gt=0)
    rate_hz: float | None = Field(default=None, gt=0)
    per_ms: float | None = Field(default=None, ge=0)
    per_mj: float | None = Field(default=None, ge=0)
    per_uplink_kb: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"maximise" if value == "fidelity" else "minimise": value}
        return value

    @model_validator(mode="after")
    def _only_what_applies(self) -> ObjectiveConfig:
        if self.maximise is not None and ("minimise" in self.model_fields_set or self.deadline_ms is None):
            raise ValueError("maximise: fidelity takes a deadline_ms, and no minimise beside it")
        applies = {
            "fidelity": {"deadline_ms"},
            "latency": {"energy_mj"},
            "energy": {"deadline_ms"},
            "throughput": {"rate_hz"},
            "weighted": {"per_ms", "per_mj", "per_uplink_kb"},
        }[self.maximise or self.minimise]
        chosen = {"minimise", "maximise"}
        given = {
            key for key in type(self).model_fields if key not in chosen and getattr(self, key) is not None
        }
        if given - applies:
            what = "maximise: fidelity" if self.maximise is not None else f"minimise: {self.minimise}"
            raise ValueError(
                f"{what} takes {', '.join(sorted(applies))}, not {', '.join(sorted(given - applies))}"
            )
        if self.minimise == "weighted" and not sum(getattr(self, key) or 0.0 for key in given):
            raise ValueError("weighted needs a price above 0: per_ms, per_mj or per_uplink_kb")
        return self


class ModelConfig(ModelSource):
    """A network on the device."""

    deadline_ms: float = Field(default=2000.0, gt=0)
    codecs: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="all that may be used; None: every codec"
    )
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
