"""The calls of a `ServiceClient` that are about checkpoints as things: list, keep, remove, fetch.

With a control plane they work while every trainer is down; `ServiceClient.local` asks the trainer.
"""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

from farstep import _convert
from farstep._checkpoint_requests import CheckpointRequests, checked_path
from farstep._closing import Closing
from farstep._export import Export, export
from farstep._hub import push
from farstep._loop import awaiting, blocking
from farstep.checkpoints import Checkpoint, CheckpointArchive
from farstep.errors import InvalidInputError, checked
from farstep_proto.names import check_run_id


class CheckpointCalls(Closing):
    """Of whoever has `_checkpoints`."""

    @property
    def _checkpoints(self) -> CheckpointRequests:
        raise NotImplementedError

    def _list_checkpoints(self, run_id: str) -> Coroutine[Any, Any, list[Checkpoint]]:
        """A run's checkpoints, oldest first, whether its trainer is up or not; expired ones are not among them."""
        self._refuse_closed()
        with checked():
            check_run_id(run_id)
        return self._checkpoints.list(run_id)

    list_checkpoints = blocking(_list_checkpoints)
    list_checkpoints_async = awaiting(_list_checkpoints)

    def _get_checkpoint(self, checkpoint: str) -> Coroutine[Any, Any, Checkpoint]:
        """One checkpoint, by its path or id.

        Raises:
            NotFoundError: there is none, or it has expired.
        """
        self._refuse_closed()
        return self._checkpoints.get(checked_path(checkpoint))

    get_checkpoint = blocking(_get_checkpoint)
    get_checkpoint_async = awaiting(_get_checkpoint)

    def _get_checkpoint_archive_url(self, checkpoint_id: str) -> Coroutine[Any, Any, CheckpointArchive]:
        """Addresses of every file of a checkpoint, by its id or path. They need no key, and are good for an hour."""
        self._refuse_closed()
        return self._checkpoints.archive(checked_path(checkpoint_id))

    get_checkpoint_archive_url = blocking(_get_checkpoint_archive_url)
    get_checkpoint_archive_url_async = awaiting(_get_checkpoint_archive_url)

    def _delete_checkpoint(self, checkpoint: str) -> Coroutine[Any, Any, None]:
        """Removes a checkpoint, by its path or id. A sampler that serves it goes on with it until it stops.

        Raises:
            NotFoundError: there is none.
        """
        self._refuse_closed()
        return self._checkpoints.delete(checked_path(checkpoint))

    delete_checkpoint = blocking(_delete_checkpoint)
    delete_checkpoint_async = awaiting(_delete_checkpoint)

    def _set_checkpoint_ttl(self, checkpoint: str, ttl_seconds: int | None) -> Coroutine[Any, Any, Checkpoint]:
        """Has a checkpoint, given by path or id, expire so many seconds from now; None: never.

        Raises:
            NotFoundError: there is none, or it has expired already.
            InvalidInputError: `ttl_seconds` is not positive.
        """
        self._refuse_closed()
        return self._checkpoints.set_ttl(checked_path(checkpoint), _convert.ttl(ttl_seconds))

    set_checkpoint_ttl = blocking(_set_checkpoint_ttl)
    set_checkpoint_ttl_async = awaiting(_set_checkpoint_ttl)

    def _export_checkpoint(
        self,
        path: str,
        format: Literal["peft", "merged"] = "peft",  # noqa: A002 - its name in the public API
        out_dir: str | Path | None = None,
        *,
        base_model: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> Coroutine[Any, Any, Path]:
        """Writes a checkpoint, given by path or id, to a folder of this machine, whole or not at all.

        Args:
            format: "peft": the adapter's two files, each checked against its sha256. "merged": a model that plain
                transformers loads, with the adapter in its weights and the base's tokenizer; made here, so it needs
                the extra [worker], and the base model on this machine or from the hub.
            out_dir: must not exist yet, or be empty; None: the checkpoint's name, in the working directory.
            base_model: for "merged", where the base model is on this machine, if not under its name.
            dtype: of the merged model; "auto": what the base model is stored in. Merging rounds to it.

        Returns:
            The folder.

        Raises:
            InvalidInputError: naming the argument.
            NotFoundError: there is no such checkpoint.
            MissingExtraError: "merged" without the extra [worker].
        """
        self._refuse_closed()
        checkpoint = checked_path(path)
        if format not in ("peft", "merged"):
            raise InvalidInputError(f"{format!r} is neither 'peft' nor 'merged'", field="format")
        if dtype not in ("auto", "float32", "bfloat16"):
            raise InvalidInputError(f"{dtype!r} is neither 'auto' nor 'float32' nor 'bfloat16'", field="dtype")
        place = Path(out_dir if out_dir is not None else checkpoint.name).expanduser().absolute()
        wanted = Export(checkpoint, place, is_merged=format == "merged", base_model=base_model, dtype=dtype)
        return export(self._checkpoints, wanted)

    def _push_to_hub(
        self, path: str, repo_id: str, *, private: bool = True, token: str | None = None
    ) -> Coroutine[Any, Any, str]:
        """Uploads a checkpoint's adapter, in PEFT's format, to a repository of the hub, which is made where it is not.

        Args:
            token: else what huggingface-hub finds (HF_TOKEN, or a login on this machine).

        Returns:
            The address of the upload.

        Raises:
            NotFoundError: there is no such checkpoint.
            MissingExtraError: huggingface-hub is not installed here.
            FarstepError: the hub refuses.
        """
        self._refuse_closed()
        return push(self._checkpoints, checked_path(path), repo_id, private=private, token=token)

    push_to_hub = blocking(_push_to_hub)
    push_to_hub_async = awaiting(_push_to_hub)

    export_checkpoint = blocking(_export_checkpoint)
    export_checkpoint_async = awaiting(_export_checkpoint)
