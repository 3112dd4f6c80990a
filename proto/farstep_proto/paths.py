"""URL paths, header names and media types of every Farstep server."""

from urllib.parse import quote

# Media types. Every route takes and gives both; the binary one costs nothing per element.
PROTOBUF = "application/x-protobuf"
JSON = "application/json"
# Streams: of framed messages (`framing`), and of server-sent events with the same messages as JSON.
PROTOBUF_STREAM = "application/x-protobuf-stream"
EVENT_STREAM = "text/event-stream"

# Headers
CLIENT_ID = "X-Farstep-Client"
MIN_POLICY_VERSION = "X-Min-Policy-Version"
EXACT_POLICY_VERSION = "X-Policy-Version"
IDEMPOTENCY_KEY = "Idempotency-Key"
ON_BEHALF_OF = "X-Farstep-Project"  # an operator asks as that project would

# Every server
HEALTH = "/health"
INFO = "/v1/info"
OPENAPI = "/openapi.json"
USAGE = "/v1/usage"
TOKENIZER = "/v1/tokenizer"
POLL = "/v1/operations:poll"
OPERATION = "/v1/operations/{operation_id}"
CANCEL = "/v1/operations/{operation_id}/cancel"

# dp_worker
RUNS = "/v1/runs"
RUN = "/v1/runs/{run_id}"
VERB = "/v1/runs/{run_id}/{verb}"
TRACE = "/v1/runs/{run_id}/trace"
RUN_OPERATIONS = "/v1/runs/{run_id}/operations"
POLICY_VERSION = "/policy_version"
METRICS = "/metrics"

# sampler
SAMPLES = "/v1/samples"  # 202, outcome by poll
SAMPLE = "/v1/sample"  # waits for the outcome
SAMPLE_STREAM = "/v1/sample:stream"  # says it as it comes
POLICIES = "/v1/policies"
POLICY = "/v1/policies/{run_id}"
LOAD_POLICY = "/v1/policies:load"
DRAIN = "/v1/drain"
REPLICAS = "/v1/replicas"  # of a router

# sampler, in the terms of the OpenAI API
OPENAI_CHAT = "/v1/chat/completions"
OPENAI_COMPLETIONS = "/v1/completions"
OPENAI_MODELS = "/v1/models"
OPENAI_MODEL = "/v1/models/{model:path}"

# control plane (RUNS and RUN as well)
SESSIONS = "/v1/sessions"
SESSION = "/v1/sessions/{session_id}"
SESSION_RUNS = "/v1/sessions/{session_id}/runs"
SESSION_SAMPLERS = "/v1/sessions/{session_id}/samplers"
SESSION_HEARTBEAT = "/v1/sessions/{session_id}/heartbeat"
RUN_DEACTIVATE = "/v1/runs/{run_id}/deactivate"
SAMPLERS = "/v1/samplers"
SAMPLER = "/v1/samplers/{sampler_id}"
KEYS = "/v1/keys"
KEY = "/v1/keys/{key_id}"
CHECK_KEY = "/v1/keys:check"
PROJECTS = "/v1/projects"
PROJECT = "/v1/projects/{project}"
PROCESS_LOG = "/v1/processes/{name}/log"
CAPABILITIES = "/v1/capabilities"
STATUS = "/v1/status"

# checkpoints, on a control plane and on a dp_worker
RUN_CHECKPOINTS = "/v1/runs/{run_id}/checkpoints"
CHECKPOINT_ARCHIVE = "/v1/checkpoints/{run_id}/{kind}/{name}/archive"
CHECKPOINT_TTL = "/v1/checkpoints/{run_id}/{kind}/{name}/ttl"
CHECKPOINT_FILE = "/v1/checkpoints/{run_id}/{kind}/{name}/files/{file}"
CHECKPOINT = "/v1/checkpoints/{run_id}/{kind}/{name}"


class Verb:
    """The last part of `VERB`: what a run can be asked to do, in seq order."""

    FORWARD = "forward"
    FORWARD_BACKWARD = "forward_backward"
    OPTIM_STEP = "optim_step"
    SAVE_STATE = "save_state"
    PUBLISH = "publish"
    LOAD_STATE = "load_state"
    RESET = "reset"
    IMPORT_ADAPTER = "import_adapter"
    SKIP = "skip"


def of(template: str, **parts: str) -> str:
    """A path with its parts filled in, each escaped."""
    return template.format(**{name: quote(part, safe=":") for name, part in parts.items()})
