"""The vLLM engine. Importing this package needs an environment in which vLLM is installed.

What vLLM reads from the environment when it is imported is set here, before anything imports it; what the user has
set comes first.
"""

import os

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for our announcement
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork would inherit our threads' locks
os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")  # for one token more than the model's, never computed
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the one whose sampler `worker` knows

SAMPLER_PID = "FARSTEP_SAMPLER_PID"  # tells vLLM's processes with whom they end
