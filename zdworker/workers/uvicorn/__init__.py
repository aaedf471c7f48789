"""The worker classes on uvicorn."""
