"""Fuzz one parser: ``python -m tests.fuzz TARGET [--runs N | --seconds S] [--seed N] [--corpus DIR]``.

Coverage-guided by atheris, from the golden vectors; ``python -m tests.fuzz TARGET --replay FILE`` runs one
input again.  A finding is kept as ``crash-...`` in the corpus directory and printed with that command.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="fuzz one parser")
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=-1, help="so many inputs; unlimited by default")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; never by default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="keep inputs that reach new code here, for another time")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this one input and nothing else")
    options = parser.parse_args()
    with atheris.instrument_imports(
        include=["shared", "edge_agent.local_wire"], enable_loader_override=False
    ):
        from tests.fuzz.targets import SEEDS, TARGETS

        target = TARGETS.get(options.target)
        if target is None:
            parser.error(f"no target {options.target}; there are {', '.join(TARGETS)}")
        seeds = SEEDS[options.target]()
        target(seeds[0])  # what it imports when first used is instrumented as well
    if options.replay is not None:
        target(options.replay.read_bytes())
        print(f"{options.target}: handled as promised")
        return
    with tempfile.TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)
        findings = options.corpus or Path.cwd()

        def checked(data: bytes) -> None:
            try:
                target(data)
            except BaseException:
                path = findings / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
                path.write_bytes(data)
                print(f"\nagain: python -m tests.fuzz {options.target} --replay {path}", file=sys.stderr)
                raise

        atheris.Setup(
            [
                "fuzz",
                f"-runs={options.runs}",
                f"-max_total_time={options.seconds}",
                f"-seed={options.seed}",
                "-max_len=65536",
                "-len_control=20",
                "-timeout=20",
                "-rss_limit_mb=3000",
                "-print_final_stats=1",
                "-verbosity=0",
                f"-artifact_prefix={scratch}/",
                str(corpus),
            ],
            checked,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
