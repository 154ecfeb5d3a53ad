"""How many bytes does it take to get the same answer?  ``python -m bench.rate --json FILE [--quick]``.

At every cut that sends fewer elements than any before it, and the last that sends as many: the transform
codec (fitted with gradients, and without), components of the features alone, uint8 and int4 with zstd;
against files of the network's own input as JPEG, WebP and AVIF.  Fidelity is against the whole network on the
exact input: KL divergence in nats for the classifier, 1 - cosine for the others, and how often the largest
output is the same.

The inputs come from few sources (photographs, made voices, made texts).  They are dealt into three parts;
the tables that code one part are fitted to the other two, so that no input is coded by tables that saw its
source, and the figures are over all parts.  ``spread`` is the smallest and the largest figure of a part.

Bytes at a given fidelity are interpolated between steps in the logarithms of both.  Times are those of one
thread on the processor, so that what else the machine does does not count.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.contract import Bench
from bench.rate_judge import Judge, Point, bytes_at_agreement, bytes_at_divergence
from bench.rate_senders import (
    IMAGE_CODECS,
    Sent,
    by_codec,
    by_transform,
    fit_all,
    flat_geometry,
    through_image,
)
from bench.rate_subjects import SUBJECTS, Subject
from bench.rate_times import measure_times
from shared.codec import Codec
from shared.codec.threads import one_thread
from shared.codec.transform import STEPS, TransformTables, ideal_bits, output_gradients
from shared.graph.ir import Cut, Graph
from shared.graph.run import load

__all__ = ["hull_cuts", "main"]

_DIVERGENCES = (0.01, 0.05)
_AGREEMENTS = (0.95, 0.99)
_PARTS = 3
_DRAWS = 2
_BATCH = 15
_FAR = 0.4
_STEP_OF_USE = 10
_TRANSFORM, _PLAIN, _COMPONENTS = "transform", "transform, no gradients", "components alone"


@dataclass
class Curve:
    """The answers of one way of sending, by setting: for every input a size, a divergence, an agreement."""

    by_setting: dict[float, dict[int, tuple[int, float, bool]]] = field(default_factory=dict)

    def add(
        self, judge: Judge, setting: float, rows: Sequence[int], sizes: Sequence[int], answers: torch.Tensor
    ) -> None:
        kept = self.by_setting.setdefault(setting, {})
        divergences = judge.divergence(answers, rows).tolist()
        agreed = judge.agrees(answers, rows).tolist()
        kept.update(zip(rows, zip(sizes, divergences, agreed, strict=True), strict=True))

    def points(self, rows: Sequence[int]) -> list[Point]:
        """Over ``rows``, of the settings at which all of them were sent."""
        found = []
        for setting, sent in self.by_setting.items():
            if all(row in sent for row in rows):
                sizes, divergences, agreed = zip(*(sent[row] for row in rows), strict=True)
                found.append(
                    Point(
                        setting,
                        statistics.fmean(sizes),
                        statistics.fmean(divergences),
                        statistics.fmean(agreed),
                    )
                )
        return found


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("rate", argv, description=(__doc__ or "").partition("\n")[0], arguments=_arguments)
    inputs = bench.options.inputs or (30 if bench.quick else 75)
    steps = range(3, STEPS, 6) if bench.quick else range(2, STEPS, 3)
    bench.config = {"inputs": inputs, "parts": _PARTS, "draws": _DRAWS, "steps": list(steps), "left_out": []}
    deadline = time.monotonic() + 60 * bench.options.minutes
    names = bench.options.subject or (["efficientnet-lite0"] if bench.quick else list(SUBJECTS))
    with one_thread():
        measure_times(bench)
        for name in names:
            subject = SUBJECTS[name](max(1, inputs // 15), bench.seed)
            if subject is None:
                bench.config["left_out"].append(name)
                bench.console.print(f"{name}: its package is not installed, see bench/METHODOLOGY.md")
                continue
            most = bench.options.cuts or (2 if bench.quick else 0)
            _examine(bench, subject, list(steps), most, deadline)
    _promise(bench)
    _show(bench)
    return bench.finish(show_rows=False)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subject", action="append", choices=tuple(SUBJECTS), help="only this network")
    parser.add_argument("--inputs", type=int, default=0, help="about how many inputs of each network")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further cut after so long")
    parser.add_argument("--cuts", type=int, default=0, help="so many of the cuts, evenly spread; 0 for all")


def hull_cuts(graph: Graph) -> list[Cut]:
    """The input, every cut that sends fewer elements than any between it and the input, and of the later
    ones that send as many the last."""
    found: list[Cut] = [graph.cuts[0]]
    whole = _elements(graph, graph.cuts[0])
    least: int | None = None
    first = True
    for cut in graph.cuts[1:-1]:
        count = _elements(graph, cut)
        if count == whole or (least is not None and count > least):
            continue
        if count == least and not first:
            found.pop()
        first = count != least
        found.append(cut)
        least = count
    return found


def _elements(graph: Graph, cut: Cut) -> int:
    return sum(spec.numel for spec in graph.live_specs(cut, 1))


def _examine(bench: Bench, subject: Subject, steps: Sequence[int], most: int, deadline: float) -> None:
    program = load(subject.captured)
    judge = Judge(subject, program)
    sources = sorted(set(subject.sources))
    parts = [
        [row for row, source in enumerate(subject.sources) if sources.index(source) % _PARTS == part]
        for part in range(_PARTS)
    ]
    bench.config[subject.name] = {"inputs": len(subject.inputs), "sources": sources}
    if subject.is_image:
        _examine_files(bench, subject, judge, parts)
    cuts = hull_cuts(program.graph)
    if most and len(cuts) > most:
        cuts = [cuts[index * (len(cuts) - 1) // most] for index in range(1, most + 1)]
    for cut in cuts:
        if time.monotonic() > deadline:
            bench.config["left_out"].append(f"{subject.name}: {cut.name}")
            continue
        with bench.console.status(f"{subject.name}: after {cut.name}"):
            _examine_cut(bench, subject, judge, cut, parts, steps)
        bench.console.print(f"{subject.name}: after {cut.name}, {len(cut.edge_units)} units", style="dim")


def _examine_files(bench: Bench, subject: Subject, judge: Judge, parts: list[list[int]]) -> None:
    cut = judge.program.graph.cuts[0]
    for label, (form, qualities, options) in IMAGE_CODECS.items():
        curve = Curve()
        for quality in bench.track(list(qualities), f"{subject.name}: {label}"):
            send = functools.partial(through_image, form=form, options=options(quality))
            _send(judge, curve, cut, quality, list(range(len(subject.inputs))), [subject.inputs], send)
        _add_row(bench, subject, cut, label, curve, parts)


def _examine_cut(
    bench: Bench, subject: Subject, judge: Judge, cut: Cut, parts: list[list[int]], steps: Sequence[int]
) -> None:
    live = judge.live(cut)
    everything = list(range(len(subject.inputs)))
    for codec in (Codec.UINT8_ZSTD, Codec.INT4_ZSTD):
        curve = Curve()
        _send(judge, curve, cut, 0, everything, live, functools.partial(by_codec, codec=codec))
        _add_row(bench, subject, cut, codec.label, curve, parts)
    if not any(tensor.is_floating_point() or tensor.dtype == torch.uint8 for tensor in live):
        return
    differentiable = all(tensor.is_floating_point() or tensor.dtype == torch.uint8 for tensor in live)
    gradients, owners = _gradients(subject, judge, cut) if differentiable else (None, [])
    curves = {label: Curve() for label in (_TRANSFORM, _PLAIN, _COMPONENTS)}
    excess: list[float] = []
    early = Curve()
    for part in parts:
        held = set(part)
        others = [row for row in everything if row not in held]
        seen = [tensor[others] for tensor in live]
        rows = [index for index, owner in enumerate(owners) if owner not in held]
        slopes = None if gradients is None else [gradient[rows] for gradient in gradients]
        tables = {
            _TRANSFORM: fit_all(seen, slopes),
            _PLAIN: fit_all(seen, None),
            _COMPONENTS: fit_all(seen, None, flat_geometry),
        }
        for label, each in tables.items():
            for step in steps if label == _TRANSFORM else steps[::2]:
                send = functools.partial(by_transform, tables=each, step=step)
                far = _send(judge, curves[label], cut, step, part, live, send)
                if far:
                    break
        excess += _excess(live, tables[_TRANSFORM], part)
        for received in (1, 2, 3, 4):
            send = functools.partial(
                by_transform, tables=tables[_TRANSFORM], step=_STEP_OF_USE, segments=4, received=received
            )
            _send(judge, early, cut, received, part, live, send)
    for label, curve in curves.items():
        extra = {}
        if label == _TRANSFORM:
            extra = {
                "coder_excess": statistics.fmean(excess),
                "segments": [point._asdict() for point in early.points(everything)],
            }
        _add_row(bench, subject, cut, label, curve, parts, **extra)


def _gradients(subject: Subject, judge: Judge, cut: Cut) -> tuple[list[torch.Tensor], list[int]]:
    """Of all inputs, and for each gradient the input that it is of."""
    batches = subject.inputs.split(_BATCH)
    gradients = output_gradients(
        subject.captured, judge.program, cut, [[batch] for batch in batches],
        classifier=subject.classifier, draws=_DRAWS,
    )  # fmt: skip
    owners: list[int] = []
    for number, batch in enumerate(batches):
        owners += list(range(number * _BATCH, number * _BATCH + len(batch))) * _DRAWS
    return gradients, owners


def _send(
    judge: Judge,
    curve: Curve,
    cut: Cut,
    setting: float,
    rows: Sequence[int],
    live: Sequence[torch.Tensor],
    send: Callable[[list[torch.Tensor]], Sent],
) -> bool:
    """Add what becomes of ``rows``; the answer is whether this setting is far beyond use."""
    sent = [send([tensor[row : row + 1] for tensor in live]) for row in rows]
    arrived = [torch.cat(parts) for parts in zip(*(each.tensors for each in sent), strict=True)]
    answers = judge.answers(cut, arrived)
    curve.add(judge, setting, rows, [each.nbytes for each in sent], answers)
    return float(judge.divergence(answers, rows).mean()) > _FAR


def _excess(
    live: Sequence[torch.Tensor], tables: Sequence[TransformTables | None], rows: Sequence[int]
) -> list[float]:
    """By how much payloads are longer than their probabilities ask for, as a share, at a step of use."""
    found = []
    for row in rows[::4]:
        for tensor, each in zip(live, tables, strict=True):
            if each is not None:
                one = tensor[row : row + 1]
                took = by_transform([one], [each], _STEP_OF_USE).nbytes
                found.append(8 * took / ideal_bits(one, each, _STEP_OF_USE) - 1)
    return found


def _add_row(
    bench: Bench, subject: Subject, cut: Cut, label: str, curve: Curve, parts: list[list[int]], **extra: Any
) -> None:
    everything = sorted(row for part in parts for row in part)
    points = curve.points(everything)
    units = len(cut.edge_units) + len(cut.cloud_units)
    figures: dict[str, Any] = {}
    for target in _DIVERGENCES:
        figures[f"bytes_at_{target:g}"] = bytes_at_divergence(points, target)
        by_part = [bytes_at_divergence(curve.points(part), target) for part in parts]
        known = [each for each in by_part if each is not None]
        figures[f"spread_at_{target:g}"] = [min(known), max(known)] if known else []
    for target in _AGREEMENTS:
        figures[f"bytes_at_agreement_{target:g}"] = bytes_at_agreement(points, target)
    bench.row(
        kind="rate",
        network=subject.name,
        cut=cut.name,
        units=f"{len(cut.edge_units)}/{units}",
        depth=len(cut.edge_units) / units,
        sent=label,
        **figures,
        **extra,
        points=[point._asdict() for point in points],
    )


def _rates(bench: Bench, sent: str, network: str = "efficientnet-lite0") -> Iterator[dict[str, Any]]:
    for row in bench.rows:
        if row["kind"] == "rate" and row["network"] == network and row["sent"] == sent:
            yield row


def _promise(bench: Bench) -> None:
    files = [row["bytes_at_0.05"] for label in ("JPEG 4:2:0", "JPEG 4:4:4") for row in _rates(bench, label)]
    jpeg = min((size for size in files if size is not None), default=None)
    early = [
        row
        for row in _rates(bench, _TRANSFORM)
        if 0 < row["depth"] < 0.5 and row["bytes_at_0.05"] is not None
    ]
    if early and jpeg is not None:
        best = min(early, key=lambda row: float(row["bytes_at_0.05"]))
        bench.target(
            f"bytes over the better JPEG's at KL 0.05, after {best['cut']}",
            best["bytes_at_0.05"] / jpeg,
            "x",
            0.25,
            "at_most",
        )
        beside = next(row for row in _rates(bench, Codec.UINT8_ZSTD.label) if row["cut"] == best["cut"])
        if best["bytes_at_0.01"] is not None and beside["bytes_at_0.01"] is not None:
            bench.target(
                "bytes over uint8+zstd's at KL 0.01, same cut",
                best["bytes_at_0.01"] / beside["bytes_at_0.01"],
                "x",
                1 / 3,
                "at_most",
            )
    excess = [row["coder_excess"] for row in bench.rows if "coder_excess" in row]
    if excess:
        bench.target("coder above cross-entropy, worst cut", 100 * max(excess), "%", 5.0, "at_most")
    for row in bench.rows:
        if row["kind"] == "time" and row["limit_ms"] is not None:
            bench.target(
                f"encode + decode, {row['tensor']} in {row['payload_bytes']:,} bytes",
                row["encode_ms"] + row["decode_ms"],
                "ms",
                row["limit_ms"],
                "at_most",
            )
    slowest = [
        row["tensor_bytes"] / 1e3 / max(row["encode_ms"], row["decode_ms"])
        for row in bench.rows
        if row["kind"] == "time" and row["sent"] == _TRANSFORM
    ]
    bench.target("float32 in or out a second, slowest", min(slowest, default=None), "MB/s", 20.0, "at_least")


def _show(bench: Bench) -> None:
    for network in dict.fromkeys(row["network"] for row in bench.rows if row["kind"] == "rate"):
        shown = [
            {
                name: row[name]
                for name in ("cut", "units", "sent", *(key for key in row if key.startswith("bytes_at")))
            }
            for row in bench.rows
            if row["kind"] == "rate" and row["network"] == network
        ]
        about = bench.config[network]
        title = (
            f"{network}: bytes at equal fidelity, {about['inputs']} inputs of {len(about['sources'])} sources"
        )
        bench.show(title, shown)
    bench.show("times", [row for row in bench.rows if row["kind"] == "time"])


if __name__ == "__main__":
    sys.exit(main())
