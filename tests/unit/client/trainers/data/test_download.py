"""Files at addresses: what is fetched, what is refused, and who sees the token."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from farstep.trainers.config import BlobConfig, DataConfig
from farstep.trainers.data.sources.base import Source
from farstep.trainers.data.sources.download import Rules, addresses_of, download, judged_addresses
from farstep.trainers.errors import DataError

OPEN = Rules(allow_http=True, allow_private=True)
LINE = b'{"text": "hello"}\n'


class Handler(BaseHTTPRequestHandler):
    seen: list[tuple[str, str | None, str | None]]
    redirects: dict[str, str]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"], self.headers["Authorization"]))
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = LINE * 1000 if self.path == "/large.jsonl" else LINE
        needs_token = self.path.startswith("/secret")
        allowed = not needs_token or self.headers["Authorization"] == "Bearer s3cret"
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/x-ndjson; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Server:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.handler = type("Own", (Handler,), {"seen": [], "redirects": {}})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_a_blob_is_read_by_its_name_or_its_type(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "s3cret")
    for path, settings in [
        ("/a.jsonl", {}),
        ("/a", {}),
        ("/a.csv?x=1", {"suffix": "jsonl"}),
        ("/secret", {"token": "s3cret"}),
        ("/secret", {"token_env": "SOME_TOKEN"}),
    ]:
        config = BlobConfig(url=server.url + path, allow_http=True, allow_private=True, **settings)
        assert Source.get("blob")(config).rows() == [{"text": "hello"}]
    monkeypatch.delenv("SOME_TOKEN")
    with pytest.raises(DataError, match="SOME_TOKEN: this environment variable is not set"):
        Source.get("blob")(config).rows()


def test_a_wrong_token_is_told_and_not_shown(server: Server) -> None:
    config = BlobConfig(url=f"{server.url}/secret?sig=hidden", token="wr0ng", allow_http=True, allow_private=True)
    with pytest.raises(DataError, match=r"HTTP 401 .*is the token right") as raised:
        Source.get("blob")(config).rows()
    assert "wr0ng" not in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert "wr0ng" not in repr(config) + repr(DataConfig(sources=[config]))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """Also where only one of several is such an address."""
    for answer in ([address], ["93.184.216.34", address]):
        with pytest.raises(DataError, match="which is not public"):
            judged_addresses("https://example.com/a", Rules(), lambda host, port, answer=answer: answer)
    allowed = judged_addresses("https://example.com/a", Rules(allow_private=True), lambda host, port: [address])
    assert allowed == [address]


def test_public_addresses_are_let_through() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"):
        assert judged_addresses("https://example.com/a", Rules(), lambda host, port, a=address: [a]) == [address]


def test_an_address_written_as_a_number_is_judged_too() -> None:
    for url in ("https://127.0.0.1/", "https://[::1]/", "https://localhost/", "https://2130706433/", "https://0x7f.1/"):
        with pytest.raises(DataError, match=r"not public|no address"):
            judged_addresses(url, Rules(), addresses_of)


@pytest.mark.parametrize("url", ["http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://x/"])
def test_only_https(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only https is allowed"):
        download(url, tmp_path / "a", token=None, rules=Rules(allow_private=True))


def test_redirects_are_held_to_the_same_rules(server: Server, tmp_path: Path) -> None:
    def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    handler = server.handler
    handler.redirects = {
        "/here": "/a.jsonl",
        "/there": f"http://other.test:{server.port}/a.jsonl",
        "/file": "file:///etc/passwd",
        "/ftp": "ftp://example.com/a",
        "/round": "/round",
    }
    first = f"http://one.test:{server.port}"
    to = tmp_path / "a"
    download(f"{first}/here", to, token="s3cret", rules=OPEN, resolve=resolve)
    assert to.read_bytes() == LINE
    assert [seen[2] for seen in handler.seen] == ["Bearer s3cret"] * 2
    handler.seen.clear()
    download(f"{first}/there", to, token="s3cret", rules=OPEN, resolve=resolve)
    assert [(seen[1], seen[2]) for seen in handler.seen] == [
        (f"one.test:{server.port}", "Bearer s3cret"),
        (f"other.test:{server.port}", None),
    ]
    for path, message in (
        ("/file", "file, and only https"),
        ("/ftp", "ftp, and only"),
        ("/round", "more than 5 redirects"),
    ):
        with pytest.raises(DataError, match=message):
            download(first + path, to, token=None, rules=OPEN, resolve=resolve)


def test_a_redirect_to_a_private_address_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    """The first host is public to the judge; where it sends us is not."""
    inner, outer = Server(), Server()
    try:
        outer.handler.redirects = {"/a": f"http://inner.test:{inner.port}/a.jsonl"}
        judged: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            judged.append(host)
            if host == "inner.test":
                return ["10.1.2.3"]
            return ["127.0.0.1"]

        from farstep.trainers.data.sources import download as module

        public = module._is_public
        try:
            module._is_public = lambda address: address == "127.0.0.1" or public(address)
            with pytest.raises(DataError, match=r"inner\.test is 10\.1\.2\.3, which is not public"):
                download(
                    f"http://outer.test:{outer.port}/a",
                    tmp_path / "a",
                    token=None,
                    rules=Rules(allow_http=True),
                    resolve=resolve,
                )
        finally:
            module._is_public = public
        assert judged == ["outer.test", "inner.test"]
        assert inner.handler.seen == []
    finally:
        inner.stop()
        outer.stop()


def test_the_connection_goes_to_the_address_that_was_judged(server: Server, tmp_path: Path) -> None:
    """A name that answers differently the second time cannot matter: it is asked once."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    download(f"http://nowhere.invalid:{server.port}/a.jsonl", tmp_path / "a", token=None, rules=OPEN, resolve=resolve)
    assert asked == ["nowhere.invalid"]
    assert server.handler.seen[0][1] == f"nowhere.invalid:{server.port}"


