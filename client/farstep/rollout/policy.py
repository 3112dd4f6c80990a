"""The policy of a session: which version is sampled, and which is the newest. Publishes where weights have changed."""

from __future__ import annotations

from farstep.rollout.settings import RolloutSettings
from farstep.sampling import OpenAiEndpoint, Pin, SamplingClient
from farstep.trainers.errors import RolloutError
from farstep.training import TrainingClient


class Policy:
    """Held from `open` to `close`."""

    def __init__(self, client: TrainingClient | SamplingClient, settings: RolloutSettings) -> None:
        self._trainer = client if isinstance(client, TrainingClient) else None
        self._given = client if isinstance(client, SamplingClient) else None
        if self._trainer is None and self._given is None:
            raise RolloutError(
                f"a {type(client).__name__} is neither a TrainingClient nor a SamplingClient", field="client"
            )
        if settings.max_staleness is not None and self._trainer is None:
            raise RolloutError("only a TrainingClient knows what is newest", field="max_staleness")
        self._settings = settings
        # Whoever switches in flight is held to no one version.
        self._pin: Pin = "min" if settings.in_flight == "switch" else "exact"
        self._client: SamplingClient | None = None
        self._earlier: list[SamplingClient] = []

    @property
    def client(self) -> SamplingClient:
        if self._client is None:
            raise RolloutError("this session is not open", hint="with RolloutSession(…) as session: …")
        return self._client

    @property
    def newest_version(self) -> int:
        """The newest that the run has published, as far as this client knows."""
        if self._trainer is None:
            return self.client.policy_version
        return max(self._trainer.policy_version, self.client.policy_version)

    @property
    def max_row_len(self) -> int | None:
        """What is trained at most: the settings', else the trainer's limit."""
        limit = self._settings.max_row_len
        return limit if limit is not None or self._trainer is None else self._trainer.get_info().max_seq_len or None

    def endpoint(self) -> OpenAiEndpoint:
        return self.client.get_openai_endpoint()

    def open(self) -> None:
        self._client = self._given if self._trainer is None else self._trainer.fresh_sampling_client(pin=self._pin)

    async def open_async(self) -> None:
        if self._trainer is None:
            self._client = self._given
        else:
            self._client = await self._trainer.fresh_sampling_client_async(pin=self._pin)

    def refresh(self) -> int:
        if self._trainer is not None:
            self._take(self._trainer.fresh_sampling_client(pin=self._pin))
        return self.client.policy_version

    async def refresh_async(self) -> int:
        if self._trainer is not None:
            self._take(await self._trainer.fresh_sampling_client_async(pin=self._pin))
        return self.client.policy_version

    def close_earlier(self) -> None:
        """Those that nothing is under way with any more."""
        earlier, self._earlier = self._earlier, []
        for client in earlier:
            if client is not self._given:
                client.close()

    async def close_earlier_async(self) -> None:
        earlier, self._earlier = self._earlier, []
        for client in earlier:
            if client is not self._given:
                await client.aclose()

    def close(self) -> None:
        for client in self._ended():
            client.close()

    async def close_async(self) -> None:
        for client in self._ended():
            await client.aclose()

    def _take(self, client: SamplingClient) -> None:
        """Earlier clients are closed at the end: what is under way goes on with them."""
        self._earlier.append(self.client)
        self._client = client

    def _ended(self) -> list[SamplingClient]:
        clients = [*self._earlier, *([self._client] if self._client is not None else [])]
        self._client, self._earlier = None, []
        return [client for client in clients if client is not self._given]
