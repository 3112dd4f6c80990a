"""The sampler process, faked."""

from fake_server import main

main("sampler")
