from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.child import Child, ChildError

ECHO = """
import asyncio
from bench.child import answer

async def double(value):
    print("printed by the command")
    return value * 2

def fail():
    raise LookupError("nothing there")

asyncio.run(answer({"double": double, "fail": fail}, {"pid": 1}))
"""


async def test_a_child_answers_what_it_is_told_and_says_what_went_wrong(tmp_path: Path) -> None:
    child = await Child.start("echo", [sys.executable, "-c", ECHO], tmp_path / "log")
    assert await child.ready() == {"pid": 1}
    assert await asyncio.gather(*(child.call("double", value=n) for n in range(5))) == [0, 2, 4, 6, 8]
    with pytest.raises(ChildError, match="echo refused fail: LookupError: nothing there"):
        await child.call("fail")
    with pytest.raises(ChildError, match="no command 'treble'; there are double, fail"):
        await child.call("treble")
    with pytest.raises(ChildError, match="TypeError"):
        await child.call("double", worth=1)
    assert await child.call("double", value="ab") == "abab"
    await child.stop()
    assert child.returncode == 0
    assert (tmp_path / "log").read_text().count("printed by the command") == 6


async def test_a_child_that_fails_to_start_shows_its_log(tmp_path: Path) -> None:
    child = await Child.start("the link", ["/bin/sh", "-c", "echo broken >&2; exit 7"], tmp_path / "log")
    with pytest.raises(ChildError, match=r"the link ended with code 7\n  broken"):
        await child.ready()
    await child.stop()


async def test_a_child_that_prints_before_it_is_ready_is_found_out(tmp_path: Path) -> None:
    child = await Child.start("chatty", ["/bin/sh", "-c", "echo hello; sleep 600"], tmp_path / "log")
    with pytest.raises(ChildError, match=r"chatty printed b'hello\\n' where its answer should be"):
        await child.ready()
    await child.stop(grace_s=0.1)


async def test_a_child_that_ignores_its_order_to_leave_is_ended_with_all_it_started(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; (trap '' TERM; sleep 600) & echo $!; while :; do sleep 600; done"
    child = await Child.start("stubborn", ["/bin/sh", "-c", stubborn], tmp_path / "log", controlled=False)
    log = tmp_path / "log"
    await asyncio.to_thread(wait_until, lambda: bool(log.read_text().strip()))
    await child.stop(grace_s=0.2)
    assert child.returncode == -9
    grandchild = int(log.read_text())
    await asyncio.to_thread(wait_until, lambda: not runs(grandchild))


STUBBORN = """
import asyncio
from bench.child import run

async def body():
    try:
        print("ready", flush=True)
        await asyncio.sleep(600)
    finally:
        print("ending", flush=True)
        await asyncio.sleep(0.3)
        print("ended", flush=True)

run(body())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_only_the_first_order_to_stop_counts(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts jobs in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert rest == "ended\n"
    assert errors.rstrip().endswith("KeyboardInterrupt")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
