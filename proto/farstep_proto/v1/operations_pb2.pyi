from farstep_proto.v1 import common_pb2 as _common_pb2
from farstep_proto.v1 import training_pb2 as _training_pb2
from farstep_proto.v1 import sampling_pb2 as _sampling_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_STATE_UNSPECIFIED: _ClassVar[OperationState]
    OPERATION_STATE_QUEUED: _ClassVar[OperationState]
    OPERATION_STATE_RUNNING: _ClassVar[OperationState]
    OPERATION_STATE_SUCCEEDED: _ClassVar[OperationState]
    OPERATION_STATE_FAILED: _ClassVar[OperationState]
    OPERATION_STATE_CANCELLED: _ClassVar[OperationState]
OPERATION_STATE_UNSPECIFIED: OperationState
OPERATION_STATE_QUEUED: OperationState
OPERATION_STATE_RUNNING: OperationState
OPERATION_STATE_SUCCEEDED: OperationState
OPERATION_STATE_FAILED: OperationState
OPERATION_STATE_CANCELLED: OperationState

class Accepted(_message.Message):
    __slots__ = ("operation_id", "queue_place", "awaits_parts")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PLACE_FIELD_NUMBER: _ClassVar[int]
    AWAITS_PARTS_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    queue_place: int
    awaits_parts: bool
    def __init__(self, operation_id: _Optional[str] = ..., queue_place: _Optional[int] = ..., awaits_parts: bool = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("operation_id", "state", "queue_place", "verb", "error", "empty", "forward_backward", "optim_step", "save_weights", "load_weights", "sample")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PLACE_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EMPTY_FIELD_NUMBER: _ClassVar[int]
    FORWARD_BACKWARD_FIELD_NUMBER: _ClassVar[int]
    OPTIM_STEP_FIELD_NUMBER: _ClassVar[int]
    SAVE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    state: OperationState
    queue_place: int
    verb: str
    error: _common_pb2.Error
    empty: _common_pb2.Empty
    forward_backward: _training_pb2.ForwardBackwardOutput
    optim_step: _training_pb2.OptimStepResponse
    save_weights: _training_pb2.SaveWeightsResponse
    load_weights: _training_pb2.LoadWeightsResponse
    sample: _sampling_pb2.SampleResponse
    def __init__(self, operation_id: _Optional[str] = ..., state: _Optional[_Union[OperationState, str]] = ..., queue_place: _Optional[int] = ..., verb: _Optional[str] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., empty: _Optional[_Union[_common_pb2.Empty, _Mapping]] = ..., forward_backward: _Optional[_Union[_training_pb2.ForwardBackwardOutput, _Mapping]] = ..., optim_step: _Optional[_Union[_training_pb2.OptimStepResponse, _Mapping]] = ..., save_weights: _Optional[_Union[_training_pb2.SaveWeightsResponse, _Mapping]] = ..., load_weights: _Optional[_Union[_training_pb2.LoadWeightsResponse, _Mapping]] = ..., sample: _Optional[_Union[_sampling_pb2.SampleResponse, _Mapping]] = ...) -> None: ...

class PollRequest(_message.Message):
    __slots__ = ("client_id", "ack", "check", "wait_s", "held")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    ack: _containers.RepeatedScalarFieldContainer[str]
    check: _containers.RepeatedScalarFieldContainer[str]
    wait_s: float
    held: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, client_id: _Optional[str] = ..., ack: _Optional[_Iterable[str]] = ..., check: _Optional[_Iterable[str]] = ..., wait_s: _Optional[float] = ..., held: _Optional[_Iterable[str]] = ...) -> None: ...

class PollResponse(_message.Message):
    __slots__ = ("instance_id", "finished", "unknown", "num_pending")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    NUM_PENDING_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    finished: _containers.RepeatedCompositeFieldContainer[Operation]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    num_pending: int
    def __init__(self, instance_id: _Optional[str] = ..., finished: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., unknown: _Optional[_Iterable[str]] = ..., num_pending: _Optional[int] = ...) -> None: ...

class ListOperationsResponse(_message.Message):
    __slots__ = ("operations", "next_page")
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    next_page: str
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ..., next_page: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: bool = ...) -> None: ...
