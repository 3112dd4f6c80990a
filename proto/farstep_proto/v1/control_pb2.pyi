from farstep_proto.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateSessionRequest(_message.Message):
    __slots__ = ("project", "reuse_from_session_id", "user_metadata", "sdk_version")
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
    project: str
    reuse_from_session_id: str
    user_metadata: _containers.ScalarMap[str, str]
    sdk_version: str
    def __init__(self, project: _Optional[str] = ..., reuse_from_session_id: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., sdk_version: _Optional[str] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "project", "reuse_from_session_id", "user_metadata", "created_at")
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
    session_id: str
    project: str
    reuse_from_session_id: str
    user_metadata: _containers.ScalarMap[str, str]
    created_at: float
    def __init__(self, session_id: _Optional[str] = ..., project: _Optional[str] = ..., reuse_from_session_id: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("run_id", "session_id", "state", "message", "base_model", "lora", "seed", "max_seq_len", "trainer_url", "sampler_url", "name", "user_metadata", "created_at")
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
    def __init__(self, run_id: _Optional[str] = ..., session_id: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., base_model: _Optional[str] = ..., lora: _Optional[_Union[_common_pb2.LoraConfig, _Mapping]] = ..., seed: _Optional[int] = ..., max_seq_len: _Optional[int] = ..., trainer_url: _Optional[str] = ..., sampler_url: _Optional[str] = ..., name: _Optional[str] = ..., user_metadata: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[float] = ...) -> None: ...

class ListProvisionedRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ProvisionedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[ProvisionedRun, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("sampler_id", "session_id", "state", "message", "base_model", "model_path", "sampler_url")
    SAMPLER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_URL_FIELD_NUMBER: _ClassVar[int]
    sampler_id: str
    session_id: str
    state: str
    message: str
    base_model: str
    model_path: str
    sampler_url: str
    def __init__(self, sampler_id: _Optional[str] = ..., session_id: _Optional[str] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., base_model: _Optional[str] = ..., model_path: _Optional[str] = ..., sampler_url: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("checkpoint_id", "run_id", "target", "path", "created_at", "size_bytes", "base_model", "lora_adapter_config", "policy_version", "step", "expires_at", "sha256s", "metadata")
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
    def __init__(self, checkpoint_id: _Optional[str] = ..., run_id: _Optional[str] = ..., target: _Optional[str] = ..., path: _Optional[str] = ..., created_at: _Optional[float] = ..., size_bytes: _Optional[int] = ..., base_model: _Optional[str] = ..., lora_adapter_config: _Optional[_Union[_common_pb2.LoraConfig, _Mapping]] = ..., policy_version: _Optional[int] = ..., step: _Optional[int] = ..., expires_at: _Optional[float] = ..., sha256s: _Optional[_Mapping[str, str]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

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
    __slots__ = ("role", "url", "pid", "state", "base_model", "started_at", "log_path")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    LOG_PATH_FIELD_NUMBER: _ClassVar[int]
    role: str
    url: str
    pid: int
    state: str
    base_model: str
    started_at: float
    log_path: str
    def __init__(self, role: _Optional[str] = ..., url: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., base_model: _Optional[str] = ..., started_at: _Optional[float] = ..., log_path: _Optional[str] = ...) -> None: ...

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
