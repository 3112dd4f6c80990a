"""A control plane that knows whose keys are, and nothing else: for servers that ask."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from farstep_proto import paths
from farstep_proto.v1 import control_pb2


class KeyChecks:
    """`owners` by SHA-256; while it is `silent`, it hangs up."""

    def __init__(self, operator_key):
        self.owners = {}
        self.asked = []
        self.silent = False
        self.authorization = f"Bearer {operator_key}"
        self.url = ""

    @property
    def env(self):
        """What tells a server to ask here."""
        return {"FARSTEP_CONTROL_URL": self.url}

    def give(self, key, *, project="", operator=False):
        self.owners[_sha256(key)] = control_pb2.KeyOwner(key_id=f"id-{project}", project=project, operator=operator)

    def revoke(self, key):
        del self.owners[_sha256(key)]

    def times_asked(self, key):
        return self.asked.count(_sha256(key))


def _sha256(key):
    return hashlib.sha256(key.encode()).digest()


@contextmanager
def answering_key_checks(operator_key):
    checks = KeyChecks(operator_key)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            question = control_pb2.CheckKeyRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            checks.asked.append(question.sha256)
            if checks.silent:
                self.close_connection = True
                return
            assert self.path == paths.CHECK_KEY
            assert self.headers["authorization"] == checks.authorization
            owner = checks.owners.get(question.sha256)
            body = b"" if owner is None else owner.SerializeToString()
            self.send_response(404 if owner is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    checks.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield checks
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
