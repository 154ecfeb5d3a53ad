"""The commands that talk to a running agent: ``edge-agent infer`` and ``edge-agent top``.  No torch."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.errors import ConfigError

if TYPE_CHECKING:
    from edge_agent.client import Client

__all__ = ["infer", "top", "watch"]

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The agent's configuration, for its socket."),
]
SocketOption = Annotated[
    str | None,
    typer.Option("--socket", metavar="URL", help="The agent's socket; else that of --config or the default."),
]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="The agent's token, for a tcp:// socket.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def infer(
    model: Annotated[str, typer.Argument(help="A network of the agent.")],
    files: Annotated[list[Path], typer.Argument(help="Images, .wav recordings or .npy arrays.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    token_file: TokenOption = None,
    deadline_ms: Annotated[
        float | None, typer.Option(metavar="D", help="For each file; the network's own by default.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="O", help="latency, energy, ..., or a mapping as in YAML.")
    ] = None,
    best: Annotated[int, typer.Option(min=1, metavar="K", help="So many classes of a classifier.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Send files through a running agent and show what the network says of them.

    Example: edge-agent infer efficientnet-lite0 photo.jpg --config configs/laptop.yaml
    """
    from edge_agent.infer_command import infer_files

    wanted = _objective(objective)

    async def ask() -> str:
        async with _client(config, socket, token_file) as client:
            return await infer_files(
                client, model, files, deadline_ms=deadline_ms, objective=wanted, best=best, as_json=as_json
            )

    print(asyncio.run(ask()))


def top(
    config: ConfigOption = None,
    socket: SocketOption = None,
    token_file: TokenOption = None,
    once: Annotated[bool, typer.Option("--once", help="Show the state of now and end.")] = False,
    every_s: Annotated[float, typer.Option(metavar="S", min=0.1, help="Look again after so long.")] = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Watch a running agent: its link, where each network is cut, and where the time goes; until Ctrl-C.

    Of an agent on another machine, forward its socket:
    ssh -L ./agent.sock:/run/user/1000/suture-agent.sock DEVICE, then edge-agent top --socket ipc://./agent.sock

    With --json one line for every look.
    """
    asyncio.run(watch(_client(config, socket, token_file), once=once, every_s=every_s, as_json=as_json))


async def watch(client: Client, *, once: bool, every_s: float, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from edge_agent.top_view import status_view

    async with client:
        state = await client.status()
        if once or as_json:
            print(json.dumps(state)) if as_json else Console().print(status_view(state))
            while not once:
                await asyncio.sleep(every_s)
                print(json.dumps(await client.status()), flush=True)
            return
        seen_s, answered = time.monotonic(), _answered(state)
        with Live(status_view(state), auto_refresh=False, screen=True) as live:
            while True:
                await asyncio.sleep(every_s)
                state = await client.status()
                passed_s, before = time.monotonic() - seen_s, answered
                seen_s, answered = time.monotonic(), _answered(state)
                rates = {
                    name: (count - before.get(name, count)) / passed_s for name, count in answered.items()
                }
                live.update(status_view(state, rates), refresh=True)


def _answered(state: Mapping[str, Any]) -> dict[str, int]:
    return {model["name"]: sum(model["where"].values()) for model in state["models"]}


def _client(config: Path | None, socket: str | None, token_file: Path | None) -> Client:
    from edge_agent.client import Client
    from shared.config import AgentConfig, load_config

    if config is not None:
        settings = load_config(AgentConfig, config)
        return Client(socket or settings.socket, token_file=token_file or settings.socket_token_file)
    default: str = AgentConfig.model_fields["socket"].get_default(call_default_factory=True)
    return Client(socket or default, token_file=token_file)


def _objective(text: str | None) -> Any:
    import yaml

    try:
        return None if text is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--objective {text!r} is no name and no mapping: {error}") from error
