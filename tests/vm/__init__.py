"""Whole machines under test: systemd guests that Ansible's role is played on."""
