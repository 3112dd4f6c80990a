"""All programs in one process: each enters its features where it is imported."""

import importlib

from trying import main

for program in ("training", "sampling", "records"):
    importlib.import_module(program)
main()
