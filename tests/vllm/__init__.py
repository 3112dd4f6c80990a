"""Tests of the vLLM engine with vLLM itself; `make test-vllm` runs them in an environment of their own."""
