"""All programs in one process: each enters its features where it is imported."""

import importlib
import os
import sys

from trying import main

for program in ("training", "sampling", "records"):
    importlib.import_module(program)
main()
sys.stdout.flush()
os._exit(0)  # the SDK's threads may be in a library while Python shuts down, which aborts the process
