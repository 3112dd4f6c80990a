"""The `farstep` command, a user of the SDK and of `python -m farstep_infra`, which it starts as a process."""
