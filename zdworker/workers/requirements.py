"""What a worker needs that may be missing: a generation checks it, and one line names the extra that installs it.

Rules: it is checked while a generation loads, so that a reload fails and nothing is touched. Gunicorn and uvicorn look
for these libraries when a connection comes, which then hangs or is cut.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from zdworker.errors import GenerationError

EXTRAS = {
    "gevent": "gevent",
    "gunicorn_h1c": "fast",
    "h2": "http2",
    "httptools": "standard",
    "packaging": "gevent",
    "tornado": "tornado",
    "uvloop": "standard",
    "websockets": "standard",
    "wsproto": "",
    "zttp": "",
}
"""The extra of zdworker that installs a library, by the library's module; empty if none does."""


def refuse_missing(error: ImportError, needed_by: str) -> None:
    """Refuse what needs a library of :data:`EXTRAS` that is not installed; do nothing if ``error`` is about another.

    :param needed_by: what cannot work without it, such as ``"zdworker.GeventWorker"``.
    :raises GenerationError: one line that says what to install.
    """
    module = (error.name or "").partition(".")[0]
    if module in EXTRAS:
        package = f"zdworker[{EXTRAS[module]}]" if EXTRAS[module] else module
        reason = f"{needed_by} needs {module}, which is not installed: pip install '{package}'"
        raise GenerationError(reason) from error


def require_parser(cfg: Any) -> None:
    """Check that Gunicorn can use the parser that ``http_parser`` names; before Gunicorn 26 there is only one.

    :raises GenerationError: it cannot; Gunicorn would find that out with each request.
    """
    from gunicorn.http import message

    check = getattr(message, "_check_fast_parser", None)
    if check is None:
        return
    try:
        check(cfg)
    except RuntimeError as error:
        install = "" if importlib.util.find_spec("gunicorn_h1c") else " (pip install 'zdworker[fast]')"
        raise GenerationError(f"http_parser = {cfg.http_parser!r}: {error}{install}") from error
