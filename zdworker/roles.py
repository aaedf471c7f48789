"""Which role this process has, and which worker classes are zdworker's.

Rules: this is a leaf. Every part of zdworker may import it, and it imports nothing of zdworker. So a fork server, the
master and a worker can ask these two questions without importing each other.
"""

from __future__ import annotations

in_generation = False
"""Whether this process belongs to a generation: a fork server, or a worker. There is no master to become in it."""


class ZeroDowntimeClass:
    """Marks a Gunicorn worker class as one that zdworker can replace without downtime.

    :class:`zdworker.workers.base.ZeroDowntime` derives from it; nothing else does.
    """


def is_zero_downtime(worker_class: object) -> bool:
    """Return whether ``worker_class`` is a worker class of zdworker's, or one made with its mixin."""
    return isinstance(worker_class, type) and issubclass(worker_class, ZeroDowntimeClass)
