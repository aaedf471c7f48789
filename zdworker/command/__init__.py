"""The process of the ``zdworker`` command, which sends orders to a master over its control socket."""
