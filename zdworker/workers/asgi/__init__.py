"""What all worker classes for ASGI applications share."""
