"""Which role this process has, and which worker classes are zdworker's.

Rules: this is a leaf. Every part of zdworker may import it, and it imports nothing of zdworker. So a fork server, the
master and a worker can ask these two questions without importing each other.
"""

from __future__ import annotations

in_generation = False
"""Whether this process belongs to a generation, as a fork server or a worker. Such a process cannot become a master."""


class ZeroDowntimeClass:
    """Marks a Gunicorn worker class as one that zdworker can replace without downtime.

    :class:`zdworker.workers.base.ZeroDowntime` derives from it; nothing else does.
    """


def is_zero_downtime(worker_class: object) -> bool:
    """Return whether ``worker_class`` is one of zdworker's worker classes, or one that was made with its mixin."""
    return isinstance(worker_class, type) and issubclass(worker_class, ZeroDowntimeClass)
