"""``edge-agent config``: what a configuration comes to, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="config", no_args_is_help=True, help="Check a configuration without loading what it names."
)


@app.command()
def check(
    config: Annotated[
        Path,
        typer.Option(
            "--config", "-c", metavar="FILE", help="YAML, e.g. configs/laptop.yaml.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print every value that holds, as JSON.")] = False,
) -> None:
    """Say whether a file is valid, with what the environment overrides; exit code 2 and the key if it is not.

    Reads the files of keys that it names, and neither networks nor the network: doctor looks at those.
    """
    from edge_agent.keys import LinkKeys
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, config)
    if settings.cloud.keys is not None:
        LinkKeys.load(settings.cloud.keys)
    if as_json:
        print(json.dumps(settings.model_dump(mode="json"), indent=2))
        return
    networks = ", ".join(model.name for model in settings.models)
    print(
        f"{config} is valid: {networks} on {settings.device}, cloud at {', '.join(settings.cloud.gateways)}"
    )
