"""`Roles`: the other models of a trainer, such as a reference, a critic or a reward model, by name.

    trainer.ensure_roles({"ref": Role("ref"), "critic": Role("critic", head="value", trainable=True, lr=1e-5)})
    trainer.score_logprobs("ref", rows)

A role is a run of its own, made when it is first asked for and deleted when the trainer closes; on a server whose
worker has the base model already it costs an adapter. A reference without a path costs nothing: it is the weights that
the trainer's own run began with. "policy" is the trainer's run itself, and always there.

Whatever is asked of a role is submitted whole before anything of it is waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farstep.errors import NotFoundError
from farstep.future import Future
from farstep.results import ForwardBackwardOutput
from farstep.trainers.errors import DataError, MissingRoleCapability, RoleError
from farstep.trainers.horizon import accumulated, chunks
from farstep.trainers.role import ABILITIES, POLICY, Ability, Role
from farstep.trainers.sequence import TrainSequence, aligned
from farstep.trainers.step import PendingUpdate
from farstep.types import AdamParams, Datum, ModelInput

if TYPE_CHECKING:
    from farstep.service import ServiceClient
    from farstep.training import TrainingClient

log = logging.getLogger("farstep")

Rows = Sequence[Sequence[int] | TrainSequence]


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Settings of the clipped value loss; see docs/losses.md."""

    clip: float = 0.5
    coef: float = 0.5


