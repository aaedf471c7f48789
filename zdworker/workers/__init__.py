"""The worker classes: each one a base class of Gunicorn's kind with the contract of :mod:`zdworker.workers.base`."""
