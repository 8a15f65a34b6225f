"""A scripted OpenAI-compatible server: real HTTP on this machine, whose every answer, good or bad, a test decides.

    with ScriptedServer(sequence(Status(503), Text("hello"))) as server:
        ...  # ask server.url; then look at server.chats

As a process of its own: python tests/agents/scripted_server.py --port 8000 --script hostile --seed 3 --share 0.3
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if not __package__:  # a process of its own
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.agents.behaviours import (
    Behaviour,
    Endless,
    Garbage,
    Hang,
    Json,
    Refusal,
    Reset,
    Schema,
    Script,
    Status,
    Text,
    ToolCall,
    Truncate,
    WrongSchema,
    named_script,
    schema_of,
)
from tests.agents.chat_wire import completion, embedding, event_of, events_of, limit_of, prompt_of, tokens
from tests.agents.schema_values import value_of

LOOK_SECONDS = 0.02  # between two looks at whether a client that is kept waiting has gone


@dataclass
class Received:
    """A request and what became of it. `seconds` run from its last byte to the last of the answer."""

    path: str
    body: Json
    headers: Mapping[str, str]
    number: int = -1  # of chat requests, in their order
    behaviour: Behaviour | None = None
    seconds: float = 0.0
    gone: bool = False  # the client left before the end


class ScriptedServer:
    """Serves from the start of a `with` block, or of start(), to its end.

    `key` is what an Authorization header must bear; `context` limits prompt and reply, as vLLM does; `delay` comes
    before each reply and `chunk` is the size of a streamed piece in characters. `script`, `key`, `context`, `delay`
    and `healthy` may change at any time.
    """

    def __init__(
        self,
        script: Script | Behaviour,
        *,
        models: Sequence[str] = ("scripted",),
        key: str = "",
        context: int = 0,
        delay: float = 0.0,
        chunk: int = 64,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.script = script
        self.models, self.key, self.context, self.delay, self.chunk = tuple(models), key, context, delay, chunk
        self.healthy = True
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.received: list[Received] = []
        self.open: set[socket.socket] = set()
        self._http = _Http((host, port), _Handler)
        self._http.owner = self
        self.port = int(self._http.server_address[1])
        self.url = f"http://{host}:{self.port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> ScriptedServer:
        self._thread.start()
        return self

    def close(self) -> None:
        self.closing.set()
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> ScriptedServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def requests(self) -> list[Received]:
        with self.lock:
            return list(self.received)

    @property
    def chats(self) -> list[Received]:
        return [entry for entry in self.requests if entry.number >= 0]

    def note(self, entry: Received, chat: bool) -> None:
        with self.lock:
            entry.number = sum(e.number >= 0 for e in self.received) if chat else -1
            self.received.append(entry)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    owner: ScriptedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet: the log is ScriptedServer.requests."""

    def setup(self) -> None:
        super().setup()
        with self.server.owner.lock:
            self.server.owner.open.add(self.connection)

    def finish(self) -> None:
        with self.server.owner.lock:
            self.server.owner.open.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        data, body = self.rfile.read(int(self.headers.get("Content-Length") or 0)), None
        with contextlib.suppress(ValueError):
            body = json.loads(data)
        self._serve(body)

    def _serve(self, body: Any) -> None:
        owner, began = self.server.owner, time.perf_counter()
        headers = {name.lower(): value for name, value in self.headers.items()}
        entry = Received(self.path, body if isinstance(body, dict) else {}, headers)
        owner.note(entry, chat=self.path == "/v1/chat/completions")
        try:
            if self.path == "/health":
                self._send(200 if owner.healthy else 503, b"")
            elif owner.key and self.headers.get("Authorization") != f"Bearer {owner.key}":
                self._error(401, "Unauthorized")
            elif not isinstance(body, dict):
                self._error(400, "the body is not a JSON object")
            else:
                self._route(entry)
        except OSError:
            entry.gone = self.close_connection = True
        entry.seconds = time.perf_counter() - began

    def _route(self, entry: Received) -> None:
        owner, body = self.server.owner, entry.body
        if self.path == "/v1/models":
            self._json({"object": "list", "data": [{"id": name, "object": "model"} for name in owner.models]})
        elif self.path not in ("/tokenize", "/v1/embeddings", "/v1/chat/completions"):
            self._error(404, f"no such path: {self.path}")
        elif body.get("model", owner.models[0]) not in owner.models:
            self._error(404, f"The model `{body['model']}` does not exist.")
        elif self.path == "/tokenize":
            text = body.get("prompt") or " ".join(str(m.get("content")) for m in body.get("messages", []))
            self._json({"count": tokens(text), "max_model_len": owner.context or 32768})
        elif self.path == "/v1/embeddings":
            self._embed(body)
        else:
            self._chat(entry)

    def _embed(self, body: Json) -> None:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors: list[Any] = [embedding(text) for text in texts]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(array("f", vector).tobytes()).decode() for vector in vectors]
        rows = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": sum(map(tokens, texts)), "total_tokens": sum(map(tokens, texts))}
        self._json({"object": "list", "data": rows, "model": body.get("model"), "usage": usage})

    def _chat(self, entry: Received) -> None:
        owner, body = self.server.owner, entry.body
        needed = tokens(prompt_of(body)) + limit_of(body)
        if owner.context and needed > owner.context:
            self._error(
                400,
                f"This model's maximum context length is {owner.context} tokens. However, you requested {needed} "
                "tokens. Please reduce the length of the messages or completion.",
            )
            return
        script = owner.script
        entry.behaviour = script(body, entry.number) if callable(script) else script
        owner.closing.wait(owner.delay)
        self._behave(entry, entry.behaviour)

    def _behave(self, entry: Received, behaviour: Behaviour) -> None:
        match behaviour:
            case Status(code, retry_after, sent):
                headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
                if sent is None:
                    self._error(code, f"scripted {code}", headers)
                else:
                    self._send(code, (sent if isinstance(sent, str) else json.dumps(sent)).encode(), headers)
            case Hang(seconds, then):
                entry.gone = self._wait(seconds)
                if then is None or entry.gone:
                    self.close_connection = True
                else:
                    self._behave(entry, then)
            case Reset(middle):
                if middle:
                    self._partly(entry.body, Text(middle))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
            case Truncate(content, clean):
                self._partly(entry.body, Text(content), clean=clean)
                self.close_connection = True
            case Garbage(text):
                stream = entry.body.get("stream")
                data = f"data: {text}\n\ndata: [DONE]\n\n" if stream else text
                self._send(200, data.encode(), kind="text/event-stream" if stream else "application/json")
            case _:
                self._reply(entry, behaviour)

    def _reply(self, entry: Received, behaviour: Behaviour) -> None:
        owner, body = self.server.owner, entry.body
        message: Json
        finish = "stop"
        match behaviour:
            case Text(content, finish, thinking, delay):
                owner.closing.wait(delay)
                message = {"content": content, **({"reasoning_content": thinking} if thinking else {})}
            case Schema(seed, values):
                schema = schema_of(body)[1]
                if schema is None:
                    self._error(400, "the script answers by a schema and the request has none")
                    return
                found = value_of(schema, random.Random(seed))
                message = {"content": json.dumps({**found, **values} if isinstance(found, dict) else found)}
            case WrongSchema():
                message = {"content": '{"unexpected": ["value", 1, null]}'}
            case Refusal(text):
                message = {"content": None, "refusal": text}
            case ToolCall(name, arguments):
                call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
                message, finish = {"content": None, "tool_calls": [call]}, "tool_calls"
            case Endless(word, pause):
                if body.get("stream"):
                    self._flood(body, word, pause)
                    return
                message, finish = {"content": word * min(limit_of(body), 10_000)}, "length"
            case _:
                message = {"content": ""}
        if body.get("stream"):
            self._start_stream()
            for event in events_of(body, message, finish, owner.chunk):
                self._piece(event)
            self._piece("")
        else:
            self._json(completion(body, message, finish))

    def _flood(self, body: Json, word: str, pause: float) -> None:
        self._start_stream()
        while not self.server.owner.closing.wait(pause):
            self._piece(event_of(body, [{"index": 0, "delta": {"content": word}, "finish_reason": None}]))

    def _partly(self, body: Json, text: Text, clean: bool = False) -> None:
        message = {"content": text.content}
        if body.get("stream"):
            events = list(events_of(body, message, "stop", max(1, len(text.content) // 6)))[:4]
            self._start_stream("close")
            for event in events:
                self._piece(event)
            if clean:
                self._piece("")
        else:
            data = json.dumps(completion(body, message, "stop")).encode()
            half = data[: len(data) // 2]
            self._send(200, half, {"Connection": "close"}, length=len(half) if clean else len(data))

    def _wait(self, seconds: float) -> bool:
        """Whether the client has gone meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.server.owner.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], min(LOOK_SECONDS, seconds))
            if readable:
                return not self.connection.recv(1, socket.MSG_PEEK)
        return False

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode())

    def _error(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = {"error": {"message": message, "type": "Scripted", "param": None, "code": code}}
        self._send(code, json.dumps(body).encode(), headers)

    def _send(
        self,
        code: int,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        kind: str = "application/json",
        length: int = -1,
    ) -> None:
        self.send_response(code)
        own = {"Content-Type": kind, "Content-Length": str(len(data) if length < 0 else length)}
        for name, value in {**own, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _start_stream(self, connection: str = "keep-alive") -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", connection)
        self.end_headers()

    def _piece(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one; it is printed and in --port-file")
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--script", default="schemas", help=named_script.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.3, help="of misdeeds")
    parser.add_argument("--models", default="scripted", help="names, with commas between")
    parser.add_argument("--key-env", default="", help="the variable that holds the key clients must send")
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each reply")
    given = parser.parse_args()
    sys.path.insert(0, os.getcwd())
    server = ScriptedServer(
        named_script(given.script, given.seed, given.share),
        models=given.models.split(","),
        key=os.environ[given.key_env] if given.key_env else "",
        context=given.context,
        delay=given.delay,
        host=given.host,
        port=given.port,
    ).start()
    if given.port_file:
        part = given.port_file.with_name(given.port_file.name + ".part")
        part.write_text(str(server.port))
        part.replace(given.port_file)
    print(server.url, flush=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    server.close()


if __name__ == "__main__":
    main()
