"""``python -m zdworker`` runs the command where its script is not on the path."""

from zdworker.command.cli import main

main(prog_name="zdworker")
