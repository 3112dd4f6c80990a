"""The router process, faked."""

from fake_server import main

main("router")
