"""The image of the Docker recipe, built and run (``tox -e container``)."""
