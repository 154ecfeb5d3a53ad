"""A maximum flow and its minimum cut, with integer capacities, for graphs of thousands of arcs.

Dinic's algorithm (Soviet Math. Dokl. 11, 1970) with current arcs.  Integers, so that the partition is that
of a true minimum: with floats a residue of 1e-16 can join the two sides.
"""

from __future__ import annotations

__all__ = ["UNBOUNDED", "FlowNetwork"]

UNBOUNDED = 1 << 60
"""The capacity of an arc that no minimum cut may sever."""


class FlowNetwork:
    """Arcs between nodes ``0 .. nodes - 1``.  One call of :meth:`minimum_cut` uses it up."""

    def __init__(self, nodes: int) -> None:
        self._arcs: list[list[int]] = [[] for _ in range(nodes)]
        self._head: list[int] = []
        self._left: list[int] = []  # arc e and its reverse e ^ 1

    def add_node(self) -> int:
        self._arcs.append([])
        return len(self._arcs) - 1

    def add_arc(self, tail: int, head: int, capacity: int, backward: int = 0) -> None:
        """``backward`` is the capacity from ``head`` to ``tail``."""
        self._arcs[tail].append(len(self._head))
        self._head.append(head)
        self._left.append(capacity)
        self._arcs[head].append(len(self._head))
        self._head.append(tail)
        self._left.append(backward)

    def minimum_cut(self, source: int, sink: int) -> tuple[int, list[bool]]:
        """The flow, and for every node whether it is on the source's side of a minimum cut: the largest
        such side, since ties leave a node with the source unless it must go."""
        flow = 0
        while True:
            distance = self._distances_to(sink)
            if distance[source] < 0:
                return flow, [steps < 0 for steps in distance]
            flow += self._blocking_flow(source, sink, distance)

    def _distances_to(self, sink: int) -> list[int]:
        """Arcs with capacity left between every node and the sink; -1 where there is no way."""
        arcs, head, left = self._arcs, self._head, self._left
        distance = [-1] * len(arcs)
        distance[sink] = 0
        queue = [sink]
        for node in queue:
            next_distance = distance[node] + 1
            for arc in arcs[node]:
                other = head[arc]
                if distance[other] < 0 and left[arc ^ 1] > 0:
                    distance[other] = next_distance
                    queue.append(other)
        return distance

    def _blocking_flow(self, source: int, sink: int, distance: list[int]) -> int:
        """Saturate every shortest way, by walking, retreating at dead ends and never trying an arc twice."""
        arcs, head, left = self._arcs, self._head, self._left
        current = [0] * len(arcs)
        path: list[int] = []
        node = source
        flow = 0
        while True:
            if node == sink:
                amount = min(left[arc] for arc in path)
                flow += amount
                for arc in path:
                    left[arc] -= amount
                    left[arc ^ 1] += amount
                full = next(index for index, arc in enumerate(path) if left[arc] == 0)
                node = head[path[full] ^ 1]
                del path[full:]
                continue
            outgoing, index, closer = arcs[node], current[node], distance[node] - 1
            while index < len(outgoing):
                arc = outgoing[index]
                if left[arc] > 0 and distance[head[arc]] == closer:
                    break
                index += 1
            current[node] = index
            if index < len(outgoing):
                path.append(outgoing[index])
                node = head[outgoing[index]]
            elif path:
                node = head[path.pop() ^ 1]
                current[node] += 1
            else:
                return flow
