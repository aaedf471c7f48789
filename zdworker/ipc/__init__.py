"""Communication between the processes: the messages, their channels, and the worker's reports."""
