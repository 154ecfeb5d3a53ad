"""The command ``edge-agent``.

Torch is imported by the commands that compute, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from edge_agent import attach, config_command, keys_command
from shared.errors import BundleError, CaptureError, ConfigError, StartupError, SutureError, UnknownModelError

__all__ = ["app", "main"]

_FAILURE, _USAGE, _STARTUP = 1, 2, 3

app = typer.Typer(
    name="edge-agent",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 the start failed. Ctrl-C or SIGTERM "
    "lets requests in flight end, and that is ok; a second one ends the agent at once.",
)

app.add_typer(config_command.app)
app.add_typer(keys_command.app)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML, e.g. configs/laptop.yaml.", show_default=False
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback(invoke_without_command=True)
def run(context: typer.Context, config: ConfigOption = None) -> None:
    """Run neural networks partly on this device and partly in the cloud.

    edge-agent --config FILE runs the agent: it loads the networks that FILE lists, measures them once,
    connects to the gateway and serves other programs on this device through its socket until Ctrl-C.
    Without a cloud it computes everything here, and uses the cloud when there is one.

    In a program: async with edge_agent.Client("ipc://...") as client: await client.infer("NAME", image).
    """
    if context.invoked_subcommand is not None:
        if config is not None:
            raise ConfigError("--config goes after the command: edge-agent COMMAND --config FILE")
        return
    if config is None:
        raise typer.BadParameter(
            "is missing: edge-agent --config FILE, or edge-agent --help for the commands"
        )
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, config)
    from edge_agent.logs import set_up_logs

    set_up_logs(settings.log)
    from edge_agent.service import serve

    asyncio.run(serve(settings))


@app.command()
def profile(
    config: ConfigOption = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Only this network; may repeat.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what every unit of the networks costs on this device.

    Example: edge-agent profile --config configs/laptop.yaml --model efficientnet-lite0

    Measured once and kept in cache_dir until the network, the device, torch or its threads change.
    """
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, _required(config))
    from edge_agent.commands import profile_models

    print(profile_models(settings, model or [], as_json=as_json))


@app.command()
def calibrate(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Learn once, in a minute or two, what networks cost on this device; nothing else should run meanwhile.

    Random networks are run and a predictor is fitted and kept in cache_dir.  With it an agent plans at once
    for a network that it has never run, and measures that while no request is in flight; without it the
    first start with a network measures before it serves.
    """
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, _required(config))
    from edge_agent.commands import calibrate_device

    print(calibrate_device(settings, as_json=as_json))


@app.command()
def plan(
    config: ConfigOption = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Only this network; may repeat.")
    ] = None,
    uplink_mbps: Annotated[
        float | None, typer.Option(metavar="B", help="Plan for this uplink.", show_default=False)
    ] = None,
    rtt_ms: Annotated[
        float | None, typer.Option(metavar="R", help="Plan for this round trip.", show_default=False)
    ] = None,
    wait_ms: Annotated[
        float | None, typer.Option(metavar="W", help="Plan for this wait in the queue.", show_default=False)
    ] = None,
    slowdown: Annotated[
        float | None,
        typer.Option(metavar="S", help="Plan for a cloud this much slower.", show_default=False),
    ] = None,
    cloud_factor: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Ask no gateway: assume a cloud X times as fast as this device.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(metavar="O", help="latency, energy, throughput, or a mapping as in the configuration."),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Draw the winners over uplink and load (.svg, .png)."),
    ] = None,
    map_load: Annotated[
        Literal["wait", "slowdown"], typer.Option("--map-load", help="The load that the map is over.")
    ] = "wait",
    show_all: Annotated[bool, typer.Option("--all", help="Show every candidate, also the excluded.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where the networks would be cut, what each candidate costs stage by stage, and why.

    Example: edge-agent plan --config configs/laptop.yaml --uplink-mbps 6 --cloud-factor 10

    The link and the load are measured at the gateway where it answers; what is given here replaces them.
    """
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, _required(config))
    from edge_agent.plan_command import WhatIf, plan_models

    asked = WhatIf(uplink_mbps, rtt_ms, wait_ms, slowdown, cloud_factor, objective)
    print(
        plan_models(
            settings,
            model or [],
            asked,
            show_all=show_all,
            as_json=as_json,
            map_file=map_file,
            map_load="slowdown" if map_load == "slowdown" else "wait_ms",
        )
    )


@app.command()
def bundle(
    model: Annotated[str, typer.Argument(help="A zoo name, package.module:function, or a name in --config.")],
    out: Annotated[Path, typer.Argument(help="The directory to write.")],
    config: ConfigOption = None,
) -> None:
    """Write a network as a bundle: its graph as JSON, its weights as safetensors.

    Loading a bundle runs no code from it, so that it can be handed to other machines:
    models: [{name: NAME, bundle: OUT}] in the configuration of agents and cloud.
    """
    from shared.config import AgentConfig, ModelSource, load_config

    if config is not None:
        known = {source.name: source for source in load_config(AgentConfig, config).models}
        if model not in known:
            raise UnknownModelError(f"{config} lists no network {model!r}; it lists {', '.join(known)}")
        source: ModelSource = known[model]
    elif ":" in model:
        source = ModelSource(name=model.rpartition(":")[2], factory=model)
    else:
        source = ModelSource(name=model)
    from edge_agent.commands import write_bundle

    print(write_bundle(source, out))


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="A name in --config.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, or a bundle's directory.")],
    config: ConfigOption = None,
) -> None:
    """Fit the transform codecs to a network, so that far fewer bytes cross its cuts.

    Example: edge-agent fit efficientnet-lite0 --config configs/laptop.yaml --out lite0.safetensors

    Half of the calibration inputs are fitted to; on the others the agent judges what the codecs do to the
    answer.  Then name FILE as transform_tables of the network, for the agents and for the cloud.
    """
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, _required(config))
    known = {source.name: source for source in settings.models}
    if model not in known:
        raise UnknownModelError(f"{config} lists no network {model!r}; it lists {', '.join(known)}")
    from edge_agent.fit_command import fit_tables

    print(fit_tables(known[model], out, settings.cache_dir))


app.command()(attach.infer)
app.command()(attach.top)


@app.command()
def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Look at everything that the agent needs, here and in the cloud, and say how to mend what is amiss.

    The exit code is 1 when something that the configuration asks for is not to be had.
    """
    from shared.config import AgentConfig, load_config

    settings = load_config(AgentConfig, _required(config))
    from edge_agent.commands import doctor_device

    if not doctor_device(settings, as_json=as_json):
        raise typer.Exit(_FAILURE)


@app.command(name="version")
def show_version(as_json: JsonOption = False) -> None:
    """Show the versions of Suture and of what it rests on."""
    versions = {"suture": version("suture"), "python": platform.python_version()}
    for package in ("torch", "pyzmq", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    print(json.dumps(versions) if as_json else "\n".join(f"{name} {each}" for name, each in versions.items()))


def _required(config: Path | None) -> Path:
    if config is None:
        raise ConfigError("give the agent's configuration with --config FILE")
    return config


def main() -> None:
    """The entry point: a mistake of the user's becomes one message and an exit code, never a traceback."""
    try:
        app()
    except SutureError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        if isinstance(error, ConfigError | UnknownModelError | BundleError | CaptureError):
            sys.exit(_USAGE)
        sys.exit(_STARTUP if isinstance(error, StartupError) else _FAILURE)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "rich", "structlog"):
            raise
        print(f"edge-agent: {error.name} is not installed; install suture[edge]", file=sys.stderr)
        sys.exit(_STARTUP)


if __name__ == "__main__":
    main()
