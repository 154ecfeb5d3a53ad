"""``edge-agent keys``: make a CURVE key pair, and show what the other side needs of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="Make and show the keys by which devices, gateways and replicas know each other.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose keys: a device, `gateway` or `replicas`.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write both files.")] = Path(
        "keys"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write NAME.key_secret, which stays on this machine, and NAME.key, which others may have.

    A gateway serves a device whose NAME.key lies in its directory gateway.keys.devices.
    """
    import zmq

    from shared.keys import KeyPair, write_pair

    public, secret = (half.decode() for half in zmq.curve_keypair())
    secret_path, public_path = write_pair(out, name, KeyPair(public, secret))
    if as_json:
        print(
            json.dumps({"public": public, "secret_file": str(secret_path), "public_file": str(public_path)})
        )
        return
    print(
        f"{secret_path}  stays on this machine\n{public_path}  goes to the other side\npublic key: {public}"
    )


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .key or a .key_secret file.")],
    as_json: JsonOption = False,
) -> None:
    """Show the public key of a file, and never its secret half."""
    from shared.keys import SECRET_SUFFIX, read_public, read_secret

    public = read_secret(file).public if file.suffix == SECRET_SUFFIX else read_public(file).key
    print(json.dumps({"public": public}) if as_json else public)
