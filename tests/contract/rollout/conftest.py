"""A pair of servers on the embedded model with a chat template that knows tools, and sessions on it."""

import shutil

import pytest

from farstep import ServiceClient
from farstep_model.embedded import model_dir
from tests.support.processes import KEY, trainer_and_sampler

# Calls as Hermes and Qwen write them; thoughts of earlier answers are left out, as Qwen3's template does.
TEMPLATE = """
{%- if tools %}{{ '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}
{%- for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- '\n<tool_call>\n{"name": ...}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- elif message.role == 'assistant' %}{{ '<|im_start|>assistant\n' + message.content.split('</think>')[-1] }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- elif message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="session")
def tool_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout")
    shutil.copytree(model_dir(), folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    with trainer_and_sampler(folder / "store", model=str(folder / "tiny")) as servers:
        yield servers


@pytest.fixture
def tool_service(tool_pair, monkeypatch):
    monkeypatch.setenv("FARSTEP_API_KEY", KEY)
    trainer, sampler = tool_pair
    with ServiceClient.local(trainer_url=trainer.url, sampler_url=sampler.url) as client:
        yield client


@pytest.fixture
def run(tool_service):
    """A fresh run on it."""
    model = tool_service.get_server_capabilities().supported_models[0].model_name
    with tool_service.create_lora_training_client(model, rank=4, seed=1) as client:
        yield client
