"""Random operations on a real gunicorn under load, as many as there is time for; replayed from their seed."""