class Roles:
    """
    Args:
        client: the trainer's own run.
        create: makes a run for a role, from a checkpoint's weights or, to go on with it, from a checkpoint whole.
    """

    def __init__(
        self,
        client: TrainingClient,
        service: ServiceClient | None,
        *,
        create: Callable[[ServiceClient, Role, str | None], TrainingClient],
        mini_bs: int | None,
    ) -> None:
        self._policy = client
        self._service = service
        self._create = create
        self._mini_bs = mini_bs
        self._roles: dict[str, Role] = {}
        self._clients: dict[str, TrainingClient] = {}
        self._saved: dict[int, list[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._roles

    def ensure(self, roles: Mapping[str, Role] | Iterable[Role], *, resume: Mapping[str, str] | None = None) -> None:
        """Makes those that are not there yet.

        Args:
            resume: checkpoints by role, to go on from with optimizer and all.

        Raises:
            RoleError: another role has the name, or there is no server to ask for a run.
            MissingRoleCapability: the checkpoint has no value head, and a reward model needs one.
        """
        for role in _listed(roles):
            if (present := self._roles.get(role.name)) is not None:
                if present != role:
                    raise RoleError(f"there is another role {role.name!r}: {present}", role=role.name)
                continue
            if not role.is_start:
                self._clients[role.name] = self._made(role, (resume or {}).get(role.name))
            self._roles[role.name] = role

    def client_of(self, name: str) -> TrainingClient:
        """The run of a role.

        Raises:
            RoleError: it was not ensured.
        """
        if name == POLICY:
            return self._policy
        role = self._ensured(name)
        return self._policy if role.is_start else self._clients[name]

    # What may be asked

    def logprobs(self, name: str, rows: Rows) -> list[list[float]]:
        """[T] of each row, 0 for its first token; of a TrainSequence only where it is trained, else 0."""
        is_start = name != POLICY and self._able(name, "logprobs").is_start
        adapter: Any = "start" if is_start else "current"
        client = self.client_of(name)
        data = [_for_logprobs(row, index) for index, row in enumerate(rows)]
        return _aligned(self._asked(data, lambda part: client.forward(part, adapter=adapter)), "logprobs")

    def values(self, name: str, rows: Rows) -> list[list[float]]:
        """[T] of each row: what is expected before token t is chosen; 0 for the first."""
        self._able(name, "values")
        data = [Datum(ModelInput.from_ints(_tokens(row, index)[:-1]), {}) for index, row in enumerate(rows)]
        client = self.client_of(name)
        return _aligned(self._asked(data, lambda part: client.forward(part, "value")), "values")

    def rewards(self, name: str, rows: Rows) -> list[float]:
        """One number for each row."""
        self._able(name, "rewards")
        data = [Datum(ModelInput.from_ints(_tokens(row, index)), {}) for index, row in enumerate(rows)]
        client = self.client_of(name)
        outputs = self._asked(data, lambda part: client.forward(part, "value"))
        return [float(each["values"].to_numpy()[-1]) for output in outputs for each in output.loss_fn_outputs]

    def submit_values(
        self, name: str, parts: Sequence[Sequence[TrainSequence]], params: AdamParams, loss: ValueLoss
    ) -> PendingUpdate:
        """One optimizer step of the clipped value loss, its mean over all rows of the parts."""
        self._able(name, "training")
        rows = [row for part in parts for row in part]
        client, settings = self.client_of(name), {"clip": loss.clip, "coef": loss.coef}
        settings["normalizer"] = sum(row.weight for row in rows) or 1.0
        passes = [
            client.forward_backward([row.to_datum("returns", "values") for row in part], "value", settings)
            for part in parts
        ]
        return PendingUpdate(params.learning_rate, passes, client.optim_step(params), rows)

    def train_values(
        self,
        name: str,
        rows: Sequence[TrainSequence],
        params: AdamParams,
        *,
        loss: ValueLoss,
        mini_bs: int | None = None,
        gradient_accumulation_steps: int | None = None,
    ) -> dict[str, float]:
        """As `submit_values`, for a whole batch; gives the last optimizer step's metrics."""
        parts = accumulated(chunks(rows, mini_bs or self._mini_bs), gradient_accumulation_steps)
        updates = [self.submit_values(name, part, params, loss) for part in parts]
        return [update.result() for update in updates][-1]

    def learning_rate(self, name: str, default: float) -> float:
        rate = self._able(name, "training").lr
        return default if rate is None else rate

    # What is kept of them

    def save(self, step: int, *, ttl_seconds: int | None = None) -> dict[str, str]:
        """Training checkpoints of those that are trained, by role."""
        label = f"step-{step:06d}"
        saved = {
            name: self._clients[name].save_state(label, ttl_seconds=ttl_seconds, overwrite=True)
            for name, role in self._roles.items()
            if role.trainable
        }
        paths = {name: each.result().path for name, each in saved.items()}
        self.remember(step, paths)
        return paths

    def remember(self, step: int, paths: Mapping[str, str]) -> None:
        """Checkpoints that are kept with the trainer's own of that step."""
        self._saved[step] = list(paths.values())

    def keep(self, steps: Iterable[int]) -> None:
        """Removes the checkpoints of all steps but these."""
        for step in set(self._saved) - set(steps):
            for path in self._saved.pop(step):
                try:
                    assert self._service is not None
                    self._service.delete_checkpoint(path)
                except NotFoundError:
                    continue

    def close(self) -> None:
        """Ends the runs; their checkpoints stay."""
        for name, client in self._clients.items():
            try:
                client.close()
                if self._service is not None:
                    self._service.delete_run(client.run_id)
            except Exception as error:
                log.warning("closing the role %s: %s: %s", name, type(error).__name__, error)
        self._clients.clear()
        self._roles.clear()

    def _made(self, role: Role, resume_from: str | None) -> TrainingClient:
        if self._service is None:
            raise RoleError(
                f"the role {role.name!r} needs a run of its own, and a TrainingClient makes none",
                role=role.name,
                hint="give client=ServiceClient(…) instead of a TrainingClient",
            )
        client = self._create(self._service, role, resume_from)
        if role.head != "lm" and not client.get_info().value_head:
            client.close()
            self._service.delete_run(client.run_id)
            raise MissingRoleCapability(
                f"the role {role.name!r} cannot give {ABILITIES[role.head]}: {role.path} has no value head",
                role=role.name,
                ability=ABILITIES[role.head],
            )
        return client

    def _ensured(self, name: str) -> Role:
        if name not in self._roles:
            there = ", ".join([POLICY, *self._roles])
            raise RoleError(f"there is no role {name!r}", role=name, hint=f"ensure_roles makes it; there are: {there}")
        return self._roles[name]

    def _able(self, name: str, ability: Ability) -> Role:
        """
        Raises:
            RoleError: it was not ensured.
            MissingRoleCapability: it cannot do this.
        """
        if name == POLICY:
            raise MissingRoleCapability(
                f"the role {POLICY!r} cannot give {ability}: it is the run itself",
                role=name,
                ability=ability,
                hint="it gives log-probabilities, and step() trains it",
            )
        role = self._ensured(name)
        if ability not in role.abilities:
            raise MissingRoleCapability(
                f"the role {name!r} has no {ability}: its head is {role.head!r}, and it gives "
                f"{' and '.join(role.abilities)}",
                role=name,
                ability=ability,
            )
        return role

    def _asked(
        self, data: list[Datum], submit: Callable[[list[Datum]], Future[ForwardBackwardOutput]]
    ) -> list[ForwardBackwardOutput]:
        passes = [submit(part) for part in chunks(data, self._mini_bs)] if data else []
        return [each.result() for each in passes]


def _listed(roles: Mapping[str, Role] | Iterable[Role]) -> list[Role]:
    if not isinstance(roles, Mapping):
        return list(roles)
    for name, role in roles.items():
        if name != role.name:
            raise RoleError(f"the role {role.name!r} stands under the name {name!r}", role=name)
    return list(roles.values())


def _tokens(row: Sequence[int] | TrainSequence, index: int) -> list[int]:
    tokens = row.tokens if isinstance(row, TrainSequence) else list(row)
    if len(tokens) < 2:
        raise DataError(f"{len(tokens)} tokens, and the first is never a target", field=f"rows[{index}]")
    return tokens


def _for_logprobs(row: Sequence[int] | TrainSequence, index: int) -> Datum:
    if isinstance(row, TrainSequence):
        return row.to_datum(weights=False)
    tokens = _tokens(row, index)
    return TrainSequence(tokens, [1.0] * len(tokens)).to_datum()


def _aligned(outputs: Iterable[ForwardBackwardOutput], field: str) -> list[list[float]]:
    return [
        aligned(np.asarray(each[field].to_numpy(), np.float64)).tolist()
        for output in outputs
        for each in output.loss_fn_outputs
    ]
