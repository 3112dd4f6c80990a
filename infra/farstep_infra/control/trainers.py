"""What the control plane asks of a trainer itself, in a client's place."""

from __future__ import annotations

from http import HTTPStatus

import httpx

from farstep_proto import paths
from farstep_proto.errors import Internal

_ANSWER_S = 10.0


class Trainers:
    """Args: `client` carries the key of the trainers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def delete_run(self, url: str, run_id: str) -> None:
        """Returns when the run is gone; one that the trainer never had is gone as well.

        Raises:
            Internal: the trainer does not answer, or refuses.
        """
        path = paths.of(paths.RUN, run_id=run_id)
        try:
            response = await self._client.delete(url + path, timeout=_ANSWER_S)
        except httpx.HTTPError as error:
            raise _failed(run_id, str(error) or type(error).__name__) from error
        if not response.is_success and response.status_code != HTTPStatus.NOT_FOUND:
            raise _failed(run_id, f"it answered {response.status_code}")


def _failed(run_id: str, reason: str) -> Internal:
    return Internal(f"the trainer of run {run_id} did not delete it: {reason}", hint="try again")
