"""What an agent needs on this device: torch, a device that computes, a meter, a clock, a cache, a socket."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from edge_agent.checks import Check, Verdict
from edge_agent.goals import power_of
from edge_agent.power import choose_meter
from edge_agent.tensors import check_device
from shared.config import AgentConfig
from shared.errors import SutureError
from shared.models import resolve
from shared.wire.messages import ModelOffer

__all__ = ["device_checks", "model_checks"]

_FREE_BYTES = 500 * 2**20
"""A profile is small, the graph cache of a large network is not."""


def device_checks(config: AgentConfig) -> Iterator[Check]:
    yield _torch()
    yield _device(config)
    yield _power(config)
    yield _clock()
    yield _cache(config.cache_dir)
    yield _socket(config.socket)


def _torch() -> Check:
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    usable = f"{torch.cuda.device_count()} GPU(s) usable" if torch.cuda.is_available() else "no GPU usable"
    found = f"{torch.__version__} built {built}, {usable}, {os.cpu_count()} CPUs"
    if Path("/dev/nvhost-gpu").exists() and not torch.cuda.is_available():
        return Check(
            "torch",
            Verdict.WARNING,
            f"{found}, though this is a Jetson",
            "install this JetPack's PyTorch; the agent's user must be in the groups video and render",
        )
    return Check("torch", Verdict.OK, found)


def _device(config: AgentConfig) -> Check:
    try:
        check_device(config.device)
        if config.device != "cpu":
            # What is visible need not be usable: only running something tells.
            (torch.ones(8, device=config.device) * 2).sum().item()
    except SutureError as error:
        return Check("device", Verdict.FAILURE, config.device, str(error))
    except RuntimeError as error:
        return Check(
            "device",
            Verdict.FAILURE,
            f"{config.device} is there, but computes nothing: {error}",
            "see that driver and CUDA build fit, or set device: cpu",
        )
    threads = config.threads or torch.get_num_threads()
    if threads > (os.cpu_count() or threads):
        return Check(
            "device",
            Verdict.WARNING,
            f"{config.device}, {threads} threads on {os.cpu_count()} CPUs",
            "set threads: to the number of cores that the agent may use",
        )
    return Check("device", Verdict.OK, f"{config.device}, {threads} threads")


def _power(config: AgentConfig) -> Check:
    try:
        choice = choose_meter(config.power.meter, power_of(config.power), config.power.rail)
    except SutureError as error:
        return Check("power", Verdict.FAILURE, f"power.meter: {config.power.meter}", str(error))
    choice.meter.close()
    if choice.meter.name == "model":
        return Check(
            "power",
            Verdict.WARNING,
            choice.why,
            "energies are reckoned with power.busy_w and idle_w: set them to what this device draws",
        )
    return Check("power", Verdict.OK, choice.why)


def _clock() -> Check:
    resolution_s = time.get_clock_info("monotonic").resolution
    found = (
        f"monotonic to {resolution_s * 1e9:.0f} ns; {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}"
    )
    if resolution_s > 1e-4:
        return Check("clock", Verdict.WARNING, found, "stages shorter than that cannot be told apart")
    return Check("clock", Verdict.OK, found)


def _cache(directory: Path) -> Check:
    nearest = next(each for each in (directory, *directory.absolute().parents) if each.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check(
            "cache",
            Verdict.WARNING,
            f"{directory} cannot be written; every start measures again",
            f"give this user write access to {nearest}, or set cache_dir:",
        )
    free_bytes = shutil.disk_usage(nearest).free
    found = f"{directory}, {free_bytes / 2**30:.1f} GiB free"
    if free_bytes < _FREE_BYTES:
        return Check("cache", Verdict.WARNING, found, "make room, or set cache_dir: to another disk")
    return Check("cache", Verdict.OK, found)


def _socket(endpoint: str) -> Check:
    scheme, _, address = endpoint.partition("://")
    if scheme != "ipc":
        return Check("socket", Verdict.OK, endpoint)
    directory = Path(address).parent
    made_in = directory if directory.is_dir() else directory.parent  # the agent makes the last one itself
    if not made_in.is_dir():
        return Check(
            "socket", Verdict.FAILURE, f"there is no directory {made_in}", "create it, or set socket:"
        )
    if not os.access(made_in, os.W_OK | os.X_OK):
        return Check(
            "socket", Verdict.FAILURE, f"{made_in} cannot be written by this user", "set socket: elsewhere"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(address) == 0:
            return Check("socket", Verdict.OK, f"{endpoint}, an agent is serving there")
    return Check("socket", Verdict.OK, f"{endpoint}, free")


def model_checks(config: AgentConfig) -> Iterator[tuple[Check, ModelOffer | None]]:
    for model in config.models:
        name = f"model {model.name}"
        try:
            graph = resolve(model, config.cache_dir).captured.graph
        except SutureError as error:
            yield Check(name, Verdict.FAILURE, type(error).__name__, str(error)), None
            continue
        found = f"{len(graph.units)} units, {graph.weight_bytes / 1e6:.1f} MB of weights, {graph.digest[:15]}"
        yield Check(name, Verdict.OK, found), ModelOffer(name=model.name, digest=graph.digest)
