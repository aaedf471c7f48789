"""Gunicorn's configuration, found by its name; the Procfile's command needs no flag but the worker class.

The port comes from ``PORT``, as on Heroku: Gunicorn reads that by itself.
"""

import os

workers = int(os.environ.get("WEB_CONCURRENCY", "4"))

# Import the application once per deploy, in a process that the workers are forked from: they share its
# memory, and a worker that crashes comes back in milliseconds, as the code that is running.
preload_app = True

# Seconds that requests in flight get when their worker retires. Heroku kills 30 s after TERM.
graceful_timeout = 20

# Seconds an idle connection is kept. A reload hands it over to the next worker, with the time that is left.
keepalive = 5

# Count what each deploy answers, and how often it fails: for the page, `zdworker status` and `zdworker metrics`.
zd_count_answers = True
