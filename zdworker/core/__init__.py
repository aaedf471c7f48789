"""The decisions: pure code. No os, socket, time, signal or gunicorn; ``now`` is a parameter, actions are returned."""
