"""What all worker classes that serve on an event loop share."""
