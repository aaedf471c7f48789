"""Where a process hangs, by the stack that it has written."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import zdworker
from zdworker.master import stacks

STACK = f"""\
something that was printed before
Thread 0x00007f11b9ffb6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/srv/app/background.py", line 7 in wait_for_work

Current thread 0x00007f11c1a2c740 (most recent call first):
  File "/usr/lib/python3.11/socket.py", line 837 in create_connection
  File "/srv/app/venv/lib/python3.11/site-packages/redis/connection.py", line 12 in connect
  File "/srv/app/shop/cart.py", line 3 in open_cart
  File "/srv/app/app.py", line 9 in <module>
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed
  File "{os.path.dirname(str(zdworker.__file__))}/forkserver/server.py", line 310 in _load

Extension modules: redis (total: 1)
"""


def test_the_applications_own_line_is_named() -> None:
    assert stacks.where(STACK) == "/srv/app/shop/cart.py, line 3, in open_cart"
    assert stacks.of_application(STACK).splitlines() == [
        "Stack (most recent call first):",
        '  File "/srv/app/shop/cart.py", line 3 in open_cart',
        '  File "/srv/app/app.py", line 9 in <module>',
    ]


def test_without_a_line_of_the_applications_the_innermost_one_is() -> None:
    stack = (
        'Thread 0x1 (most recent call first):\n  File "<frozen os>", line 3 in wait\n  File "<string>", line 4 in x\n'
    )
    assert stacks.where(stack) == "<frozen os>, line 3, in wait"
    assert stacks.of_application(stack) == ""


@pytest.mark.parametrize("text", ["", "printed", "Thread 0x1 (most recent call first):\n  <no Python frame>\n"])
def test_what_is_no_stack_tells_nothing(text: str) -> None:
    assert (stacks.where(text), stacks.of_application(text)) == ("", "")


def test_a_thread_of_this_process() -> None:
    leave = threading.Event()
    hanging = threading.Thread(target=leave.wait, daemon=True)
    hanging.start()
    assert "wait" in stacks.of_thread(hanging.ident)
    leave.set()
    hanging.join()
    assert stacks.of_thread(hanging.ident) == stacks.of_thread(None) == ""


def test_what_python_writes_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import faulthandler, threading, time\n"
        "def hang():\n"
        "    faulthandler.dump_traceback(all_threads=True)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "hang()\n"
    )
    written = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True).stderr
    assert stacks.where(written) == f"{program}, line 3, in hang"
