"""The places that a generation comes from: the paths that it was started and loaded by, with what each one led to.

Rules:

* A place has a kind, a name and what the name led to when it was used: the start directory ``/srv/current`` led to
  ``/srv/releases/2``. The master compares these at the end of the load with what the names lead to then.
* The interpreter runs in the start directory from its first moment on, because that is where it resolves what is
  relative in its command and environment. One that cannot be entered is an obstacle: the generation fails if its
  application would be loaded from there.
* Nothing is imported here to find out where it is.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any

from zdworker.errors import GenerationError
from zdworker.ipc.messages import Place


class Places:
    """What a generation has come by so far.

    :param directory: the start directory by its logical path.
    """

    def __init__(self, directory: str) -> None:
        self.obstacle = ""
        """Why the start directory cannot be entered, empty when the generation is in it."""
        self._directory = directory
        self._found: dict[str, dict[str, str]] = {}

    def enter(self) -> None:
        """Enter the start directory, and note it and the interpreter.

        The master has started this process there; that of an earlier zdworker has not. What is noted is where the
        interpreter was started, so that the master notices when a link has moved in between.
        """
        try:
            started_in = os.getcwd()
            os.chdir(self._directory)
        except OSError as error:
            self.obstacle = f"the start directory {self._directory} cannot be entered ({error.strerror})"
        else:
            self._found[Place.DIRECTORY] = {self._directory: started_in}
        if sys.executable:
            self.note(Place.INTERPRETER, sys.executable)

    def note(self, kind: str, name: str) -> None:
        """Note what ``name`` leads to now; a relative name counts from the start directory."""
        name = os.path.join(self._directory, name)
        self._found.setdefault(kind, {})[name] = os.path.realpath(name)

    def resolve_import_path(self) -> None:
        """Make ``sys.path`` physical, so that a late import comes from where an early one did, and note its names.

        Called again, it goes on from there: what was noted before keeps its name, and what that led to.
        """
        noted = self._found.get(Place.PATH, {})
        names = {resolved: name for name, resolved in noted.items()}
        found: dict[str, str] = {}
        for index, entry in enumerate(sys.path):
            if isinstance(entry, str):  # nothing else is searched
                resolved = sys.path[index] = _physical(entry)
                name = names.get(entry, entry or resolved)
                found.setdefault(name, noted.get(name, resolved))
        self._found[Place.PATH] = found

    def refuse_unreachable(self, app: Any) -> None:
        """Refuse to load an application from a start directory that cannot be entered.

        A configured ``chdir`` takes the place of the start directory; it has been entered by now.

        :param app: Gunicorn's application, with its configuration evaluated.
        :raises GenerationError: the start directory is where the application would be loaded from.
        """
        from gunicorn.app.base import Application
        from gunicorn.config import Chdir

        if self.obstacle and isinstance(app, Application) and app.cfg.chdir == Chdir.default:
            raise GenerationError("no other directory is configured (chdir)")

    def note_application(self, app: Any) -> None:
        """Note the file of the application's module, where Gunicorn's application object names one."""
        file = _file_of_module(str(getattr(app, "app_uri", None) or "").partition(":")[0])
        if file:
            self.note(Place.APPLICATION, file)

    def to_plain(self) -> dict[str, dict[str, str]]:
        """Return them as they are sent to the master: for each kind what each name led to."""
        return self._found


def _physical(entry: str) -> str:
    """Return an entry of ``sys.path`` without links; one that is no path (the mark of an import hook) as it is."""
    return os.path.realpath(entry) if os.path.isabs(entry) or os.path.exists(entry or ".") else entry


def _file_of_module(name: str) -> str | None:
    """Return the file that a module was imported from, or would be; None where that cannot be known."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__file__", None)
    with contextlib.suppress(Exception):  # any finder may be installed, and names that are no module's are found, too
        spec = _find_spec(name)
        if spec is not None and spec.has_location:
            return spec.origin
    return None


def _find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module as an import would, but without importing the packages above it."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for part in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            where = list(spec.submodule_search_locations)
            spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{part}", where)
        return spec
    finally:
        importlib.invalidate_caches()  # the workers look into these directories later, when there may be more in them
