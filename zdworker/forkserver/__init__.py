"""A generation's process: a fresh interpreter that loads the code and forks workers from it."""
