"""docs/promises.md names what holds each promise: all of it is there, and nothing is left out."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
PARTS = ("Mechanism", "Tests", "Figure", "Not promised")
SECTIONS = {
    int(number): (title, text)
    for number, title, text in re.findall(r"^## (\d+)\. ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}


def part(number: int, name: str) -> str:
    (found,) = re.findall(rf"^- \*\*{name}\*\*:(.*?)(?=^- \*\*|^#|\Z)", SECTIONS[number][1], re.M | re.S)
    return str(found).strip()


@cache
def named_in(path: str) -> frozenset[str]:
    """Node ids of a file's tests, without their parameters; those of classes with the class."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for each in inner:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_"):
                found.add(f"{prefix}{each.name}")
    return frozenset(found)


def test_there_are_ten_promises_in_order() -> None:
    assert list(SECTIONS) == list(range(1, 11))


@pytest.mark.parametrize("number", SECTIONS)
def test_a_promise_says_what_it_is_what_holds_it_and_where_it_ends(number: int) -> None:
    text = SECTIONS[number][1]
    promise = text.strip().partition("\n\n")[0]
    assert promise
    assert not promise.startswith("-")
    for name in PARTS:
        assert part(number, name), name
    assert re.search(r"`[\w/]+\.py`", part(number, "Mechanism"))


@pytest.mark.parametrize("number", SECTIONS)
def test_every_promise_has_tests_and_they_exist(number: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", SECTIONS[number][1])
    assert named
    missing = [f"{path}::{name}" for path, name in named if name not in named_in(path)]
    assert missing == []


@pytest.mark.parametrize("number", SECTIONS)
def test_every_module_and_directory_that_is_named_exists(number: int) -> None:
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*)`", SECTIONS[number][1])
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("number", SECTIONS)
def test_a_figure_comes_from_a_bench_or_there_is_none(number: int) -> None:
    figure = part(number, "Figure")
    benches = re.findall(r"`python -m (bench\.\w+)", figure)
    assert benches or figure.startswith("there is none to measure")
    assert [name for name in benches if importlib.util.find_spec(name) is None] == []
    if benches:
        assert re.search(r"\d cores of .+, \d+ \w+ 20\d\d", figure, re.S), "machine and date"
