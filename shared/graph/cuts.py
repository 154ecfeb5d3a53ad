"""Which values cross a cut, and which of them have to be sent.

A cut gives every unit to the device or to the cloud; no edge runs backwards.  What the cloud's units
read and the device has, crosses it.  Views make that less than plain: several views of one tensor may
be read on the far side, and views cost nothing to take again.  So the values form a forest (a view
hangs under what it looks at) and each tree is paid for once, by the cheaper of sending a tensor and
sending what is needed of it.  Ties go to the tensor itself, whose memory is dense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from shared.graph.nodes import Op, Unit
from shared.graph.operators import is_view
from shared.tensor import SymbolicSpec

__all__ = ["Dataflow"]

_INPUT = -1


class Dataflow:
    """Producers, users and views of every value that units read or write.

    Preamble values and weights are not in it: both sides have them.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        units: Sequence[Unit],
        values: Mapping[int, SymbolicSpec],
    ) -> None:
        self.producer: dict[int, int] = dict.fromkeys(inputs, _INPUT)
        self.parent: dict[int, int] = {}
        self.users: dict[int, list[int]] = {slot: [] for slot in inputs}
        self._view_op: dict[int, Op] = {}
        self._children: dict[int, list[int]] = {}
        self._bytes = {slot: spec.at(1).nbytes for slot, spec in values.items()}
        self._outputs = frozenset(outputs)
        self._unit_count = len(units)
        for unit in units:
            for op in unit.ops:
                reads = [slot for slot in op.reads if slot in self.producer]
                view = is_view(op.target) and len(reads) == 1
                for slot in reads:
                    if self.users[slot][-1:] != [unit.index]:
                        self.users[slot].append(unit.index)
                for slot in op.written:
                    self.producer[slot] = unit.index
                    self.users[slot] = []
                    if view:
                        self.parent[slot] = reads[0]
                        self._children.setdefault(reads[0], []).append(slot)
                        self._view_op[slot] = op

    def root(self, slot: int) -> int:
        """The tensor whose memory ``slot`` is a view of; ``slot`` itself when it is none."""
        while slot in self.parent:
            slot = self.parent[slot]
        return slot

    def views(self) -> tuple[Op, ...]:
        """Every operator whose results are views, each once."""
        return tuple({id(op): op for op in self._view_op.values()}.values())

    def last_users(self) -> dict[int, int]:
        """For every value the last unit that reads it or a view of it (its own unit when none does).

        Outputs, and what they are views of, are used by the unit after the last.
        """
        last = {slot: max([*self.users[slot], owner]) for slot, owner in self.producer.items()}
        for slot in self._outputs & last.keys():
            last[slot] = self._unit_count
        for slot in reversed(list(self.producer)):  # children come after their parents
            if slot in self.parent:
                last[self.parent[slot]] = max(last[self.parent[slot]], last[slot])
        return last

    def topological_lives(self) -> list[tuple[int, ...]]:
        """The values to send at each cut of the canonical order: before unit 0, 1, ..., and at the end."""
        expiring: dict[int, list[int]] = {}
        starting: dict[int, list[int]] = {}
        for slot, owner in self.producer.items():
            if self.users[slot] and self.users[slot][-1] > owner:
                starting.setdefault(owner + 1, []).append(slot)
                expiring.setdefault(self.users[slot][-1] + 1, []).append(slot)
        needed: set[int] = set()
        lives = []
        for index in range(self._unit_count + 1):
            needed.difference_update(expiring.get(index, ()))
            needed.update(starting.get(index, ()))
            lives.append(self._cheapest(needed, lambda unit, bound=index: unit < bound))  # type: ignore[misc]
        return lives

    def live(self, edge_units: Collection[int]) -> tuple[int, ...]:
        """The values to send when exactly ``edge_units`` run on the device."""
        edge = frozenset(edge_units)

        def on_device(unit: int) -> bool:
            return unit == _INPUT or unit in edge

        needed = {
            slot
            for slot, owner in self.producer.items()
            if on_device(owner) and any(user not in edge for user in self.users[slot])
        }
        return self._cheapest(needed, on_device)

    def replay(self, live: Sequence[int], edge_units: Collection[int]) -> tuple[Op, ...]:
        """The views that the cloud takes again from the ``live`` tensors, in order."""
        edge = frozenset(edge_units)
        sent = frozenset(live)
        wanted: set[int] = set()
        for slot, owner in self.producer.items():
            if slot in sent or not (owner == _INPUT or owner in edge):
                continue
            if all(user in edge for user in self.users[slot]):
                continue
            while slot not in sent:
                wanted.add(slot)
                slot = self.parent[slot]
        ops: dict[int, Op] = {}
        for slot in self.producer:  # in order of production
            if slot in wanted:
                op = self._view_op[slot]
                ops[id(op)] = op
        return tuple(ops.values())

    def is_closed(self, edge_units: Collection[int]) -> bool:
        """Whether no unit among ``edge_units`` reads what a unit outside of them writes."""
        edge = frozenset(edge_units)
        return all(
            owner == _INPUT or owner in edge or not any(user in edge for user in self.users[slot])
            for slot, owner in self.producer.items()
        )

    def _cheapest(self, needed: Iterable[int], on_device: Callable[[int], bool]) -> tuple[int, ...]:
        wanted = set(needed)
        sent: list[int] = []
        for root in {self.root(slot) for slot in wanted}:
            sent.extend(self._cover(root, wanted, on_device)[1])
        return tuple(sorted(sent))

    def _cover(self, slot: int, wanted: set[int], on_device: Callable[[int], bool]) -> tuple[int, list[int]]:
        """The fewest bytes, and the values, from which all ``wanted`` views at or under ``slot`` follow."""
        if slot in wanted:
            return self._bytes[slot], [slot]
        total = 0
        parts: list[int] = []
        for child in self._children.get(slot, ()):
            if on_device(self.producer[child]):
                cost, sent = self._cover(child, wanted, on_device)
                total += cost
                parts += sent
        if parts and self._bytes[slot] <= total:
            return self._bytes[slot], [slot]
        return total, parts
