"""The master's process: Gunicorn's arbiter, the supervisor of its children, and its observers."""
