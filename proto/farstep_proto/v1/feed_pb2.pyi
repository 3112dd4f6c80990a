from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubscribeRequest(_message.Message):
    __slots__ = ("subscriber", "have", "histories")
    class HaveEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class HistoriesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    HISTORIES_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    have: _containers.ScalarMap[str, int]
    histories: _containers.ScalarMap[str, str]
    def __init__(self, subscriber: _Optional[str] = ..., have: _Optional[_Mapping[str, int]] = ..., histories: _Optional[_Mapping[str, str]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("run_id", "version", "history")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    version: int
    history: str
    def __init__(self, run_id: _Optional[str] = ..., version: _Optional[int] = ..., history: _Optional[str] = ...) -> None: ...

class PolicyEvent(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PolicyHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[PolicyHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PolicyHeader(_message.Message):
    __slots__ = ("run_id", "version", "num_bytes", "sha256", "published_at", "history", "adapter_config", "project")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_CONFIG_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    version: int
    num_bytes: int
    sha256: str
    published_at: float
    history: str
    adapter_config: bytes
    project: str
    def __init__(self, run_id: _Optional[str] = ..., version: _Optional[int] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., published_at: _Optional[float] = ..., history: _Optional[str] = ..., adapter_config: _Optional[bytes] = ..., project: _Optional[str] = ...) -> None: ...
