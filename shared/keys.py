"""CURVE key files: what is in them, and who may read them.

A key pair is two text files in the format of ZeroMQ's own tools (ZPL, https://rfc.zeromq.org/spec/4/, as
``zmq.auth`` and CZMQ's ``zcert`` write and read it)::

    NAME.key           the public half; this file is what a gateway's directory of devices holds
    NAME.key_secret    both halves, mode 0600; whoever can read it is NAME

Under ``metadata`` a public file may limit the device that it lists::

    metadata
        max_in_flight = 8
        max_in_flight_bytes = 16000000
        weight = 2
    curve
        public-key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"

A key is 32 bytes as 40 characters of Z85 (https://rfc.zeromq.org/spec/32/).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import ConfigError

__all__ = [
    "PUBLIC_SUFFIX",
    "SECRET_SUFFIX",
    "KeyPair",
    "PublicKey",
    "parse_key",
    "public_text",
    "read_public",
    "read_public_of",
    "read_secret",
    "server_key",
    "write_pair",
]

PUBLIC_SUFFIX, SECRET_SUFFIX = ".key", ".key_secret"

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_KEY_LENGTH = 40
_MAX_FILE_BYTES = 2**16
_LINE = re.compile(r"(?P<indent>\s*)(?P<name>[\w-]+)\s*(?:=\s*(?P<value>.*?)\s*)?")
_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both halves, as Z85.  The secret half is in no repr and no message."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public file: ``name`` is the file's, the limits are those it sets, None for the gateway's own.

    ``weight`` is the device's share of a queue that others wait in as well.
    """

    name: str
    key: str
    max_in_flight: int | None = None
    max_in_flight_bytes: int | None = None
    weight: float = 1.0


def parse_key(text: str, origin: str) -> str:
    """Check that the text is one key.  Raises ConfigError naming ``origin``, never the text."""
    digits = [_Z85.find(character) for character in text]
    groups = [digits[start : start + 5] for start in range(0, len(digits), 5)]
    if len(text) != _KEY_LENGTH or -1 in digits or any(_value(group) >= 2**32 for group in groups):
        raise ConfigError(f"{origin} is no key; a key is {_KEY_LENGTH} characters of Z85")
    return text


def read_public(path: Path) -> PublicKey:
    """Read a public file.  Raises ConfigError naming the file and what is wrong in it."""
    sections = _sections(path, _text(path, secret=False))
    metadata = dict(sections.get("metadata", {}))
    metadata.pop("name", None)
    listed = PublicKey(
        path.stem,
        _half(sections, "public-key", path),
        max_in_flight=_limit(metadata, "max_in_flight", path),
        max_in_flight_bytes=_limit(metadata, "max_in_flight_bytes", path),
        weight=_weight(metadata, path),
    )
    if metadata:
        raise ConfigError(
            f"{path}: unknown metadata {', '.join(sorted(metadata))}; there are max_in_flight, "
            "max_in_flight_bytes and weight"
        )
    return listed


def read_secret(path: Path) -> KeyPair:
    """Read a key pair.  Raises ConfigError, also for a file that other users can read, with the remedy."""
    sections = _sections(path, _text(path, secret=True))
    return KeyPair(_half(sections, "public-key", path), _half(sections, "secret-key", path))


def read_public_of(secret: Path) -> PublicKey:
    """The public half of a pair of which this machine may hold either file.  Raises ConfigError."""
    public = secret.with_suffix(PUBLIC_SUFFIX)
    if public.exists():
        return read_public(public)
    if not secret.exists():
        raise ConfigError(f"there is neither {public} nor {secret}; copy the public one to this machine")
    return PublicKey(secret.stem, read_secret(secret).public)


def server_key(value: str) -> str:
    """The key that a configuration gives as itself or as the path of a public file.  Raises ConfigError."""
    if value.endswith(PUBLIC_SUFFIX):
        return read_public(Path(value).expanduser()).key
    return parse_key(value, "cloud.keys.server")


def public_text(name: str, public: str) -> str:
    """What a public file holds."""
    return f"metadata\n    name = {name}\ncurve\n    {_quoted('public-key', public)}\n"


def write_pair(directory: Path, name: str, pair: KeyPair) -> tuple[Path, Path]:
    """Write both files and return their paths, the secret one first.

    Creates the directory for this user alone.  Raises ConfigError when a file exists: a key is never
    overwritten.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ConfigError(f"{name!r} is no name for a key; take up to 64 letters, digits, dots, dashes")
    secret_path = directory / f"{name}{SECRET_SUFFIX}"
    public_path = directory / f"{name}{PUBLIC_SUFFIX}"
    text = public_text(name, pair.public)
    secret_text = (
        f"# Whoever can read this file can act as {name}: never copy it to another machine.\n"
        f"{text}    {_quoted('secret-key', pair.secret)}\n"
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (secret_path, public_path):
            if path.exists():
                raise FileExistsError(None, None, os.fspath(path))
        for path, content, mode in ((secret_path, secret_text, 0o600), (public_path, text, 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                file.write(content)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} exists already, and keys are never overwritten; choose another name or folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot write a key to {directory}: {error.strerror}") from error
    return secret_path, public_path


def _text(path: Path, *, secret: bool) -> str:
    kind = "secret" if secret else "public"
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            mode = stat.S_IMODE(found.st_mode)
            if secret and mode & _not_for_others(found.st_uid):
                raise ConfigError(
                    f"{path} holds a secret key and other users can read or change it (mode {mode:04o}); "
                    f"run: chmod 600 {path}"
                )
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {kind} key file {path}: {error.strerror}; `edge-agent keys new` makes one"
        ) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes, which no key file is")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no key file: it is not UTF-8 text") from error


def _not_for_others(owner: int) -> int:
    """The bits that a secret may not have.

    What another user owns was handed to this one, by systemd's credentials or a mounted Kubernetes secret,
    and the group's bits are how: there they stand for an access list or for this process's own group.
    """
    return 0o077 if owner == os.geteuid() else 0o027


def _sections(path: Path, text: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"{path}, line {number}, is neither a section nor `name = value`")
        if not match["indent"] and match["value"] is None:
            current = sections.setdefault(match["name"], {})
        elif not match["indent"] or match["value"] is None or current is None:
            raise ConfigError(f"{path}, line {number}, is not an indented `name = value` of a section")
        elif match["name"] in current:
            raise ConfigError(f"{path}, line {number}, gives {match['name']} again")
        else:
            current[match["name"]] = _unquoted(match["value"])
    return sections


def _half(sections: dict[str, dict[str, str]], name: str, path: Path) -> str:
    value = sections.get("curve", {}).get(name)
    if value is None:
        raise ConfigError(f"{path} has no {name} in its section curve; `edge-agent keys new` makes key files")
    return parse_key(value, f"the {name} in {path}")


def _limit(metadata: dict[str, str], name: str, path: Path) -> int | None:
    text = metadata.pop(name, None)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < 1:
        raise ConfigError(f"{path}: {name} = {text} must be a whole number of at least 1")
    return int(text)


def _weight(metadata: dict[str, str], path: Path) -> float:
    text = metadata.pop("weight", "1")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or float(text) == 0:
        raise ConfigError(f"{path}: weight = {text} must be a number above 0; 1 is usual")
    return float(text)


def _quoted(name: str, value: str) -> str:
    return f'{name} = "{value}"'


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _value(digits: list[int]) -> int:
    total = 0
    for digit in digits:
        total = total * 85 + digit
    return total
