"""For all tests."""

from __future__ import annotations

import asyncio


def pytest_configure() -> None:
    # Without it pytest-asyncio asks for the current event loop outside of any test, which makes one that
    # nobody closes; the warning of that then fails whichever test happens to run when it is collected.
    asyncio.set_event_loop(None)
