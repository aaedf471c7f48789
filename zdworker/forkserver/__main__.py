"""``python -m zdworker.forkserver``: how a master starts a generation (see ``master/launch.py``)."""

from zdworker.forkserver.server import main

main()