def test_an_address_out_of_reach_is_passed_over(server: Server, tmp_path: Path) -> None:
    url = f"http://one.test:{server.port}/a.jsonl"
    addresses = ["127.0.0.2", "127.0.0.1"]  # the server listens on the second alone
    download(url, tmp_path / "a", token=None, rules=OPEN, resolve=lambda host, port: addresses)
    assert (tmp_path / "a").read_bytes() == LINE


def test_too_much_is_refused(server: Server, tmp_path: Path) -> None:
    rules = Rules(allow_http=True, allow_private=True, max_bytes=100)
    with pytest.raises(DataError, match=r"more than max_bytes \(100\)"):
        download(f"{server.url}/large.jsonl", tmp_path / "a", token=None, rules=rules)


def test_who_does_not_answer_is_told(tmp_path: Path) -> None:
    server = Server()
    server.stop()
    with pytest.raises(DataError, match="cannot be fetched: ConnectError"):
        download(f"{server.url}/a", tmp_path / "a", token=None, rules=OPEN)


def test_certificates_are_checked_for_the_name_and_not_the_address(tmp_path: Path) -> None:
    context, trusting = certified("data.test", tmp_path)
    server = Server(context)
    try:
        for host, fits in (("data.test", True), ("other.test", False)):
            url = f"https://{host}:{server.port}/a.jsonl"
            rules = Rules(allow_private=True)
            if fits:
                download(
                    url, tmp_path / "a", token=None, rules=rules, resolve=lambda h, p: ["127.0.0.1"], verify=trusting
                )
                assert (tmp_path / "a").read_bytes() == LINE
                continue
            with pytest.raises(DataError, match=r"cannot be fetched: ConnectError.*[Hh]ostname mismatch"):
                download(
                    url, tmp_path / "a", token=None, rules=rules, resolve=lambda h, p: ["127.0.0.1"], verify=trusting
                )
    finally:
        server.stop()


def certified(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server with a certificate of its own for `name`, and of a client that trusts it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context, ssl.create_default_context(cadata=pem.decode())
