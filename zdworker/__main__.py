"""``python -m zdworker``: the command, where its script is not on the path."""

from zdworker.cli import main

main(prog_name="zdworker")
