"""What a deploy costs with each server that can do one without stopping: ``tox -e deploys``."""
