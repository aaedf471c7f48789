"""Running the master's command a second time: in a fork server, and in the master itself after an upgrade.

Rules: the interpreter was started with a module of zdworker's in the place of the command, and with a safe path, so
that its own imports do not find a file of the application's. Here ``sys.path`` and ``sys.argv`` become what the command
expects. Import paths are physical: a late import comes from where an early one did, wherever a link points by then.
"""

from __future__ import annotations

import os
import pkgutil
import runpy
import sys

from zdworker.forkserver.places import Places


def make_paths_physical(places: Places, *, safe_path: bool) -> None:
    """Make all import paths physical, and note them."""
    if not safe_path:
        os.environ.pop("PYTHONSAFEPATH", None)
        if not getattr(sys.flags, "safe_path", False):
            del sys.path[0]  # the working directory, which ``-m`` has put there: Python 3.10 has no safe path
    places.resolve_import_path()
    package = sys.modules["zdworker"]
    package.__path__[:] = [os.path.realpath(path) for path in package.__path__]


def run(command: list[str], *, safe_path: bool) -> None:
    """Run a command as the interpreter would: ``-m module``, ``-c code`` or a script, with its arguments.

    :param safe_path: the master was started with ``-P`` or ``-I``: the working directory is not imported from.
    """
    if command[0] == "-m":
        sys.argv = command[1:]
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        if not safe_path:
            sys.path.insert(0, os.getcwd())
        code = compile(command[1], "<string>", "exec")
        exec(code, {"__name__": "__main__"})  # noqa: S102  # it is the user's own command, which runs a second time
    else:
        sys.argv = command
        # Not for a directory or an archive, which runpy puts there itself: a start does not look beside those.
        if not safe_path and pkgutil.get_importer(command[0]) is None:
            sys.path.insert(0, os.path.dirname(os.path.realpath(command[0])))
        runpy.run_path(command[0], run_name="__main__")
