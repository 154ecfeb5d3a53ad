"""The queue of one model: by deadline, but nobody gets far ahead of the others.

Time is cut into turns.  In each turn an account may lay as much work as ``quantum_ms`` times its weight;
what exceeds that goes into its following turns.  All of one turn runs before any of the next, and within a
turn the earliest deadline runs first, whoever sent it.  An account that has nothing waiting joins the
turn that is being served.  This is start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) with the
start tags rounded down to whole turns, which leaves room for deadlines.

The bound: while two accounts both have work waiting, the work done for one, divided by its weight, gets
ahead of the other's by less than

    2 * quantum_ms + (longest request of one) / its weight + (longest request of the other) / its weight

For work that is waiting in the queue of one account, deadlines alone decide.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from cloud_cluster.work import Request

__all__ = ["QUANTUM_MS", "FairQueue"]

QUANTUM_MS = 50.0

# Work of unknown or no length still takes a place: carrying it costs something.
_LEAST_WORK_MS = 0.1
_IDLE_ACCOUNTS = 64

_Key = tuple[int, float, int]


def _own_order(request: Request) -> tuple[float, int]:
    return request.deadline_ms, request.id


def _key(request: Request) -> _Key:
    return int(request.start), request.deadline_ms, request.id


@dataclass(slots=True)
class _Account:
    """``served`` is the end of what has been taken out, in turns; ``waiting`` is by deadline."""

    served: float = 0.0
    waiting: list[Request] = field(default_factory=list)


class FairQueue:
    """Requests in the order in which they are to run.  See the module for the order and its bound.

    The order is kept in sorted lists: with hundreds of requests a look at a place costs microseconds, and
    the work in front of any place is one sum.
    """

    def __init__(self, quantum_ms: float = QUANTUM_MS) -> None:
        self._quantum_ms = quantum_ms
        self._turn = 0
        self._accounts: dict[bytes, _Account] = {}
        # Three lists in one order.
        self._keys: list[_Key] = []
        self._works: list[float] = []
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """In the order in which they are to run."""
        return iter(self._requests)

    @property
    def work_ms(self) -> float:
        return sum(self._works)

    @property
    def first(self) -> Request:
        """The next to run.  Raises IndexError when nothing waits."""
        return self._requests[0]

    @property
    def last(self) -> Request:
        """The one furthest ahead of its share.  Raises IndexError when nothing waits."""
        return self._requests[-1]

    def ahead_ms(self, request: Request) -> float:
        """The work in front of a request, where it stands or, not pushed yet, would stand."""
        if not request.queued:
            self._place(request)
        return sum(self._works[: bisect_left(self._keys, _key(request))])

    def ahead_of_newcomer_ms(self) -> float:
        """The work in front of a request without a budget, of an account that has nothing waiting."""
        return sum(self._works[: bisect_left(self._keys, (self._turn + 1,))])

    def is_ahead_of_last(self, request: Request) -> bool:
        """Whether a request that is not pushed yet would run in an earlier turn than the last one."""
        self._place(request)
        return int(request.start) < self._keys[-1][0]

    def push(self, request: Request) -> None:
        """Later requests of the same account with later deadlines make room for it."""
        account = self._accounts.get(request.account)
        if account is None:
            self._forget_idle_accounts()
            account = self._accounts[request.account] = _Account()
        place = bisect_left(account.waiting, _own_order(request), key=_own_order)
        later = account.waiting[place:]
        for each in later:
            self._take_out(each)
        self._place(request)
        account.waiting.insert(place, request)
        request.queued = True
        self._put_in(request)
        self._lay(account, place + 1)

    def pop(self) -> Request:
        """Take out the next to run; its account is charged for it.  Raises IndexError when nothing waits."""
        request = self._requests[0]
        account = self._accounts[request.account]
        self._turn = max(self._turn, int(request.start))
        account.served = request.start + request.length
        del account.waiting[0]
        self._take_out(request)
        request.queued = False
        self._clear_if_empty()
        return request

    def remove(self, request: Request) -> None:
        """Take out one that is not going to run: its account gets its place back."""
        account = self._accounts[request.account]
        place = bisect_left(account.waiting, _own_order(request), key=_own_order)
        for each in account.waiting[place:]:
            self._take_out(each)
        del account.waiting[place]
        request.queued = False
        self._lay(account, place)
        self._clear_if_empty()

    def _place(self, request: Request) -> None:
        """Work out where it stands behind those of its account that have an earlier deadline."""
        request.length = max(request.work_ms, _LEAST_WORK_MS) / (request.weight * self._quantum_ms)
        account = self._accounts.get(request.account)
        if account is None:
            request.start = float(self._turn)
            return
        place = bisect_left(account.waiting, _own_order(request), key=_own_order)
        request.start = self._start(account, place)

    def _start(self, account: _Account, place: int) -> float:
        if place:
            before = account.waiting[place - 1]
            return before.start + before.length
        return max(account.served, float(self._turn))

    def _lay(self, account: _Account, place: int) -> None:
        """Put in what waits from this place on, one behind the other."""
        for index in range(place, len(account.waiting)):
            request = account.waiting[index]
            request.start = self._start(account, index)
            self._put_in(request)

    def _put_in(self, request: Request) -> None:
        key = _key(request)
        place = bisect_left(self._keys, key)
        self._keys.insert(place, key)
        self._works.insert(place, request.work_ms)
        self._requests.insert(place, request)

    def _take_out(self, request: Request) -> None:
        place = bisect_left(self._keys, _key(request))
        del self._keys[place], self._works[place], self._requests[place]

    def _clear_if_empty(self) -> None:
        """When nothing waits nobody is ahead of anybody."""
        if not self._requests:
            self._accounts.clear()
            self._turn = 0

    def _forget_idle_accounts(self) -> None:
        if len(self._accounts) > 2 * len(self._requests) + _IDLE_ACCOUNTS:
            self._accounts = {
                name: account
                for name, account in self._accounts.items()
                if account.waiting or account.served > self._turn
            }
