"""What ``zdworker check`` runs in a process of its own: the master's own start, without a port, beside a running site.

Rules:

* It is a room of its own because it plays the master, and the command may know nothing of the master. The command
  starts it as a program, ``python -m zdworker.check``, and reads its findings from a channel.
* It does what a start does, with the code that does it then: Gunicorn evaluates the configuration, the master takes
  over, a fork server loads a generation, a worker boots, warms up and drains. Nothing of that is imitated.
* It touches nothing that a running site uses: it opens no address, no control socket, no pid file and no log file,
  sends nothing to systemd or statsd, and calls no hook of the master.
* What it finds is a :class:`~zdworker.ipc.messages.Finding`, one line each. It ends at the first error that would make
  the others senseless.
"""
