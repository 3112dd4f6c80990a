from farstep_proto.v1 import operations_pb2 as _operations_pb2
from farstep_proto.v1 import training_pb2 as _training_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankCommand(_message.Message):
    __slots__ = ("create_run", "execute", "forget_run", "evict_run", "restore_run", "adopt_run")
    CREATE_RUN_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_FIELD_NUMBER: _ClassVar[int]
    FORGET_RUN_FIELD_NUMBER: _ClassVar[int]
    EVICT_RUN_FIELD_NUMBER: _ClassVar[int]
    RESTORE_RUN_FIELD_NUMBER: _ClassVar[int]
    ADOPT_RUN_FIELD_NUMBER: _ClassVar[int]
    create_run: _training_pb2.CreateRunRequest
    execute: ExecuteOnRank
    forget_run: str
    evict_run: str
    restore_run: str
    adopt_run: AdoptRun
    def __init__(self, create_run: _Optional[_Union[_training_pb2.CreateRunRequest, _Mapping]] = ..., execute: _Optional[_Union[ExecuteOnRank, _Mapping]] = ..., forget_run: _Optional[str] = ..., evict_run: _Optional[str] = ..., restore_run: _Optional[str] = ..., adopt_run: _Optional[_Union[AdoptRun, _Mapping]] = ...) -> None: ...

class AdoptRun(_message.Message):
    __slots__ = ("request", "state")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    request: _training_pb2.CreateRunRequest
    state: bytes
    def __init__(self, request: _Optional[_Union[_training_pb2.CreateRunRequest, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class ExecuteOnRank(_message.Message):
    __slots__ = ("run_id", "verb", "body")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    verb: str
    body: bytes
    def __init__(self, run_id: _Optional[str] = ..., verb: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class RankReport(_message.Message):
    __slots__ = ("operation", "checksum")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    operation: _operations_pb2.Operation
    checksum: int
    def __init__(self, operation: _Optional[_Union[_operations_pb2.Operation, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...
