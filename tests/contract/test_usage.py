"""What real servers have counted, as the control plane collects it: every token of a short run, once."""

import httpx

import farstep
from farstep_infra.control.db import Database
from farstep_infra.control.engine import url_of_file
from farstep_infra.control.pages import PageRequest
from farstep_infra.control.usage import Period, UsageLedger
from farstep_infra.control.usage_collector import UsageCollector
from farstep_serving.keys import OPERATOR
from tests.support.processes import KEY

PROMPT = [1, 40, 41, 42]
DATUM = farstep.Datum.from_prompt_completion(PROMPT, [60, 61, 2])


async def test_what_a_run_used_is_in_the_ledger(pair, service, tmp_path):
    trainer = await service.create_lora_training_client_async("farstep/tiny", rank=4)
    for _ in range(3):
        await (await trainer.forward_backward_async([DATUM, DATUM]))
        await (await trainer.optim_step_async(farstep.AdamParams(learning_rate=1e-3)))
    await (await trainer.forward_async([DATUM]))
    sampler = await trainer.save_weights_and_get_sampling_client_async()
    params = farstep.SamplingParams(max_tokens=5, stop=[])
    result = await (await sampler.sample_async(farstep.ModelInput.from_ints(PROMPT), 2, params))
    num_sampled = sum(len(sequence.tokens) for sequence in result.sequences)

    db = Database(url_of_file(tmp_path / "control.db"))
    async with db.opened(), httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as client:
        client.headers["Accept"] = "application/x-protobuf"
        ledger = UsageLedger(db)
        urls = [server.url for server in pair]
        collector = UsageCollector(client, ledger, lambda: urls)
        await collector.collect(urls)
        await collector.collect(urls)
        listed = await ledger.list(
            PageRequest(), caller=OPERATOR, run_id=trainer.run_id, within=Period(), by="run"
        )  # fmt: skip
    (used,) = listed.usage
    length = DATUM.model_input.length
    assert used.tokens_trained == 3 * 2 * length
    assert used.tokens_forward == length
    assert used.tokens_sampled == num_sampled
    assert used.num_samples == 2
    assert used.tokens_prompted == len(PROMPT)
    assert used.num_operations == 3 + 3 + 1 + 1, "the last one published"
    assert used.trainer_seconds > 0
    assert used.sampler_seconds > 0
