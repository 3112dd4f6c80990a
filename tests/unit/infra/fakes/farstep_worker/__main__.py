"""The trainer process, faked."""

from fake_server import main

main("trainer")
