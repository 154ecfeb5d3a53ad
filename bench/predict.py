"""How well are unit times predicted for a network that was never profiled?

``python -m bench.predict --json FILE [--quick]``.  Every network of the zoo is measured unit by unit, and
so is the sweep that ``edge-agent calibrate`` fits its predictor on.  Each network is then predicted

* ``others``: from the units of all other networks, leaving its own out;
* ``plain``: from the same units by plain least squares, signs and absolute errors as they come;
* ``sweep``: from the sweep alone, as on a device that has run none of the networks;
* ``plain_sweep``: from the sweep by plain least squares.

An error is ``|predicted - measured| / measured``, of a unit or of a network's sum of units.  What an error
costs is another matter: ``regret`` is how much longer a request takes when its cut is chosen by predicted
device times, on a device DEVICE_SLOWDOWN times slower than the cloud, over links of UPLINKS_MBPS with a
round trip of RTT_MS, payloads as they are; the mean over the links.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.contract import Bench
from shared import zoo
from shared.graph.capture import capture
from shared.graph.run import load
from shared.plan.features import unit_features
from shared.plan.predict import (
    Fit,
    Predictor,
    PredictorKey,
    Regression,
    Sample,
    as_regression,
    design,
    fit_predictor,
    fit_relative,
    least_squares,
)
from shared.plan.sweep import run_sweep, sweep_size

_QUICK = ("mnist", "senna-pos", "senna-ner", "mobilenetv2", "googlenet", "vit-tiny")
_WARM_UP = 2

WAYS = ("others", "plain", "sweep", "plain_sweep")
PLAIN_OF = {"others": "plain", "sweep": "plain_sweep"}
DEVICE_SLOWDOWN = 5.0
UPLINKS_MBPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
RTT_MS = 10.0
MOST_NOISE = 0.25

Errors = dict[str, dict[str, list[float]]]
Array = NDArray[np.float64]


class Measured(NamedTuple):
    """A network's units as measured, and the bytes that each of its cuts sends.

    Every network is measured in two passes minutes apart, and the quieter pass counts; ``noise`` is by how
    much the other one took longer.
    """

    samples: list[Sample]
    cut_bytes: list[int]
    noise: float = 0.0

    @property
    def ms(self) -> float:
        return sum(sample.ms for sample in self.samples)

    def quieter(self, other: Measured) -> Measured:
        low, high = sorted((self, other), key=lambda measured: measured.ms)
        return low._replace(noise=high.ms / low.ms - 1)


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench(
        "predict",
        argv,
        description="error of predicted unit times, one network left out at a time",
        arguments=lambda parser: parser.add_argument("--threads", type=int, default=1),
    )
    torch.set_num_threads(bench.options.threads)
    share, repeats = (0.1, 3) if bench.quick else (1.0, 8)
    networks = _QUICK if bench.quick else zoo.names()
    bench.config = {"threads": bench.options.threads, "sweep_share": share, "repeats": repeats}
    first = {name: measure(name, repeats) for name in bench.track(networks, "measuring the zoo")}
    swept = _sweep(bench, share, repeats)
    measured = {
        name: measure(name, repeats).quieter(first[name])
        for name in bench.track(networks, "measuring the zoo again")
    }
    key = PredictorKey("cpu", bench.options.threads, str(torch.__version__))
    evaluate(bench, measured, swept, key)
    return bench.finish()


def measure(name: str, repeats: int) -> Measured:
    """Features and median time of every unit of a zoo network, fused, batch 1."""
    network = zoo.build(name)
    captured = capture(network.module, network.args, network.kwargs, name=name)
    leaves = captured.graph.flatten(network.args, network.kwargs)
    times = load(captured).unit_times(leaves, _WARM_UP + repeats)
    graph = captured.graph
    samples = [
        Sample(features, statistics.median(taken[_WARM_UP:]))
        for features, taken in zip(unit_features(graph), times, strict=True)
    ]
    return Measured(samples, [sum(spec.nbytes for spec in graph.live_specs(cut, 1)) for cut in graph.cuts])


def _sweep(bench: Bench, share: float, repeats: int) -> list[Sample]:
    bench.console.print(f"sweeping {sweep_size(share)} random networks")
    return run_sweep(seed=bench.seed, share=share, repeats=repeats)


def plain_fit(samples: Sequence[Sample]) -> Regression:
    """What is commonly done: least squares of the times themselves."""
    return as_regression(samples, least_squares(*design(samples)))


def predictors(
    measured: dict[str, Measured], held_out: str, swept: dict[str, Predictor], key: PredictorKey
) -> dict[str, Predictor]:
    """The ways of predicting ``held_out``; none has seen it."""
    others = [sample for name, known in measured.items() if name != held_out for sample in known.samples]

    def fitted(fit: Fit) -> Predictor:
        return fit_predictor(others, key, fit)

    return {"others": fitted(fit_relative), "plain": fitted(plain_fit), **swept}


def regret(measured: Measured, predicted_ms: Sequence[float]) -> float:
    """Time lost by choosing cuts on predicted device times, relative to the best cut; mean over links."""
    cloud_ms = np.array([sample.ms for sample in measured.samples])
    lost = []
    for uplink_mbps in UPLINKS_MBPS:
        true = _latency(cloud_ms * DEVICE_SLOWDOWN, cloud_ms, measured.cut_bytes, uplink_mbps)
        believed = _latency(
            np.array(predicted_ms) * DEVICE_SLOWDOWN, cloud_ms, measured.cut_bytes, uplink_mbps
        )
        lost.append(float(true[np.argmin(believed)] / true.min() - 1))
    return statistics.mean(lost)


def _latency(device_ms: Array, cloud_ms: Array, cut_bytes: Sequence[int], uplink_mbps: float) -> Array:
    """Of every cut, in ms; the last stays on the device."""
    before = np.concatenate(([0.0], np.cumsum(device_ms)))
    after = np.concatenate(([0.0], np.cumsum(cloud_ms[::-1])))[::-1]
    transfer = np.array(cut_bytes) * 8 / (uplink_mbps * 1000) + RTT_MS
    transfer[-1] = 0.0
    return before + transfer + after


def evaluate(bench: Bench, measured: dict[str, Measured], swept: Sequence[Sample], key: PredictorKey) -> None:
    """Add a row for each type of unit and each network, and the targets."""
    from_sweep = {"sweep": fit_predictor(swept, key), "plain_sweep": fit_predictor(swept, key, plain_fit)}
    by_type: Errors = {}
    by_network: Errors = {}
    whole: Errors = {}
    lost: Errors = {}
    negative = dict.fromkeys(WAYS, 0)
    for name, network in measured.items():
        samples = network.samples
        total = network.ms
        for way, predictor in predictors(measured, name, from_sweep, key).items():
            predicted = [predictor.ms(sample.features) for sample in samples]
            errors = [abs(ms - sample.ms) / sample.ms for ms, sample in zip(predicted, samples, strict=True)]
            for sample, error in zip(samples, errors, strict=True):
                by_type.setdefault(sample.features.type, {}).setdefault(way, []).append(error)
            by_network.setdefault(name, {})[way] = errors
            whole.setdefault(name, {})[way] = [abs(sum(predicted) - total) / total]
            lost.setdefault(name, {})[way] = [regret(network, predicted)]
            negative[way] += sum(ms < 0 for ms in predicted)
    _report_types(bench, measured, by_type)
    for name, network in measured.items():
        bench.row(
            network=name,
            units=len(network.samples),
            measured_ms=network.ms,
            noise=network.noise,
            **{f"unit_{way}": statistics.median(by_network[name][way]) for way in WAYS},
            **{f"whole_{way}": whole[name][way][0] for way in WAYS},
            **{f"regret_{way}": lost[name][way][0] for way in WAYS},
            errors=by_network[name],
        )
    _promise(bench, by_network, whole, lost, negative)
    noise = statistics.median(network.noise for network in measured.values())
    if noise > MOST_NOISE:
        bench.unsound(
            f"a network's time changed by {noise:.0%} between two passes: something else was running"
        )


def _report_types(bench: Bench, measured: dict[str, Measured], by_type: Errors) -> None:
    spent: dict[str, float] = {}
    for network in measured.values():
        for sample in network.samples:
            spent[sample.features.type] = spent.get(sample.features.type, 0.0) + sample.ms
    rows = [
        {
            "type": type_,
            "units": len(errors["others"]),
            "share_of_time": spent[type_] / sum(spent.values()),
            **{f"p50_{way}": statistics.median(errors[way]) for way in WAYS},
            **{f"p90_{way}": float(np.percentile(errors[way], 90)) for way in WAYS},
        }
        for type_, errors in sorted(by_type.items(), key=lambda item: -spent[item[0]])
    ]
    bench.config["types"] = rows
    bench.show("relative error by type of unit", rows)


def _promise(bench: Bench, by_network: Errors, whole: Errors, lost: Errors, negative: dict[str, int]) -> None:
    def median_of(errors: Errors, way: str) -> float:
        return statistics.median(statistics.median(ways[way]) for ways in errors.values())

    def worst_of(errors: Errors, way: str) -> float:
        return max(ways[way][0] for ways in errors.values())

    def hold(name: str, value: float, unit: str, target: float) -> None:
        bench.target(name, value, unit, target, "at_most")

    for way, plain in PLAIN_OF.items():
        hold(f"error of a unit, {way}, median network", median_of(by_network, way), "of measured", 0.2)
        hold(
            f"error of a unit, {way} over plain least squares on the same units",
            median_of(by_network, way) / median_of(by_network, plain),
            "ratio",
            1.0,
        )
        hold(f"error of a whole network, {way}, median network", median_of(whole, way), "of measured", 0.15)
        hold(f"time lost by planning with it, {way}, worst network", worst_of(lost, way), "of the best", 0.1)
        hold(f"negative predictions, {way}", float(negative[way]), "units", 0.0)
    bench.config["negative_predictions"] = negative


if __name__ == "__main__":
    sys.exit(main())
