"""Nothing in the packages turns bytes into code or arbitrary objects: no pickle, no eval, no torch.load."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shared", "edge_agent", "cloud_cluster")

MODULES = frozenset(
    (
        "pickle",
        "cPickle",
        "_pickle",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "jsonpickle",
        "code",
        "codeop",
        "multiprocessing",
        "pandas",
    )
)
BUILTINS = frozenset(("eval", "exec", "compile", "__import__"))
CALLS = frozenset(
    (
        "torch.load", "torch.export.load", "torch.jit.load", "torch.package.PackageImporter", "yaml.load",
        "torch.serialization.load", "torch.hub.load", "torch.multiprocessing", "yaml.Loader",
        "yaml.UnsafeLoader", "yaml.FullLoader", "concurrent.futures.ProcessPoolExecutor",
        "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "numpy.memmap", "os.system", "os.popen",
        "sympy.sympify", "sympy.parse_expr", "runpy.run_path", "runpy.run_module",
    )
)  # fmt: skip
ALLOWED = {
    # A file of an installed package, not of a wire or a bundle, read with weights_only=True.
    "shared/zoo/mobile.py": ["torch.load"],
}
SENDS = frozenset(("recv_pyobj", "send_pyobj"))


def findings(source: str) -> list[str]:
    """What of the forbidden a module imports or calls, under whatever name."""
    names: dict[str, str] = {}
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                found += [alias.name] if alias.name.partition(".")[0] in MODULES else []
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            found += [str(node.module)] if str(node.module).partition(".")[0] in MODULES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            found += _forbidden(node, names)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            safe = isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
            found += [] if safe else [str(node.arg)]
        if isinstance(node, ast.Call) and _dotted(node.func, names) == "numpy.load":
            given = {keyword.arg for keyword in node.keywords}
            found += [] if "allow_pickle" in given else ["numpy.load"]
    return found


def _forbidden(node: ast.Name | ast.Attribute, names: dict[str, str]) -> list[str]:
    if isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in names:
        return [node.id]
    if isinstance(node, ast.Attribute) and node.attr in SENDS:
        return [node.attr]
    dotted = _dotted(node, names)
    return [dotted] if dotted in CALLS or dotted.removeprefix("builtins.") in BUILTINS - {dotted} else []


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_of_a_package_can_run_what_it_reads(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    found = {str(path.relative_to(ROOT)): findings(path.read_text(encoding="utf-8")) for path in modules}
    assert {path: names for path, names in found.items() if names} == {
        path: names for path, names in ALLOWED.items() if path.startswith(package)
    }


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import marshal",
        "from cloudpickle import loads as innocent",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "__import__('os')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "import torch.export\ntorch.export.load('x')",
        "from torch import export\nexport.load('x')",
        "from torch.export import load as get\nget('x')",
        "import yaml\nyaml.load('x')",
        "import yaml\nyaml.compose('x', Loader=yaml.UnsafeLoader)",
        "from torch.serialization import load\nload('x')",
        "from multiprocessing.connection import Client",
        "from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()",
        "from concurrent import futures\nfutures.ProcessPoolExecutor()",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nallow = True\nnp.load('x', allow_pickle=allow)",
        "socket.recv_pyobj()",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert findings(source)


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load('x')",
        "import json\njson.load(file)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from shared.graph import load\nload(model)",
        "import re\nre.compile('x')",
        "graph.eval()\nmodel.eval()",
    ],
)
def test_what_only_sounds_alike_is_not_found(source: str) -> None:
    assert findings(source) == []
