"""A client that speaks the wire contract to a trainer in this process, and a gate before its executor."""

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx

from farstep_infra.store.archive import Checkpoints
from farstep_proto import paths
from farstep_proto.tensors import model_input_to_proto, tensor_to_proto
from farstep_proto.v1 import common_pb2, operations_pb2
from farstep_proto.v1 import training_pb2 as pb
from farstep_serving.keys import KeyRing
from farstep_worker.dispatch import Dispatcher
from farstep_worker.feed import FeedServer, PolicyFeed
from farstep_worker.server import TrainerApi, make_server

KEY = "fsk-test"
PROTO = {"content-type": paths.PROTOBUF, "accept": paths.PROTOBUF}
ADAM = pb.OptimStepRequest(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)
LIMIT = 100_000  # bytes of a request


class Trainer:
    """A client that speaks the contract and nothing more."""

    def __init__(self, http, dispatcher):
        self.http = http
        self.dispatcher = dispatcher

    async def post(self, path, message, *, headers=None, **params):
        return await self.http.post(
            path, content=message.SerializeToString(), headers={**PROTO, **(headers or {})}, params=params
        )

    async def create(self, run_id="run", *, rank=4, **fields):
        request = pb.CreateRunRequest(
            run_id=run_id,
            **{"base_model": "farstep/tiny", "seed": 1, **fields},
            lora=common_pb2.LoraConfig(rank=rank, train_attn=True, train_mlp=True),
        )
        return await self.post("/v1/runs", request)

    async def submit(self, verb, message, seq, *, run_id="run", client="me", **params):
        headers = {paths.CLIENT_ID: client}
        return await self.post(f"/v1/runs/{run_id}/{verb}", message, headers=headers, seq=seq, **params)

    async def outcome(self, operation_id, *, wait_s=20):
        response = await self.http.get(f"/v1/operations/{operation_id}", headers=PROTO, params={"wait_s": wait_s})
        return operations_pb2.Operation.FromString(response.content)

    async def poll(self, client="me", *, wait_s=20.0, ack=()):
        request = operations_pb2.PollRequest(client_id=client, wait_s=wait_s, ack=ack)
        return operations_pb2.PollResponse.FromString((await self.post(paths.POLL, request)).content)


class GatedExecutor:
    """The real executor, behind a gate; tells in which order it was asked."""

    def __init__(self, executor):
        self._executor = executor
        self.gate = threading.Event()
        self.gate.set()
        self.order = []

    def __getattr__(self, name):
        return getattr(self._executor, name)

    def execute(self, run_id, call):
        assert self.gate.wait(20)
        self.order.append((run_id, type(call).__name__))
        return self._executor.execute(run_id, call)


@asynccontextmanager
async def serving(executor, *, custom_losses=False, **settings):
    keys = KeyRing.of(KEY)
    feed = PolicyFeed(keys)
    dispatcher = Dispatcher(executor, feed=feed, num_threads=1, **settings)
    checkpoints = Checkpoints(executor.store, secret=KEY)
    api = TrainerApi(executor.base, dispatcher, checkpoints, max_request_bytes=LIMIT, custom_losses=custom_losses)
    app = make_server(api, keys=keys, feed=FeedServer(feed), host="127.0.0.1", feed_port=0)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://trainer", headers=headers, timeout=30) as http,
    ):
        yield Trainer(http, dispatcher)


def to_request(call):
    data = [
        common_pb2.Datum(
            model_input=model_input_to_proto(example.tokens),
            loss_fn_inputs={key: tensor_to_proto(array) for key, array in example.inputs.items()},
        )
        for example in call.examples
    ]
    return pb.ForwardRequest(data=data, loss_fn=call.loss_fn, loss_fn_config=call.config)


def error_of(response):
    return common_pb2.Error.FromString(response.content)


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")
