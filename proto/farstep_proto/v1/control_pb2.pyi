from farstep_proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateSessionRequest(_message.Message):
    __slots__ = ("project", "reuse_from_session_id", "user_metadata", "sdk_version", "display_name", "tags")
    class UserMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    REUSE_FROM_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_METADATA_FIELD_NUMBER: _ClassVar[int]
    SDK_VERSION_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    project: str
    reuse_from_session_id: str
    user_metadata: _containers.ScalarMap[str, str]
    sdk_version: str
    display_name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, project: _Optional[str] = ..., reuse_from_session_id: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., sdk_version: _Optional[str] = ..., display_name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "project", "reuse_from_session_id", "user_metadata", "created_at", "last_seen_at", "closed_at", "display_name", "tags", "outcome", "outcome_detail")
    class UserMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    REUSE_FROM_SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    USER_METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_AT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_DETAIL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    project: str
    reuse_from_session_id: str
    user_metadata: _containers.ScalarMap[str, str]
    created_at: float
    last_seen_at: float
    closed_at: float
    display_name: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    outcome: str
    outcome_detail: str
    def __init__(self, session_id: _Optional[str] = ..., project: _Optional[str] = ..., reuse_from_session_id: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[float] = ..., last_seen_at: _Optional[float] = ..., closed_at: _Optional[float] = ..., display_name: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., outcome: _Optional[str] = ..., outcome_detail: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("run_ids",)
    RUN_IDS_FIELD_NUMBER: _ClassVar[int]
    run_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "next_page")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    next_page: str
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class ProvisionRunRequest(_message.Message):
    __slots__ = ("base_model", "lora", "seed", "max_seq_len", "replicas", "with_sampler", "sampler_replicas", "name", "user_metadata")
    class UserMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    WITH_SAMPLER_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_METADATA_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    lora: _common_pb2.LoraConfig
    seed: int
    max_seq_len: int
    replicas: int
    with_sampler: bool
    sampler_replicas: int
    name: str
    user_metadata: _containers.ScalarMap[str, str]
    def __init__(self, base_model: _Optional[str] = ..., lora: _Optional[_Union[_common_pb2.LoraConfig, _Mapping]] = ..., seed: _Optional[int] = ..., max_seq_len: _Optional[int] = ..., replicas: _Optional[int] = ..., with_sampler: bool = ..., sampler_replicas: _Optional[int] = ..., name: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ProvisionedRun(_message.Message):
    __slots__ = ("run_id", "session_id", "state", "message", "base_model", "lora", "seed", "max_seq_len", "trainer_url", "sampler_url", "name", "user_metadata", "created_at", "project", "model")
    class UserMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQ_LEN_FIELD_NUMBER: _ClassVar[int]
    TRAINER_URL_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_URL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    USER_METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    session_id: str
    state: str
    message: str
    base_model: str
    lora: _common_pb2.LoraConfig
    seed: int
    max_seq_len: int
    trainer_url: str
    sampler_url: str
    name: str
    user_metadata: _containers.ScalarMap[str, str]
    created_at: float
    project: str
    model: str
    def __init__(self, run_id: _Optional[str] = ..., session_id: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., base_model: _Optional[str] = ..., lora: _Optional[_Union[_common_pb2.LoraConfig, _Mapping]] = ..., seed: _Optional[int] = ..., max_seq_len: _Optional[int] = ..., trainer_url: _Optional[str] = ..., sampler_url: _Optional[str] = ..., name: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[float] = ..., project: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ListProvisionedRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ProvisionedRun]
    next_page: str
    def __init__(self, runs: _Optional[_Iterable[_Union[ProvisionedRun, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class ProvisionSamplerRequest(_message.Message):
    __slots__ = ("base_model", "model_path", "replicas")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    model_path: str
    replicas: int
    def __init__(self, base_model: _Optional[str] = ..., model_path: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class ProvisionedSampler(_message.Message):
    __slots__ = ("sampler_id", "session_id", "state", "message", "base_model", "model_path", "sampler_url", "project", "created_at")
    SAMPLER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_URL_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    sampler_id: str
    session_id: str
    state: str
    message: str
    base_model: str
    model_path: str
    sampler_url: str
    project: str
    created_at: float
    def __init__(self, sampler_id: _Optional[str] = ..., session_id: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., base_model: _Optional[str] = ..., model_path: _Optional[str] = ..., sampler_url: _Optional[str] = ..., project: _Optional[str] = ..., created_at: _Optional[float] = ...) -> None: ...

class ListProvisionedSamplersResponse(_message.Message):
    __slots__ = ("samplers", "next_page")
    SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    samplers: _containers.RepeatedCompositeFieldContainer[ProvisionedSampler]
    next_page: str
    def __init__(self, samplers: _Optional[_Iterable[_Union[ProvisionedSampler, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("checkpoint_id", "run_id", "target", "path", "created_at", "size_bytes", "base_model", "lora_adapter_config", "policy_version", "step", "expires_at", "sha256s", "metadata", "public")
    class Sha256sEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CHECKPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LORA_ADAPTER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    SHA256S_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    checkpoint_id: str
    run_id: str
    target: str
    path: str
    created_at: float
    size_bytes: int
    base_model: str
    lora_adapter_config: _common_pb2.LoraConfig
    policy_version: int
    step: int
    expires_at: float
    sha256s: _containers.ScalarMap[str, str]
    metadata: _containers.ScalarMap[str, str]
    public: bool
    def __init__(self, checkpoint_id: _Optional[str] = ..., run_id: _Optional[str] = ..., target: _Optional[str] = ..., path: _Optional[str] = ..., created_at: _Optional[float] = ..., size_bytes: _Optional[int] = ..., base_model: _Optional[str] = ..., lora_adapter_config: _Optional[_Union[_common_pb2.LoraConfig, _Mapping]] = ..., policy_version: _Optional[int] = ..., step: _Optional[int] = ..., expires_at: _Optional[float] = ..., sha256s: _Optional[_Mapping[str, str]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., public: bool = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints", "next_page")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    next_page: str
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class SetTtlRequest(_message.Message):
    __slots__ = ("ttl_seconds",)
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ttl_seconds: int
    def __init__(self, ttl_seconds: _Optional[int] = ...) -> None: ...

class ArchiveFile(_message.Message):
    __slots__ = ("name", "url", "size_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    url: str
    size_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., url: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class CheckpointArchive(_message.Message):
    __slots__ = ("checkpoint_id", "files", "expires_at", "next_page")
    CHECKPOINT_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    checkpoint_id: str
    files: _containers.RepeatedCompositeFieldContainer[ArchiveFile]
    expires_at: float
    next_page: str
    def __init__(self, checkpoint_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ArchiveFile, _Mapping]]] = ..., expires_at: _Optional[float] = ..., next_page: _Optional[str] = ...) -> None: ...

class SupportedModel(_message.Message):
    __slots__ = ("model_name", "max_context_length", "warm")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    max_context_length: int
    warm: bool
    def __init__(self, model_name: _Optional[str] = ..., max_context_length: _Optional[int] = ..., warm: bool = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("supported_models", "loss_fns", "engines", "accelerator", "max_request_bytes", "max_lora_rank", "any_hub_model", "version")
    SUPPORTED_MODELS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FNS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_LORA_RANK_FIELD_NUMBER: _ClassVar[int]
    ANY_HUB_MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    supported_models: _containers.RepeatedCompositeFieldContainer[SupportedModel]
    loss_fns: _containers.RepeatedScalarFieldContainer[str]
    engines: _containers.RepeatedScalarFieldContainer[str]
    accelerator: str
    max_request_bytes: int
    max_lora_rank: int
    any_hub_model: bool
    version: str
    def __init__(self, supported_models: _Optional[_Iterable[_Union[SupportedModel, _Mapping]]] = ..., loss_fns: _Optional[_Iterable[str]] = ..., engines: _Optional[_Iterable[str]] = ..., accelerator: _Optional[str] = ..., max_request_bytes: _Optional[int] = ..., max_lora_rank: _Optional[int] = ..., any_hub_model: bool = ..., version: _Optional[str] = ...) -> None: ...

class ProcessStatus(_message.Message):
    __slots__ = ("role", "url", "pid", "state", "base_model", "started_at", "log_path", "name", "num_restarts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    LOG_PATH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_RESTARTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    url: str
    pid: int
    state: str
    base_model: str
    started_at: float
    log_path: str
    name: str
    num_restarts: int
    def __init__(self, role: _Optional[str] = ..., url: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., base_model: _Optional[str] = ..., started_at: _Optional[float] = ..., log_path: _Optional[str] = ..., name: _Optional[str] = ..., num_restarts: _Optional[int] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "base_url", "processes", "num_sessions", "num_runs")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    NUM_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNS_FIELD_NUMBER: _ClassVar[int]
    version: str
    base_url: str
    processes: _containers.RepeatedCompositeFieldContainer[ProcessStatus]
    num_sessions: int
    num_runs: int
    def __init__(self, version: _Optional[str] = ..., base_url: _Optional[str] = ..., processes: _Optional[_Iterable[_Union[ProcessStatus, _Mapping]]] = ..., num_sessions: _Optional[int] = ..., num_runs: _Optional[int] = ...) -> None: ...

class Quotas(_message.Message):
    __slots__ = ("max_sessions", "max_runs", "max_samplers", "max_trainer_replicas", "max_sampler_replicas")
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLERS_FIELD_NUMBER: _ClassVar[int]
    MAX_TRAINER_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLER_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    max_sessions: int
    max_runs: int
    max_samplers: int
    max_trainer_replicas: int
    max_sampler_replicas: int
    def __init__(self, max_sessions: _Optional[int] = ..., max_runs: _Optional[int] = ..., max_samplers: _Optional[int] = ..., max_trainer_replicas: _Optional[int] = ..., max_sampler_replicas: _Optional[int] = ...) -> None: ...

class CreateProjectRequest(_message.Message):
    __slots__ = ("project", "quotas")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    project: str
    quotas: Quotas
    def __init__(self, project: _Optional[str] = ..., quotas: _Optional[_Union[Quotas, _Mapping]] = ...) -> None: ...

class Project(_message.Message):
    __slots__ = ("project", "quotas", "created_at")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    project: str
    quotas: Quotas
    created_at: float
    def __init__(self, project: _Optional[str] = ..., quotas: _Optional[_Union[Quotas, _Mapping]] = ..., created_at: _Optional[float] = ...) -> None: ...

class ListProjectsResponse(_message.Message):
    __slots__ = ("projects", "next_page")
    PROJECTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    projects: _containers.RepeatedCompositeFieldContainer[Project]
    next_page: str
    def __init__(self, projects: _Optional[_Iterable[_Union[Project, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("name", "project", "operator", "ttl_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    project: str
    operator: bool
    ttl_seconds: int
    def __init__(self, name: _Optional[str] = ..., project: _Optional[str] = ..., operator: bool = ..., ttl_seconds: _Optional[int] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("key_id", "name", "project", "operator", "hint", "created_at", "expires_at", "revoked_at", "last_used_at")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    name: str
    project: str
    operator: bool
    hint: str
    created_at: float
    expires_at: float
    revoked_at: float
    last_used_at: float
    def __init__(self, key_id: _Optional[str] = ..., name: _Optional[str] = ..., project: _Optional[str] = ..., operator: bool = ..., hint: _Optional[str] = ..., created_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., revoked_at: _Optional[float] = ..., last_used_at: _Optional[float] = ...) -> None: ...

class CreatedKey(_message.Message):
    __slots__ = ("key", "secret")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    key: Key
    secret: str
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class ListKeysResponse(_message.Message):
    __slots__ = ("keys", "next_page")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    next_page: str
    def __init__(self, keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class CheckKeyRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    def __init__(self, sha256: _Optional[bytes] = ...) -> None: ...

class KeyOwner(_message.Message):
    __slots__ = ("key_id", "project", "operator")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    project: str
    operator: bool
    def __init__(self, key_id: _Optional[str] = ..., project: _Optional[str] = ..., operator: bool = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("project", "run_id", "num_operations", "tokens_forward", "tokens_trained", "num_samples", "tokens_prompted", "tokens_sampled", "trainer_seconds", "sampler_seconds")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FORWARD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_TRAINED_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PROMPTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    TRAINER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    project: str
    run_id: str
    num_operations: int
    tokens_forward: int
    tokens_trained: int
    num_samples: int
    tokens_prompted: int
    tokens_sampled: int
    trainer_seconds: float
    sampler_seconds: float
    def __init__(self, project: _Optional[str] = ..., run_id: _Optional[str] = ..., num_operations: _Optional[int] = ..., tokens_forward: _Optional[int] = ..., tokens_trained: _Optional[int] = ..., num_samples: _Optional[int] = ..., tokens_prompted: _Optional[int] = ..., tokens_sampled: _Optional[int] = ..., trainer_seconds: _Optional[float] = ..., sampler_seconds: _Optional[float] = ...) -> None: ...

class ListUsageResponse(_message.Message):
    __slots__ = ("usage", "next_page")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _containers.RepeatedCompositeFieldContainer[Usage]
    next_page: str
    def __init__(self, usage: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class ServerUsage(_message.Message):
    __slots__ = ("instance_id", "usage")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    usage: _containers.RepeatedCompositeFieldContainer[Usage]
    def __init__(self, instance_id: _Optional[str] = ..., usage: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ...) -> None: ...
