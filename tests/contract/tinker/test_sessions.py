"""Sessions as the SDK opens, keeps and ends them."""

import httpx
import pytest
import tinker

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def raw(tinker_url, tinker_key):
    with httpx.Client(base_url=f"{tinker_url}/api/v1", headers={"X-API-Key": tinker_key}, trust_env=False) as client:
        yield client


def test_a_session_is_opened_kept_and_ended(tinker_url, tinker_key, raw):
    with tinker.ServiceClient(
        user_metadata={"who": "me", "n": 3}, display_name="probe", base_url=tinker_url, api_key=tinker_key
    ) as service:
        session_id = service.holder.get_session_id()
        assert raw.post("session_heartbeat", json={"session_id": session_id}).json() == {"type": "session_heartbeat"}
    gone = raw.post("session_heartbeat", json={"session_id": session_id})
    assert gone.status_code == 410
    assert "closed" in gone.json()["error"]
