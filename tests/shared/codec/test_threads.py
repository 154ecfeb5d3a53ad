"""Encoding on one thread: where it holds, and that it ends."""

from __future__ import annotations

import threading

import torch

from shared.codec.threads import one_thread


def test_it_holds_in_the_thread_that_enters_it_and_there_alone() -> None:
    seen: list[int] = []
    inside, other = threading.Event(), threading.Event()

    def encoder() -> None:
        torch.set_num_threads(3)
        with one_thread():
            seen.append(torch.get_num_threads())
            inside.set()
            assert other.wait(20)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=encoder)
    thread.start()
    assert inside.wait(20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.get_num_threads() == 2
    finally:
        other.set()
        thread.join()
        torch.set_num_threads(before)
    assert seen == [1, 3]


def test_a_thread_that_has_not_computed_yet_is_limited_too() -> None:
    seen: list[int] = []

    def encoder() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=encoder)
    thread.start()
    thread.join()
    assert seen == [1]
