"""What the worker classes for WSGI applications share, and the class that answers one request at a time."""
