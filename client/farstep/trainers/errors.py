"""What trainers raise of their own, beside the SDK's errors.

FarstepError
├── TrainerError   (RuntimeError)  a trainer cannot do this, or not now; `stage` says in what part
├── ConfigError    (ValueError)    a setting is wrong; `field` is its path
├── DataError      (ValueError)    a row, source or sequence is wrong; `field` says which
├── RegistryError  (LookupError)   no such name, or a name that is taken; `known` lists what there is
├── RoleError      (LookupError)   a role was not ensured, or cannot be what it was said to be
│   └── MissingRoleCapability      it was, and lacks an ability
└── RolloutError   (RuntimeError)  a rollout cannot go on

Each message says what and where, each hint what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from farstep.errors import FarstepError


class TrainerError(FarstepError, RuntimeError):
    """`stage`: "validate", "init", "train", "hook", "checkpoint", …"""

    def __init__(self, message: str = "", *, hint: str = "", field: str = "", stage: str = "") -> None:
        super().__init__(message, hint=hint, field=field)
        self.stage = stage


class ConfigError(FarstepError, ValueError):
    pass


class DataError(FarstepError, ValueError):
    pass


class RegistryError(FarstepError, LookupError):
    def __init__(self, message: str = "", *, hint: str = "", field: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, field=field)
        self.known = tuple(known)


class RoleError(FarstepError, LookupError):
    def __init__(
        self, message: str = "", *, hint: str = "", field: str = "", role: str = "", ability: str = ""
    ) -> None:
        super().__init__(message, hint=hint, field=field)
        self.role = role
        self.ability = ability


class MissingRoleCapability(RoleError):
    pass


class RolloutError(FarstepError, RuntimeError):
    pass
