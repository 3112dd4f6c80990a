"""Samplers that are not there yet, as who samples over the Tinker wire meets them: nobody waits, nothing is lost."""

import asyncio

import pytest


@pytest.fixture
async def sampling_session(here):
    session = await here.call("POST", "/v1/sessions", {})
    body = {"session_id": session["session_id"], "sampling_session_seq_id": 0, "base_model": "fake/one"}
    return (await here.call("POST", "/api/v1/create_sampling_session", body))["sampling_session_id"]


async def submit(here, sampling_session, seq_id, **changes):
    body = {
        "sampling_session_id": sampling_session,
        "seq_id": seq_id,
        "prompt": {"chunks": [{"tokens": [1]}]},
        "sampling_params": {"max_tokens": 1},
        **changes,
    }
    return await here.send("POST", "/api/v1/asample", body)


async def told(here, response):
    body = {"request_id": response.json()["request_id"], "allow_metadata_only": True}
    return (await here.send("POST", "/api/v1/retrieve_future", body)).json()


async def test_a_sampler_that_comes_up_is_429_and_one_that_cannot_a_failed_future(here, sampling_session):
    """It is begun with the session, and tried again only after a while."""
    early = [await submit(here, sampling_session, 0) for _ in range(3)]
    assert [response.status_code for response in early] == [429] * 3
    assert early[0].headers["Retry-After"] == "1"
    assert "starting" in early[0].json()["error"]
    here.launcher.ended.set()
    async with asyncio.timeout(20):
        while (response := await submit(here, sampling_session, 1)).status_code == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # nothing announces it
    assert response.status_code == 200
    failure = await told(here, response)
    assert "there is no machine" in failure["error"]
    assert failure["category"] == "server"


async def test_a_mistake_is_told_whether_or_not_there_is_a_sampler(here, sampling_session):
    response = await submit(here, sampling_session, 2, sampling_params={"temperature": "hot"}, num_samples=3)
    assert response.json()["sample_sequence_ids"] == [], "what is refused has no sequences"
    failure = await told(here, response)
    assert failure["error"].startswith("sampling_params.temperature")
    assert failure["category"] == "user"
