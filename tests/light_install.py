"""Checks the client's base install: `make light` runs it in an environment that has nothing else."""

import importlib.util
import sys
import time

started = time.perf_counter()
import farstep  # noqa: E402

for name in farstep.__all__:
    getattr(farstep, name)
seconds = time.perf_counter() - started

heavy = [name for name in ("torch", "transformers", "wandb", "grpc", "starlette") if importlib.util.find_spec(name)]
assert not heavy, f"the base install pulled {heavy}"
loaded = {"httpx", "rich"} & set(sys.modules)
assert not loaded, f"importing farstep loaded {loaded}, which only its calls need"

datum = farstep.Datum.from_prompt_completion([1, 2, 3], [4, 5])
assert datum.model_input.to_ints() == [1, 2, 3, 4]
print(f"light install works; import took {seconds * 1000:.0f} ms")
