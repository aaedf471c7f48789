"""Measurements against stock Gunicorn, side by side in one run: ``tox -e bench``."""
