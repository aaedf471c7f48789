"""The ``zdworker`` command's process: it talks to a master over its control socket."""
