"""The start of zdworker in the master: ``-k zdworker.…`` makes Gunicorn import a worker class in ``Arbiter.__init__``.

Rules: importing a worker class changes two methods of Gunicorn, once. ``Arbiter.run`` continues as zdworker's arbiter,
and ``BaseApplication.wsgi`` does not load a preloaded application into the master (``preload_app`` stays as it was set,
since hooks read it). Both check first whether the configured worker class is one of zdworker's; with another one
Gunicorn works as without zdworker.
"""

from __future__ import annotations

from typing import Any

from zdworker import roles, syscalls

_installed = False


def _overrides(subclass: type, base: type) -> list[str]:
    """Return the names that ``subclass`` and the classes between it and ``base`` define; none of ``base`` itself."""
    between = subclass.__mro__[: subclass.__mro__.index(base)]
    own = {
        name for one in between for name, value in vars(one).items() if callable(value) or isinstance(value, property)
    }
    return sorted(own)


def refusal_of(arbiter: Any) -> str:
    """Return why zdworker cannot take the place of an arbiter, "" if it can: it has methods that nobody would call."""
    from gunicorn.arbiter import Arbiter

    overrides = _overrides(type(arbiter), Arbiter)
    if not overrides:
        return ""
    name = f"{type(arbiter).__module__}.{type(arbiter).__qualname__}"
    return (
        f"{name} is a subclass of Gunicorn's Arbiter, in whose place zdworker puts its own: {', '.join(overrides)} "
        "would have no effect. Start gunicorn.arbiter.Arbiter and put what they do into hooks, or use a worker class "
        "of Gunicorn's"
    )


def install() -> None:
    """Change Gunicorn in this process; a second call does nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    syscalls.open_standard_streams()
    from gunicorn.app.base import BaseApplication
    from gunicorn.arbiter import Arbiter
    from gunicorn.config import Chdir

    stock_run, stock_wsgi = Arbiter.run, BaseApplication.wsgi

    def run(arbiter: Any) -> None:
        if not roles.is_zero_downtime(arbiter.worker_class):
            stock_run(arbiter)
            return
        refusal = refusal_of(arbiter)
        if not refusal:
            from zdworker.master import launch

            launch.start_early(arbiter.cfg, str(Chdir.default))
        from zdworker.master.arbiter import ZeroDowntimeArbiter, refuse_start

        if refusal:
            refuse_start(refusal)
        arbiter.__class__ = ZeroDowntimeArbiter
        arbiter.run(stock_run)

    def wsgi(app: Any) -> Any:
        if (
            not roles.in_generation
            and app.callable is None
            and app.cfg.preload_app
            and roles.is_zero_downtime(app.cfg.worker_class)
        ):
            return None
        return stock_wsgi(app)

    Arbiter.run = run
    BaseApplication.wsgi = wsgi
