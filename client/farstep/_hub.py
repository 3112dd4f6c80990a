"""A checkpoint's adapter to the hub. Lives on the background loop; the hub's own library speaks to the hub."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from farstep._checkpoint_requests import CheckpointRequests
from farstep._export import Export, export
from farstep.errors import FarstepError, MissingExtraError
from farstep_proto.names import CheckpointPath


async def push(
    requests: CheckpointRequests, checkpoint: CheckpointPath, repo_id: str, *, private: bool, token: str | None
) -> str:
    """Raises as `ServiceClient.push_to_hub` does."""
    api = _api(token)
    with tempfile.TemporaryDirectory(prefix="farstep-push-") as folder:
        adapter = await export(requests, Export(checkpoint, Path(folder) / "adapter", is_merged=False))
        return await asyncio.to_thread(_upload, api, adapter, checkpoint, repo_id, private)


def _upload(api: Any, adapter: Path, checkpoint: CheckpointPath, repo_id: str, private: bool) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        message = f"Upload {checkpoint.checkpoint_id}"
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(adapter), commit_message=message))
    except (HfHubHTTPError, HFValidationError) as error:
        raise FarstepError(
            f"the hub refuses {repo_id!r}: {error}", hint="a token with write access is needed"
        ) from error


def _api(token: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtraError("push_to_hub needs huggingface-hub", hint="pip install huggingface-hub") from error
    return HfApi(token=token)
