"""`ServiceClient`: the way in. It opens a session, and makes training and sampling clients.

It trains and samples nothing itself. Clients that it made live on when it is closed.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, Unpack

from farstep import _convert
from farstep._address import Address
from farstep._checkpoint_calls import CheckpointCalls
from farstep._checkpoint_requests import CheckpointRequests
from farstep._connection import Connection
from farstep._control import ControlPlane
from farstep._control_calls import ControlCalls, checked_run_id
from farstep._control_requests import ControlRequests
from farstep._loop import awaiting, blocking, run
from farstep._provisioning import LocalPair, ManagedServers, Provisioner
from farstep._settings import check_url, find_key, load_settings
from farstep._starting import import_adapter, resume_run, start_from_state, start_run
from farstep._wandb import require_wandb
from farstep._wanted import FromStateOptions, RunOptions, WantedSampler, wanted_lora, wanted_run
from farstep.checkpoints import ImportedAdapter
from farstep.errors import FarstepError, InvalidInputError, checked
from farstep.results import LoraConfig, ServerCapabilities
from farstep.sampling import SamplingClient, Target, open_sampling_client, sampler_path
from farstep.training import TrainingClient
from farstep.types import WandbConfig
from farstep_proto.names import CheckpointPath, check_name
from farstep_proto.v1 import control_pb2


class ServiceClient(ControlCalls, CheckpointCalls):
    """Creates a session on the control plane: the one constructor here that speaks to a server.

    Args:
        api_key: else FARSTEP_API_KEY, else the key that `farstep up` wrote for this address.
        base_url: else FARSTEP_BASE_URL, else where `farstep up` runs, else http://127.0.0.1:8787.
        project: which project the session belongs to.
        reuse_from_session_id: else FARSTEP_REUSE_FROM_SESSION_ID; takes over that session's trainer and
            sampler where they are healthy and of the same base model.
        user_metadata: texts kept with the session.

    Raises:
        TransportError: nothing answers there.
        AuthenticationError: no key, or a wrong one.
    """

    _provisioner: Provisioner

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        project: str | None = None,
        reuse_from_session_id: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> None:
        settings = load_settings(api_key=api_key, base_url=base_url, reuse_from_session_id=reuse_from_session_id)
        request = control_pb2.CreateSessionRequest(
            project=project or "",
            reuse_from_session_id=settings.reuse_from_session_id or "",
            user_metadata=_convert.text_map("user_metadata", user_metadata),
            sdk_version=version("farstep"),
        )
        connection = Connection.take(Address(settings.base_url), settings.key)
        control = ControlPlane(connection)
        try:
            session_id = run(control.create_session(request))
        except BaseException:
            run(connection.release())
            raise
        self._provisioner = ManagedServers(control, session_id, opened_by=request)

    @classmethod
    def local(cls, *, trainer_url: str, sampler_url: str, api_key: str | None = None) -> Self:
        """Binds to a running trainer and sampler without a control plane; speaks to neither yet."""
        trainer_url = check_url(trainer_url, field="trainer_url")
        client = cls.__new__(cls)
        client._provisioner = LocalPair(
            trainer_url=trainer_url,
            sampler_url=check_url(sampler_url, field="sampler_url"),
            key=find_key(api_key, trainer_url),
        )
        return client

    @property
    def session_id(self) -> str | None:
        """None without a control plane."""
        return self._provisioner.session_id

    def _create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        *,
        alpha: float | None = None,
        target_modules: Sequence[str] | None = None,
        dropout: float = 0.0,
        train_attn: bool = True,
        train_mlp: bool = True,
        train_unembed: bool = False,
        use_rslora: bool = False,
        use_dora: bool = False,
        value_head: bool = False,
        seed: int | None = None,
        max_seq_len: int | None = None,
        replicas: int = 1,
        with_sampler: bool = True,
        sampler_replicas: int = 1,
        name: str | None = None,
        wandb_config: WandbConfig | None = None,
        user_metadata: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        ready_timeout: float = 3600.0,
    ) -> Coroutine[Any, Any, TrainingClient]:
        """Provisions a trainer and its paired sampler, and creates a run there.

        Args:
            base_model: a model id or directory that the server can load.
            rank, alpha, dropout: of the adapter; `alpha` None means equal to `rank`.
            target_modules: names of modules; None: chosen by the three `train_` switches.
            use_rslora: scaling alpha / √rank instead of alpha / rank (rank-stabilised LoRA).
            use_dora: weight-decomposed LoRA: a magnitude for each output of a layer is trained, too.
            value_head: a value head is trained along with the adapter, for the loss `value` (a critic). It begins at
                0, is kept in training checkpoints, and never goes to samplers.
            seed: of the adapter's start and of dropout; None: the server draws one.
            max_seq_len: in tokens; None: the model's own limit.
            timeout: bounds the provisioning requests, in seconds.
            ready_timeout: bounds the wait until the servers are ready, in seconds.

        Raises:
            InvalidInputError: an argument cannot be.
            ProvisioningError: the servers could not be started.
            ResultTimeout: they were not ready in time.
        """
        lora = wanted_lora(
            rank,
            alpha=alpha,
            dropout=dropout,
            target_modules=target_modules,
            train_attn=train_attn,
            train_mlp=train_mlp,
            train_unembed=train_unembed,
            use_rslora=use_rslora,
            use_dora=use_dora,
            value_head=value_head,
        )
        wanted = wanted_run(
            base_model,
            lora,
            seed=seed,
            max_seq_len=max_seq_len,
            replicas=replicas,
            with_sampler=with_sampler,
            sampler_replicas=sampler_replicas,
            name=name,
            user_metadata=user_metadata,
            timeout=timeout,
            ready_timeout=ready_timeout,
        )
        self._refuse_closed()
        if wandb_config is not None:
            require_wandb()
        return start_run(self._provisioner, wanted, wandb_config)

    create_lora_training_client = blocking(_create_lora_training_client)
    create_lora_training_client_async = awaiting(_create_lora_training_client)

    def _create_training_client_from_state(
        self, path: str, **options: Unpack[FromStateOptions]
    ) -> Coroutine[Any, Any, TrainingClient]:
        """The same, beginning with a training checkpoint's weights and an empty optimizer.

        `value_head=True` gives the run a fresh value head where the checkpoint has none: a critic that begins with
        what a policy has learnt. `False` leaves the checkpoint's out.
        """
        return self._from_state(path, optimizer=False, **options)

    create_training_client_from_state = blocking(_create_training_client_from_state)
    create_training_client_from_state_async = awaiting(_create_training_client_from_state)

    def _create_training_client_from_state_with_optimizer(
        self, path: str, **options: Unpack[FromStateOptions]
    ) -> Coroutine[Any, Any, TrainingClient]:
        """The same, with Adam moments, step count and RNG: training goes on bit for bit."""
        return self._from_state(path, optimizer=True, **options)

    create_training_client_from_state_with_optimizer = blocking(_create_training_client_from_state_with_optimizer)
    create_training_client_from_state_with_optimizer_async = awaiting(_create_training_client_from_state_with_optimizer)

    def _create_sampling_client(
        self,
        base_model: str | None = None,
        *,
        model_path: str | None = None,
        replicas: int = 1,
        ready_timeout: float = 3600.0,
    ) -> Coroutine[Any, Any, SamplingClient]:
        """A client of a fresh sampler, for a base model or for a `sampler_weights` checkpoint."""
        if (base_model is None) == (model_path is None):
            raise InvalidInputError("give either base_model or model_path", field="base_model")
        wanted = WantedSampler(
            base_model=base_model or "",
            model_path=sampler_path(model_path) if model_path is not None else "",
            replicas=_convert.whole_number("replicas", replicas, at_least=1),
            ready_timeout_s=_convert.number("ready_timeout", ready_timeout),
        )
        self._refuse_closed()
        return self._start_sampler(wanted)

    create_sampling_client = blocking(_create_sampling_client)
    create_sampling_client_async = awaiting(_create_sampling_client)

    def _get_server_capabilities(self) -> Coroutine[Any, Any, ServerCapabilities]:
        """Models, context lengths, losses, limits, engines, accelerator."""
        self._refuse_closed()
        return self._provisioner.get_capabilities()

    get_server_capabilities = blocking(_get_server_capabilities)
    get_server_capabilities_async = awaiting(_get_server_capabilities)

    def _resume_run(self, run_id: str) -> Coroutine[Any, Any, TrainingClient]:
        """A client of a run that exists, to go on where it stands: the next call is the next operation.

        A run that was put to sleep is woken. What another process submitted and never heard of goes on, and is had
        by `unfetched()`; what it did not submit whole is given up with the first call. If that process still lives,
        whichever of the two submits second gets a ConflictError.

        Raises:
            NotFoundError: there is no such run, or its trainer is gone.
            ProvisioningError, ResultTimeout: it does not wake.
        """
        run_id = checked_run_id(run_id)
        self._refuse_closed()
        return resume_run(self._provisioner, run_id)

    resume_run = blocking(_resume_run)
    resume_run_async = awaiting(_resume_run)

    def _delete_run(self, run_id: str) -> Coroutine[Any, Any, None]:
        """Ends a run on its trainer, which frees the room that it took there. Its checkpoints stay.

        What was submitted to it and has not ended fails with `RemoteOpError` ("RunDeletedError"). Policies that
        samplers have loaded are served until they need the room. Deleting a run again does nothing.

        Raises:
            NotFoundError: there was never such a run.
        """
        run_id = checked_run_id(run_id)
        self._refuse_closed()
        return self._provisioner.delete_run(run_id)

    delete_run = blocking(_delete_run)
    delete_run_async = awaiting(_delete_run)

    @property
    def _checkpoints(self) -> CheckpointRequests:
        return self._provisioner.checkpoints

    @property
    def _requests(self) -> ControlRequests:
        return ControlRequests(self._control_plane().connection)

    def _import_adapter(
        self,
        adapter: str | Path,
        name: str = "imported",
        *,
        base_model: str | None = None,
    ) -> Coroutine[Any, Any, ImportedAdapter]:
        """Makes a checkpoint of a LoRA adapter in PEFT's format, whoever trained it.

        It is looked at here (a pickle is refused), goes up in parts below the server's request limit, and is checked
        against the base model by the trainer: names, shapes, settings, finite numbers. It is kept under the id of a
        run of its own, to train on from and to sample from.

        Args:
            adapter: a folder, or the id of a repository of the hub (with huggingface-hub installed here).
            name: of the checkpoint.
            base_model: as the server knows it; None: as the adapter's config names it.

        Raises:
            InvalidInputError: naming the argument or the file.
            NotFoundError: there is neither such a folder nor such a repository.
            RemoteOpError: it is not an adapter of that base model.
        """
        self._refuse_closed()
        with checked():
            check_name(name)
        return import_adapter(self._provisioner, adapter, name, base_model)

    import_adapter = blocking(_import_adapter)
    import_adapter_async = awaiting(_import_adapter)

    async def _release(self) -> None:
        await self._provisioner.release()

    def _from_state(
        self,
        path: str,
        *,
        optimizer: bool,
        value_head: bool | None = None,
        wandb_config: WandbConfig | None = None,
        **options: Unpack[RunOptions],
    ) -> Coroutine[Any, Any, TrainingClient]:
        with checked():
            checkpoint = CheckpointPath.parse(path)
        if checkpoint.kind != "weights":
            raise InvalidInputError(
                f"{path} is not a training checkpoint", field="path", hint="training goes on from …/weights/<name>"
            )
        # Its model and adapter are not known yet, but a wrong option is refused here, before anything is asked.
        wanted = wanted_run("unknown", LoraConfig(1), **options)
        self._refuse_closed()
        if wandb_config is not None:
            require_wandb()
        return start_from_state(
            self._provisioner, checkpoint, wanted, optimizer=optimizer, value_head=value_head, wandb_config=wandb_config
        )

    async def _start_sampler(self, wanted: WantedSampler) -> SamplingClient:
        sampler = await self._provisioner.provision_sampler(wanted)
        target = Target(model_path=wanted.model_path, base_model=wanted.base_model)
        return await open_sampling_client(sampler, self._provisioner.key, target)

    def _control_plane(self) -> ControlPlane:
        self._refuse_closed()
        control = self._provisioner.control
        if control is None:
            raise FarstepError("this needs a control plane, and this client has none", hint="use ServiceClient()")
        return control

    def __repr__(self) -> str:
        return f"<ServiceClient {self.session_id or 'local'}>"
