"""The worker class on Gunicorn's own ASGI stack."""
