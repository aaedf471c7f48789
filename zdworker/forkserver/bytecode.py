"""No stale bytecode: a cached file is trusted only if it was written after its source last changed.

Python trusts a ``.pyc`` whose header has the source's size and its modification time in whole seconds (PEP 552,
``importlib/_bootstrap_external.py``). An edit of the same size within the same second, or one that keeps the time (a
copy with preserved times), is not seen: the old code runs on (python/cpython#75953).

Rules:

* The inode change time, which no tool can set, decides. A cached file that is not younger is passed over, as if it were
  not there; Python then compiles the source and writes the cache anew.
* Only sources that have changed since the master started are looked at this way. What was there before is not a deploy,
  and in an unpacked image every source is younger than every cache, which might not even be writable.
* Checked hash-based files would be exact too, but nobody makes them, and it is not ours to rewrite the caches of a
  whole environment.
"""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader


def distrust_stale_bytecode(since: int) -> None:
    """Apply the rules to every import of this process from now on.

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

    Where one of them cannot be looked at there is nothing to trust, either.
    """
    try:
        changed = os.stat(source).st_ctime_ns
        return changed >= since and os.stat(cached).st_mtime_ns <= changed
    except OSError:
        return True
