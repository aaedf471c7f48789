"""The worker class on threads."""
