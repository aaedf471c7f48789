"""Three hosts behind HAProxy, and Ansible, which deploys to one after the other (``tox -e machines``)."""
