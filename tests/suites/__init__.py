"""Suites as other projects have them, run on each worker class and on the class that it replaces.

Rules:

* A suite compares with stock; what differs is a row of a table in docs/reliability.md
  (:mod:`tests.suites.differences`).
* A suite is bounded in time, and skipped with a reason where a library or a program is missing.
* They are outside CI: ``tox -e suites``, ``pytest tests/suites`` or ``python -m tests.suites``.
"""
