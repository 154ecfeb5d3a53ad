"""Which line of the user's code, and which of the user's modules, a traced operator comes from."""

from __future__ import annotations

import os
import re

import torch
from torch import fx

__all__ = ["is_user_file", "module_path", "network_path", "user_line"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*\n(?P<text>[^\n]*)')
_TORCH_ROOT = os.path.dirname(torch.__file__) + os.sep
_OWN_ROOT = os.path.dirname(__file__) + os.sep


def network_path(path: str) -> str:
    """The module path as the user knows it, from torch's path through our wrapper."""
    return re.sub(r"@\d+", "", path.partition("network")[2].lstrip("."))


def is_user_file(file: str) -> bool:
    """Neither torch's own code nor this package's."""
    return not file.startswith((_TORCH_ROOT, _OWN_ROOT, "<"))


def user_line(node: fx.Node) -> str:
    """``file:line: source text`` of the user's deepest frame that made ``node``."""
    frames = [
        match for match in _FRAME.finditer(node.meta.get("stack_trace") or "") if is_user_file(match["file"])
    ]
    if frames:
        return f"{frames[-1]['file']}:{frames[-1]['line']}: {frames[-1]['text'].strip()}"
    stack = node.meta.get("nn_module_stack") or {}
    modules = [f"{network_path(path) or 'the network'} ({kind})" for path, kind in stack.values()]
    return f"in module {modules[-1]}" if modules else f"at operator {node.target}"


def module_path(node: fx.Node) -> str:
    """The innermost module that called ``node``, empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return network_path(paths[-1]) if paths else ""
