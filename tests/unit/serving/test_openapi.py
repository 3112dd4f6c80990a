"""The document of every server: whole, valid, and true to the messages."""

import json
from types import SimpleNamespace

import httpx
import jsonschema
import pytest
from google.protobuf import json_format
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from farstep_infra.control.app import make_control_app
from farstep_proto import paths
from farstep_proto.v1 import common_pb2, control_pb2, operations_pb2, sampling_pb2, training_pb2
from farstep_sampler.router.admin import replica_routes
from farstep_sampler.server import make_sampler_app
from farstep_sampler.submissions import Submissions
from farstep_serving.app import make_app
from farstep_serving.json_schema import schemas_of
from farstep_serving.keys import KeyRing
from farstep_serving.openapi import undescribed
from farstep_serving.operations import OperationTable
from farstep_serving.usage import UsageCounters, usage_route
from farstep_worker.server import TrainerApi, make_server

KEYS = KeyRing.of("fsk-test")


def control():
    return make_control_app(keys=SimpleNamespace(create=None, secret=lambda: ""), lifespan=None)


def trainer():
    dispatcher = SimpleNamespace(table=OperationTable(), cancel=None, usage=UsageCounters())
    return make_server(TrainerApi(None, dispatcher, None), keys=KEYS, feed=None, host="", feed_port=0)


def sampler():
    more = [usage_route(UsageCounters(), instance_id="")]
    return make_sampler_app(None, Submissions(max_pending=1), keys=KEYS, more_routes=more)


def router():
    return make_sampler_app(None, Submissions(max_pending=1), keys=KEYS, more_routes=replica_routes(None))


async def document_of(app) -> dict:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        response = await client.get(paths.OPENAPI)
    assert (response.status_code, response.headers["content-type"]) == (200, paths.JSON)
    return response.json()


@pytest.mark.parametrize("make", [control, trainer, sampler, router])
async def test_every_route_is_described_and_the_document_is_valid(make):
    app = make()
    assert undescribed(app.routes) == []
    document = await document_of(app)
    OpenAPIV31SpecValidator(document).validate()
    operations = [operation for place in document["paths"].values() for operation in place.values()]
    names = [operation["operationId"] for operation in operations]
    assert sorted(set(names)) == sorted(names)
    for operation in operations:
        is_open = operation.get("security") == []
        assert ("401" in operation["responses"]) is not is_open
    assert document["paths"][paths.HEALTH]["get"]["security"] == []


def test_a_route_without_a_description_is_told():
    app = make_app([Route("/lost", lambda request: None)], keys=KEYS)
    assert len(undescribed(app.routes)) == 1
    assert "/lost" in undescribed(app.routes)[0]


async def test_a_verb_is_a_path_with_a_body_of_its_own():
    document = await document_of(trainer())
    step = document["paths"]["/v1/runs/{run_id}/optim_step"]["post"]
    content = step["requestBody"]["content"]
    assert content[paths.JSON]["schema"] == {"$ref": "#/components/schemas/OptimStepRequest"}
    assert content[paths.PROTOBUF]["schema"]["x-protobuf-message"] == "farstep.v1.OptimStepRequest"
    assert {parameter["name"] for parameter in step["parameters"]} >= {"run_id", "seq", "part", "X-Farstep-Client"}
    assert {"202", "400", "401", "404", "409", "413", "429", "5XX"} <= set(step["responses"])
    assert "verb" not in json.dumps(step["parameters"])


async def test_comments_of_the_proto_files_are_descriptions():
    schemas = (await document_of(trainer()))["components"]["schemas"]
    assert schemas["Error"]["description"].startswith("What went wrong")
    assert schemas["LoraConfig"]["properties"]["alpha"]["description"].startswith("0: the default")
    assert schemas["Datum"]["properties"]["model_input"]["$ref"].endswith("/ModelInput")


MESSAGES = [
    common_pb2.Tensor(dtype=common_pb2.DTYPE_INT64, shape=[2**40, 2], data=b"\0\xff", values=[1.5, float("nan")]),
    training_pb2.ForwardRequest(
        data=[
            common_pb2.Datum(
                model_input=common_pb2.ModelInput(
                    chunks=[common_pb2.Chunk(image=common_pb2.ImageChunk(data=b"x", format="png"))]
                ),
                loss_fn_inputs={"target_tokens": common_pb2.Tensor(values=[float("-inf")])},
            )
        ],
        loss_fn_config={"beta": float("inf")},
    ),
    sampling_pb2.SampleRequest(params=sampling_pb2.SamplingParams(logit_bias={-1: 1.0, 2: -100.0}, json_schema="{}")),
    operations_pb2.Operation(state=operations_pb2.OPERATION_STATE_FAILED, error=common_pb2.Error(status=400)),
    control_pb2.Key(expires_at=1e300),
    training_pb2.Run(seed=-(2**63), step=2**63 - 1),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
def test_what_protobuf_writes_fits_the_schema(message):
    validator = validator_of(message)
    written = json.loads(json_format.MessageToJson(message, preserving_proto_field_name=True))
    validator.validate(written)
    validator.validate({})
    assert not validator.is_valid({**written, "no_such_field": 1})


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (common_pb2.Tensor, {"dtype": "DTYPE_FLOAT64"}),
        (common_pb2.Tensor, {"shape": [1.5]}),
        (common_pb2.LoraConfig, {"rank": 2**31}),
        (common_pb2.LoraConfig, {"alpha": "1"}),
        (common_pb2.Chunk, {"image": {}, "encoded_text": {}}),
        (sampling_pb2.SamplingParams, {"logit_bias": {"x": 1.0}}),
        (training_pb2.Run, {"seed": "1.5"}),
    ],
)
def test_what_does_not_fit(kind, wrong):
    assert not validator_of(kind).is_valid(wrong)


def validator_of(message) -> jsonschema.Draft202012Validator:
    schemas = schemas_of(message)
    root = {"$ref": f"#/components/schemas/{message.DESCRIPTOR.name}", "components": {"schemas": schemas}}
    return jsonschema.Draft202012Validator(root)
