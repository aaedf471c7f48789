"""The worker class on gevent."""
