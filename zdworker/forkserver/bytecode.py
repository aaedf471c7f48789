"""No stale bytecode: a cached file is trusted only if it was written after its source last changed.

Python trusts a ``.pyc`` file whose header has the source's size and its modification time in whole seconds (PEP 552,
``importlib/_bootstrap_external.py``). It does not notice an edit of the same size within the same second, or one that
keeps the time (a copy with preserved times), and would run the old code (python/cpython#75953).

Rules:

* The inode change time decides, because no tool can set it. Python is made to see no cached file where the file is not
  younger than its source; it then compiles the source and writes the cache again.
* Only sources that have changed since the master started are checked. Those that were there before were not deployed
  since, and in an unpacked image every source is younger than every cache, which might not even be writable.
* Checked hash-based files would be exact too, but few tools make them, and rewriting the caches of a whole environment
  is not zdworker's business.
"""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader


def distrust_stale_bytecode(since: int) -> None:
    """Apply the rules to every import of this process from now on.

    The change stays for the life of the process: it replaces ``SourceFileLoader.get_data``.

    :param since: when the master started, in nanoseconds since the epoch.
    """
    stock = SourceFileLoader.get_data

    def get_data(loader: SourceFileLoader, path: str) -> bytes:
        if path.endswith(".pyc") and is_stale(path, loader.path, since):
            raise FileNotFoundError(f"{path} is not younger than its source")
        return stock(loader, path)

    SourceFileLoader.get_data = get_data  # type: ignore[method-assign,assignment]


def is_stale(cached: str | bytes, source: str | bytes, since: int) -> bool:
    """Return whether ``source`` has changed after ``since`` and ``cached`` was not written after that.

    A file that cannot be examined is not trusted, so the result is True.
    """
    try:
        changed = os.stat(source).st_ctime_ns
        return changed >= since and os.stat(cached).st_mtime_ns <= changed
    except OSError:
        return True
