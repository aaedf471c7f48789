"""``python -m zdworker.forkserver``: the master starts a generation with this (see ``master/launch.py``)."""

from zdworker.forkserver.server import main

main()
