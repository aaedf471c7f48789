"""The worker class on Tornado."""
