from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shared.config import ModelSource
from shared.errors import BundleError, CaptureError, ConfigError, UnknownModelError
from shared.graph import load, save_bundle
from shared.models import Model, resolve

OWN_NETWORK = """
import torch
from torch import nn
from shared.zoo import Network

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.fill_(1.0)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, shift=None):
        y = self.drop(self.layer(x))
        return y if shift is None else y + shift

def plain():
    return Scale(), (torch.ones(1, 3),)

def with_keywords():
    return Scale(), (torch.ones(1, 3),), {"shift": torch.ones(1, 2)}

def as_network():
    return Network("inner", Scale(), (torch.ones(1, 3),), labels=("yes", "no"))

class Nested:
    @staticmethod
    def make():
        return plain()
"""

Factory = Callable[[str], ModelSource]


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModelSource]:
    """Write a module that a user might have, and name a function in it."""
    count = 0

    def write(source: str, function: str = "make") -> ModelSource:
        nonlocal count
        count += 1
        name = f"own_{tmp_path.name.strip('_')}_{count}"
        (tmp_path / f"{name}.py").write_text(source)
        return ModelSource(name="own", factory=f"{name}:{function}")

    monkeypatch.syspath_prepend(tmp_path)
    return write


def _outputs(model: Model) -> list[torch.Tensor]:
    args, kwargs = model.example
    program = load(model.captured)
    state = program.start(program.graph.flatten(args, kwargs))
    program.run(state, range(len(program.graph.units)))
    return list(program.outputs(state).values())


def test_resolves_a_zoo_name_under_the_name_given() -> None:
    model = resolve(ModelSource(name="digits", zoo="mnist"))
    assert model.captured.graph.name == "digits"
    assert model.input_form == "image"
    (image,), kwargs = model.example
    assert (image.shape, kwargs) == ((1, 1, 28, 28), {})
    (logits,) = _outputs(model)
    assert logits.shape == (1, 10)


def test_the_name_alone_is_looked_up_in_the_zoo() -> None:
    one, two = resolve(ModelSource(name="senna-ner")), resolve(ModelSource(name="senna-ner"))
    assert one.captured.graph.name == "senna-ner"
    assert one.captured.graph.digest == two.captured.graph.digest


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UnknownModelError, match="did you mean mobilenetv2"):
        resolve(ModelSource(name="mobilenet"))


@pytest.mark.parametrize(
    ("function", "expected", "labels"),
    [
        ("plain", 2.5, None),
        ("with_keywords", 3.5, None),
        ("as_network", 2.5, ("yes", "no")),
        ("Nested.make", 2.5, None),
    ],
)
def test_a_factory_may_return_any_of_its_forms(
    factory: Callable[[str, str], ModelSource],
    function: str,
    expected: float,
    labels: tuple[str, ...] | None,
) -> None:
    model = resolve(factory(OWN_NETWORK, function))
    assert model.captured.graph.name == "own"
    assert model.labels == labels
    (output,) = _outputs(model)
    assert output.tolist() == [[expected, expected]]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import no_such_thing\n",
            r"importing own_\w+ .* No module named 'no_such_thing' \(.*py:1: import",
        ),
        ("1 / 0\n", r"importing own_\w+ .* ZeroDivisionError: division by zero \(.*\.py:1: 1 / 0\)"),
        ("def make(:\n", r"importing own_\w+ .* SyntaxError: .*own_\w+\.py, line 1\)$"),
        ("def build():\n    pass\n", r"has no 'make'; it has build"),
        ("", r"has no 'make'; it has nothing that can be called"),
        ("make = 3\n", r"is a value of type int, which cannot be called"),
        (
            "import torch\ndef make():\n    return torch.nn.Linear(2, 'x')\n",
            r"failed: TypeError: .*\.py:3: return torch\.nn\.Linear\(2, 'x'\)\)",
        ),
        (
            "def make(size):\n    pass\n",
            r"failed: TypeError: make\(\) missing .* \(.*own_\w+\.py:1\)$",
        ),
        ("def make():\n    return None\n", r"must return \(module, args\).* not a value of type NoneType"),
        ("def make():\n    return (1, 2)\n", r"must return \(module, args\).* not \(int, int\)"),
        (
            "import torch\ndef make():\n    return torch.nn.ReLU(), torch.ones(2)\n",
            r"returned a value of type Tensor as example arguments; they must be a tuple: \(x,\)",
        ),
        (
            "import torch\ndef make():\n    return torch.nn.ReLU(), (torch.ones(2),), {1: 2}\n",
            r"returned a value of type dict as example keyword .*; they must be a dict with names as keys",
        ),
    ],
)
def test_a_factory_that_fails_says_where(
    factory: Callable[[str], ModelSource], source: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=r"^model own: ") as caught:
        resolve(factory(source))
    assert caught.match(says)


