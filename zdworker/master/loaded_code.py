"""What a master that forks its workers itself has in memory, and whether that is still what is on disk.

Rules:

* Such workers have all modules that the master had imported, the application among them if an embedding program has
  handed it over as an object. They import the rest themselves. So they run what is on disk exactly when no file of an
  imported module has changed, and the master imports from where a start at this moment would import.
* A file has changed when its time, size or inode is another, or when it is gone. A module that was imported once more
  is known by its object, and is new.
* A module counts from when it is first seen here: what had changed on disk between its import and that moment is not
  noticed. So this looks at the start, before each fork and at each reload.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from types import ModuleType

from zdworker.errors import GenerationError
from zdworker.syscalls import FileState, file_state

NAMES_MAX = 5
"""Names in a message; the others are counted."""


@dataclass(frozen=True)
class _Loaded:
    module: ModuleType
    file: str
    state: FileState | None
    """None: the file could not be found when the module was first seen, so nothing can be said of it."""


class LoadedCode:
    """The modules of this process, with the files that they came from as these were.

    :param directory: the logical directory that the master was started in.
    :param reason: why workers are forked from this process.
    """

    def __init__(self, directory: str, reason: str) -> None:
        self._directory, self._reason = directory, reason
        self._physical = os.path.realpath(directory)
        self._interpreter = file_state(sys.executable)
        self._loaded: dict[str, _Loaded] = {}
        self.note()

    def note(self) -> None:
        """Remember the modules that were imported since the last call."""
        for name, module in list(sys.modules.items()):  # a copy, because another thread may import meanwhile
            known = self._loaded.get(name)
            # The configuration's module is evaluated with each reload.
            if (known is None or known.module is not module) and name != "__config__":
                file = _file_of(module)
                if file is not None:
                    self._loaded[name] = _Loaded(module, file, file_state(file))

    def summary(self) -> str:
        """Return the names of the imported modules that belong to no library."""
        own = [name.partition(".")[0] for name, loaded in self._loaded.items() if not _is_library(loaded.file)]
        return _names(list(dict.fromkeys(own))) or "nothing but libraries"

    def refuse_outdated(self) -> None:
        """Refuse a reload whose workers would not run what is on disk. This asks for the state of many files.

        :raises GenerationError: they would not; the text names what has changed.
        """
        changed = self._changed()
        self.note()
        if changed:
            raise GenerationError(
                f"workers are forked from this master ({self._reason}), and what it has in memory has changed on disk: "
                f"{_names(changed)}; restart the program"
            )
        now = os.path.realpath(self._directory)
        if now != self._physical and self._imports_from(self._physical):
            raise GenerationError(
                f"workers are forked from this master ({self._reason}), which imports from {self._physical}, but "
                f"{self._directory} is {now} by now; restart the program"
            )

    def _changed(self) -> list[str]:
        changed = {  # by file, because the main module has two names in a child of multiprocessing
            loaded.file: f"{name} ({loaded.file})"
            for name, loaded in self._in_memory().items()
            if loaded.state is not None and file_state(loaded.file) != loaded.state
        }
        if file_state(sys.executable) != self._interpreter:
            changed[sys.executable] = f"the interpreter ({sys.executable})"
        return list(changed.values())

    def _in_memory(self) -> dict[str, _Loaded]:
        loaded = list(self._loaded.items())  # a copy, because the main thread may note more meanwhile
        return {name: known for name, known in loaded if sys.modules.get(name) is known.module}

    def _imports_from(self, directory: str) -> bool:
        paths = [*sys.path, *(loaded.file for loaded in self._in_memory().values())]
        return any(os.path.join(path, "").startswith(os.path.join(directory, "")) for path in paths)


def _file_of(module: object) -> str | None:
    """Return the file of a module; without its own ``__getattribute__``, which may import, or raise anything."""
    try:
        file = object.__getattribute__(module, "__dict__").get("__file__")
    except AttributeError:
        return None
    return file if isinstance(file, str) else None


def _is_library(file: str) -> bool:
    parts = os.path.dirname(file).split(os.sep)
    return bool({"site-packages", "dist-packages"} & set(parts)) or file.startswith(sysconfig.get_path("stdlib"))


def _names(names: list[str]) -> str:
    more = len(names) - NAMES_MAX
    return ", ".join(names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")
