"""Where vLLM is not installed there is nothing to collect here."""

from importlib.util import find_spec

from tests.support import processes

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
processes.START_TIMEOUT_S = 300  # vLLM's own start
