"""Scenarios against a real gunicorn, with real sockets and real signals."""
