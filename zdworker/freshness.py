"""No stale bytecode: a cached file is trusted only if it was written after its source last changed.

Python trusts a ``.pyc`` whose header has the source's size and its modification time in whole seconds (PEP 552,
``importlib/_bootstrap_external.py``). An edit of the same size within the same second, or one that keeps the time (a
copy with preserved times), is not seen: the old code runs on (python/cpython#75953).

Rule: the inode change time, which no tool can set, decides. A cached file that is not younger is passed over, as if
it were not there; Python then compiles the source and writes the cache anew. Checked hash-based files would be exact
too, but nobody makes them, and it is not ours to rewrite the caches of a whole environment.
"""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader


def distrust_stale_bytecode() -> None:
    """Apply the rule to every import of this process from now on."""
    stock = SourceFileLoader.get_data

    def get_data(loader: SourceFileLoader, path: str) -> bytes:
        if path.endswith(".pyc") and not written_after_source(path, loader.path):
            raise FileNotFoundError(f"{path} is not younger than its source")
        return stock(loader, path)

    SourceFileLoader.get_data = get_data  # type: ignore[method-assign,assignment]


def written_after_source(cached: str | bytes, source: str | bytes) -> bool:
    """Return whether ``cached`` was written after ``source`` last changed; False when either cannot be looked at."""
    try:
        return os.stat(cached).st_mtime_ns > os.stat(source).st_ctime_ns
    except OSError:
        return False
