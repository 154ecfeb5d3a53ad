"""From operators to closures over slots.

Constant arguments and the integers that follow from the batch size get slots of their own behind the
graph's, so that one ``itemgetter`` collects a call's arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from shared.errors import BundleError
from shared.graph.ir import UNUSED, Arg, BatchInt, EnumArg, Op, Ref

__all__ = ["Call", "SlotLayout", "Step", "call_of", "depends_on_batch", "draws_random_numbers", "overload"]

Step = Callable[[list[Any]], None]


@dataclass(frozen=True, slots=True)
class Call:
    """A function on arguments: ``Ref``, ``BatchInt``, tuples of these, or constants passed as they are.

    ``outputs`` as in :class:`Op`; ``single`` says that the function returns one tensor, not several.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    single: bool

    @property
    def reads(self) -> tuple[int, ...]:
        return Op("", self.args, tuple(self.kwargs.items()), ()).reads

    @property
    def written(self) -> tuple[int, ...]:
        return tuple(slot for slot in self.outputs if slot != UNUSED)


def overload(target: str) -> torch._ops.OpOverload:
    """``aten.conv2d.default`` as torch's operator.  Raises BundleError when this torch has none."""
    parts = target.split(".")
    found: Any = torch.ops
    try:
        for part in parts if len(parts) == 3 else ():
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    if not isinstance(found, torch._ops.OpOverload):
        raise BundleError(f"torch {torch.__version__} has no operator {target}; use the one that captured it")
    return found


def call_of(op: Op, device: torch.device, *, reshape: bool = False) -> Call:
    """The call of a graph's operator, with constants placed on ``device``.

    ``reshape`` lets a view copy where the memory order does not allow it to be one.
    """
    target = op.target
    if reshape and target in ("aten.view.default", "aten._unsafe_view.default"):
        target = "aten.reshape.default"
    function = overload(target)
    kwargs = {key: _constant(arg, device) for key, arg in op.kwargs}
    if not op.reads and any(argument.name == "device" for argument in function._schema.arguments):
        kwargs["device"] = device
    returns = function._schema.returns
    single = len(returns) == 1 and str(returns[0].type) == "Tensor"
    return Call(
        function,
        tuple(_constant(arg, device) for arg in op.args),
        kwargs,
        op.outputs,
        single,
    )


def depends_on_batch(op: Op) -> bool:
    def varies(arg: Arg) -> bool:
        return isinstance(arg, BatchInt) or (isinstance(arg, tuple) and any(map(varies, arg)))

    return any(map(varies, op.args)) or any(varies(arg) for _, arg in op.kwargs)


def draws_random_numbers(op: Op) -> bool:
    """Recurrent layers, attention and dropout do in training only."""
    function = overload(op.target)
    if torch.Tag.nondeterministic_seeded not in function.tags:
        return False
    names = [argument.name for argument in function._schema.arguments]
    given = {**dict(zip(names, op.args, strict=False)), **dict(op.kwargs)}
    if "dropout_p" in names:
        return given.get("dropout_p", 0.0) != 0.0
    return not any(given.get(name, True) is False for name in ("train", "training"))


def _constant(arg: Arg, device: torch.device) -> Any:
    if isinstance(arg, EnumArg):
        return device if arg.kind == "device" else getattr(torch, arg.name)
    return tuple(_constant(item, device) for item in arg) if isinstance(arg, tuple) else arg


def _is_fixed(arg: Any) -> bool:
    if isinstance(arg, tuple):
        return all(map(_is_fixed, arg))
    return not isinstance(arg, (Ref, BatchInt))


@dataclass(slots=True)
class SlotLayout:
    """Which slot holds what: the graph's ``count`` slots, then constants and batch-dependent integers."""

    count: int
    constants: dict[int, Any] = field(default_factory=dict)
    _extra: list[Any] = field(default_factory=list)
    _integers: dict[BatchInt, int] = field(default_factory=dict)
    _known: dict[tuple[type, Any], int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.count + len(self._extra)

    def template(self, batch: int) -> list[Any]:
        """Slots with every constant and integer in place."""
        slots = [None] * self.size
        self.fill(slots, batch)
        return slots

    def fill(self, slots: list[Any], batch: int) -> None:
        for slot, value in self.constants.items():
            slots[slot] = value
        slots[self.count :] = [item.at(batch) if isinstance(item, BatchInt) else item for item in self._extra]

    def step(self, call: Call) -> Step:
        """A closure that runs ``call`` on slots; templates made before it lack its constants."""
        function = call.function
        if call.kwargs and all(map(_is_fixed, call.kwargs.values())):
            function = functools.partial(function, **call.kwargs)
        elif call.kwargs:
            return self._general(call)
        if not call.args or any(isinstance(arg, tuple) and not _is_fixed(arg) for arg in call.args):
            return self._general(call)
        where = [self._place(arg) for arg in call.args]
        if not call.single:
            return _several(function, _getter(where), call.outputs)
        (out,) = call.outputs
        if len(where) == 1:
            return _unary(function, where[0], out)
        return _plain(function, itemgetter(*where), out)

    def _place(self, arg: Any) -> int:
        if isinstance(arg, Ref):
            return arg.slot
        if isinstance(arg, BatchInt):
            if arg not in self._integers:
                self._integers[arg] = self._append(arg)
            return self._integers[arg]
        return self._append(list(arg) if isinstance(arg, tuple) else arg)

    def _append(self, item: Any) -> int:
        self._extra.append(item)
        return self.count + len(self._extra) - 1

    def _general(self, call: Call) -> Step:
        build = self._builder(call.args)
        names = tuple(call.kwargs)
        build_named = self._builder(tuple(call.kwargs.values()))
        function, single, outputs = call.function, call.single, call.outputs

        def step(slots: list[Any]) -> None:
            result = function(*build(slots), **dict(zip(names, build_named(slots), strict=True)))
            _store(slots, (result,) if single else result, outputs)

        return step

    def _builder(self, args: Sequence[Any]) -> Callable[[list[Any]], list[Any]]:
        parts: list[Callable[[list[Any]], Any]] = [
            self._builder(arg)
            if isinstance(arg, tuple) and not _is_fixed(arg)
            else itemgetter(self._place(arg))
            for arg in args
        ]

        def build(slots: list[Any]) -> list[Any]:
            return [part(slots) for part in parts]

        return build


def _getter(where: list[int]) -> Callable[[list[Any]], Sequence[Any]]:
    if len(where) > 1:
        return itemgetter(*where)
    (only,) = where
    return lambda slots: (slots[only],)


def _unary(function: Callable[..., Any], argument: int, out: int) -> Step:
    def step(slots: list[Any]) -> None:
        slots[out] = function(slots[argument])

    return step


def _plain(function: Callable[..., Any], arguments: Callable[[list[Any]], Any], out: int) -> Step:
    def step(slots: list[Any]) -> None:
        slots[out] = function(*arguments(slots))

    return step


def _several(
    function: Callable[..., Any], arguments: Callable[[list[Any]], Sequence[Any]], outputs: tuple[int, ...]
) -> Step:
    def step(slots: list[Any]) -> None:
        _store(slots, function(*arguments(slots)), outputs)

    return step


def _store(slots: list[Any], results: Sequence[Any], outputs: tuple[int, ...]) -> None:
    for slot, result in zip(outputs, results, strict=True):
        if slot != UNUSED:
            slots[slot] = result
