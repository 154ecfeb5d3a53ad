"""How many threads an operator may use while tensors are encoded and decoded: one."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch  # before the controller is made, which finds what is loaded
from threadpoolctl import ThreadpoolController

__all__ = ["one_thread"]

_OPENMP = ThreadpoolController().select(user_api="openmp")


def one_thread() -> AbstractContextManager[object]:
    """For short operators: on several threads, of which one waits for a busy core, they take many times as
    long as on one.

    Concerns the thread that enters it alone, and takes 4 us.  ``torch.set_num_threads`` would do the same,
    but drops what oneDNN has prepared for the convolutions that come next.
    """
    torch.get_num_threads()  # torch sets the number at a thread's first use, which must not come inside
    limited: AbstractContextManager[object] = _OPENMP.limit(limits=1)
    return limited
