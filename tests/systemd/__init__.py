"""The systemd recipe under a real systemd (``tox -e systemd``)."""