def test_a_module_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no module 'no_such_package' .*PYTHONPATH"):
        resolve(ModelSource(name="own", factory="no_such_package.models:make"))
    with pytest.raises(ConfigError, match=r"no module 'shared\.nothing_here' .*PYTHONPATH"):
        resolve(ModelSource(name="own", factory="shared.nothing_here:make"))


def test_an_attribute_of_what_has_none_is_not_there(factory: Callable[[str, str], ModelSource]) -> None:
    with pytest.raises(ConfigError, match=r"has no 'make\.inner'; it has nothing that can be called"):
        resolve(factory("make = 3\n", "make.inner"))


def test_the_factorys_own_refusal_is_passed_on(factory: Callable[[str], ModelSource]) -> None:
    source = "from shared.errors import CaptureError\ndef make():\n    raise CaptureError('not today')\n"
    with pytest.raises(CaptureError, match=r"^not today$"):
        resolve(factory(source))


def test_a_bundle_gives_back_what_was_bundled(tmp_path: Path) -> None:
    made = resolve(ModelSource(name="mnist"))
    save_bundle(
        made.captured, tmp_path, labels=[str(i) for i in range(10)], example=made.example, input_form="image"
    )
    read = resolve(ModelSource(name="digits", bundle=tmp_path))
    assert read.captured.graph.name == "digits"
    assert read.captured.graph.digest == made.captured.graph.digest
    assert read.labels == tuple("0123456789")
    assert read.input_form == "image"
    assert torch.equal(read.example[0][0], made.example[0][0])
    assert torch.equal(_outputs(read)[0], _outputs(made)[0])


@pytest.mark.parametrize("name", ["mnist", "senna-pos"])
def test_a_bundle_without_an_example_gets_one_that_runs(tmp_path: Path, name: str) -> None:
    made = resolve(ModelSource(name=name))
    save_bundle(made.captured, tmp_path)
    read = resolve(ModelSource(name=name, bundle=tmp_path))
    assert read.input_form == "tensor"
    assert read.labels is None
    (given,), (wanted,) = read.example[0], made.example[0]
    assert (given.shape, given.dtype) == (wanted.shape, wanted.dtype)
    assert _outputs(read)[0].float().std() > 0


def test_an_example_for_tokens_holds_valid_indexes(
    tmp_path: Path, factory: Callable[[str], ModelSource]
) -> None:
    source = (
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Embedding(3, 2), (torch.ones(1, 4, dtype=torch.int64),)\n"
    )
    save_bundle(resolve(factory(source)).captured, tmp_path)
    read = resolve(ModelSource(name="own", bundle=tmp_path))
    assert read.example[0][0].tolist() == [[0, 0, 0, 0]]
    assert _outputs(read)[0].shape == (1, 4, 2)


def test_a_bundle_that_is_not_there_or_not_of_our_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot read graph\.json"):
        resolve(ModelSource(name="own", bundle=tmp_path / "nowhere"))
    made = resolve(ModelSource(name="senna-pos"))
    save_bundle(made.captured, tmp_path, input_form="smell")
    with pytest.raises(BundleError, match="input form 'smell' is none of image, audio, tokens, tensor"):
        resolve(ModelSource(name="own", bundle=tmp_path))
