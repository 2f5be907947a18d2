"""The Open Inference Protocol's routes over one server half."""

from __future__ import annotations

import asyncio
import hmac
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Optional

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import boxes, protocol, staged
from .. import wire as wires
from ..errors import PayloadError
from ..halves import ServerHalf
from ..letterbox import Letterbox
from ..points import FIRST
from .batching import Batcher, Decision
from .metrics import Metrics

_GONE = 499  # a client that did not wait; only logs and metrics ever see it
_OPEN = ("/v2/health/live", "/v2/health/ready")  # what needs no token: orchestrators ask it
Log = Callable[..., None]


@dataclass(frozen=True)
class Limits:
    """What a server bears.

    Attributes:
        body_bytes: of one request.
        deadline_s: for a request's headers to arrive, again for its body, and again for its answer.
        waiting: requests that have arrived and are not answered; more are told to come later.
        connections: at the same time.
        workers: threads that decode payloads.
        lanes: of these, how many run the network at the same time.
    """

    body_bytes: int
    deadline_s: float = 10.0
    waiting: int = 256
    connections: int = 1024
    workers: int = 4
    lanes: int = 1


class Refusal(Exception):
    """A request that gets an error: its HTTP status and what to say."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Service:
    """A bundle's server half behind the protocol's routes; its points are versions of one model.

    Args:
        halves: by version; ``1`` is of a sealed bundle.
        limits: what it bears.
        batching: of each version, how many pictures go through the tail at once.
        token: what clients must show; None asks for nothing.
        log: told of every request.
    """

    def __init__(
        self,
        halves: dict[str, ServerHalf],
        limits: Limits,
        batching: dict[str, Decision],
        token: Optional[str],
        log: Log,
    ) -> None:
        self._halves, self.limits, self._token, self._log = halves, limits, token, log
        self._half = halves[FIRST]  # whose classes and outputs are all the others' too
        self._seal = self._half.sealed
        self._metrics, self._in_work = Metrics(), 0
        self._batchers = {
            version: Batcher(half, batching[version].size, limits.lanes, self._count_batch)
            for version, half in halves.items()
        }
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="half")
        self._metrics.gauge("requests_in_work", lambda: self._in_work)
        self._metrics.gauge("batch_size_limit", lambda: batching[FIRST].size)

    def app(self) -> ASGIApp:
        """What uvicorn runs."""
        model = "/v2/models/{name}"
        routes = [
            Route("/v2/health/live", self._healthy),
            Route("/v2/health/ready", self._healthy),
            Route("/v2", self._about_server),
            Route("/metrics", self._metrics_text),
            Route("/link", self._link, methods=["POST"]),
        ]
        for base in (model, model + "/versions/{version}"):
            routes += [
                Route(base, self._about_model),
                Route(base + "/ready", self._model_ready),
                Route(base + "/infer", self._infer, methods=["POST"]),
            ]
        handlers: Any = {Refusal: _refused, HTTPException: _not_found, ClientDisconnect: _gone, Exception: _broken}
        return _Watched(Starlette(routes=routes, exception_handlers=handlers), self._admit, self._finished)

    # -- routes ------------------------------------------------------------------------------------------------------

    async def _healthy(self, request: Request) -> Response:
        return JSONResponse({})

    async def _about_server(self, request: Request) -> Response:
        return JSONResponse({"name": "splitsearch", "version": "1", "extensions": ["binary_tensor_data"]})

    async def _metrics_text(self, request: Request) -> Response:
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _about_model(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(
            {
                "name": self._seal.name,
                "versions": list(self._halves),
                "platform": "onnxruntime",
                "inputs": [{"name": protocol.INPUT, "datatype": "UINT8", "shape": [-1]}],
                "outputs": self._outputs(),
                "parameters": {"fingerprint": self._seal.fingerprint, "classes": self._half.classes},
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse({"name": self._seal.name, "ready": True})

    async def _link(self, request: Request) -> Response:
        """Takes bytes and says how many: what a client measures the link with."""
        return JSONResponse({"bytes": len(await self._body(request))})

    async def _infer(self, request: Request) -> Response:
        start = time.perf_counter()
        self._check_model(request)
        body = await self._body(request)
        if self._in_work >= self.limits.waiting:
            raise Refusal(503, f"{self._in_work} requests are in work; try again later")
        self._in_work += 1
        try:
            answered = asyncio.get_running_loop().run_in_executor(self._threads, self._answer, request, body, start)
            response = await asyncio.wait_for(answered, self.limits.deadline_s)
        except asyncio.TimeoutError:
            raise Refusal(504, f"no answer within {self.limits.deadline_s:g} s; try again later") from None
        finally:
            self._in_work -= 1
        self._metrics.observe_answer(time.perf_counter() - start)
        return response

    # -- what they do ------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, body: bytes, start: float) -> Response:
        """One picture's answer; runs in a thread of its own."""
        arrived_ms = (time.perf_counter() - start) * 1000
        try:
            asked = protocol.read_request(body, request.headers.get(protocol.LENGTH_HEADER))
            self._check_fingerprint(asked)
            version = request.path_params.get("version", FIRST)
            half = self._halves[version]
            answer, stages_ms = staged.decode(half, asked.payload, self._batchers[version])
            said = {"fingerprint": self._seal.fingerprint, "arrived_ms": round(arrived_ms, 4)}
            said |= {f"{stage}_ms": round(ms, 4) for stage, ms in stages_ms.items()}
            said["server_ms"] = round((time.perf_counter() - start) * 1000, 4)
            model = {"model_name": self._seal.name, "model_version": version}
            data, json_length = protocol.write_response(model, asked, _tensors(half, asked, answer), said)
        except (protocol.ProtocolError, PayloadError) as error:
            raise Refusal(400, str(error)) from None
        self._count(len(asked.payload), stages_ms)
        if json_length is None:
            return Response(data, media_type="application/json")
        headers = {protocol.LENGTH_HEADER: str(json_length)}
        return Response(data, headers=headers, media_type="application/octet-stream")

    def _outputs(self) -> list[dict]:
        if not self._half.finds_boxes:
            return [{"name": "answer", "datatype": "FP32", "shape": [len(self._half.classes) or -1]}]
        shapes = {"answer": [-1, 6], "boxes": [-1, 4], "scores": [-1], "labels": [-1]}
        kinds = {"labels": "INT64"}
        return [{"name": name, "datatype": kinds.get(name, "FP32"), "shape": shape} for name, shape in shapes.items()]

    def _check_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", FIRST)
        if name != self._seal.name or version not in self._halves:
            here = f"here is {self._seal.name!r}, versions {', '.join(self._halves)}"
            raise Refusal(404, f"no model {name[:80]!r} version {version[:80]!r}; {here}")

    def _check_fingerprint(self, asked: protocol.Request) -> None:
        given = asked.parameters.get("fingerprint", self._seal.fingerprint)
        if given != self._seal.fingerprint:
            raise Refusal(
                409,
                f"the device half is of bundle {str(given)[:32]!r}, this server of {self._seal.fingerprint!r}; "
                "copy both halves from the same bundle",
            )

    async def _body(self, request: Request) -> bytes:
        """All of a request's body, unless it is too long, too slow or compressed."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed bodies are not taken; send the body as it is")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self.limits.body_bytes:
            raise Refusal(413, f"{length[:20]} bytes given; up to {self.limits.body_bytes} are taken")
        try:
            return await asyncio.wait_for(self._read(request), self.limits.deadline_s)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self.limits.deadline_s:g} s") from None

    async def _read(self, request: Request) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.limits.body_bytes:
                raise Refusal(413, f"more than {self.limits.body_bytes} bytes were sent")
        return bytes(data)

    # -- who may, and what is noted ----------------------------------------------------------------------------------

    def _admit(self, scope: Scope) -> Optional[Response]:
        """None for whoever may come in."""
        if self._token is None or scope["path"] in _OPEN:
            return None
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self._token.encode()):
            return None
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        return JSONResponse({"error": "a bearer token is needed: Authorization: Bearer TOKEN"}, 401, headers)

    def _finished(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"].rpartition("/")[2] if status not in (401, 404, 405) else "none"
        route = route if route in ("infer", "live", "ready", "metrics", "link", "v2") else "other"
        self._metrics.count("requests", route=route, status=str(status))
        client = (scope.get("client") or ("", 0))[0]
        self._log("request", method=scope["method"], path=scope["path"][:200], status=status,
                  ms=round(seconds * 1000, 3), client=client)  # fmt: skip

    def _count(self, payload_bytes: int, stages_ms: dict[str, float]) -> None:
        self._metrics.count("answers")
        self._metrics.count("payload_bytes", payload_bytes)
        for stage, ms in stages_ms.items():
            self._metrics.count("stage_seconds", ms / 1000, stage=stage)

    def _count_batch(self, pictures: int) -> None:
        self._metrics.count("tail_runs")
        self._metrics.count("tail_pictures", pictures)


class _Watched:
    """Lets requests in or not, and tells how each ended."""

    def __init__(
        self,
        app: ASGIApp,
        admit: Callable[[Scope], Optional[Response]],
        finished: Callable[[Scope, int, float], None],
    ) -> None:
        self._app, self._admit, self._finished = app, admit, finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), [_GONE]

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        app: Any = self._admit(scope) or self._app
        try:
            await app(scope, receive, noting)
        finally:
            self._finished(scope, status[0], time.perf_counter() - start)


def _tensors(half: ServerHalf, asked: protocol.Request, answer: np.ndarray) -> dict[str, np.ndarray]:
    """The network's answer; of a detector also what it found, in pixels of the picture."""
    tensors = {"answer": np.ascontiguousarray(answer, np.float32)}
    if half.finds_boxes:
        assert half.wire is not None
        place = Letterbox(*wires.picture_size(asked.payload, half.wire), half.picture.size)
        found = boxes.boxes_of(answer, place, _least_score(asked))
        corners = [[box.left, box.top, box.right, box.bottom] for box in found]
        tensors["boxes"] = np.array(corners, np.float32).reshape(-1, 4)
        tensors["scores"] = np.array([box.score for box in found], np.float32)
        tensors["labels"] = np.array([box.label for box in found], np.int64)
    return tensors


def _least_score(asked: protocol.Request) -> float:
    value = asked.parameters.get("least_score", boxes.LEAST_SCORE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise protocol.ProtocolError("least_score: a number is needed, from 0 to 1 as scores are")
    return float(value)


Handler = Callable[[Request, Any], Awaitable[Response]]


async def _refused(request: Request, error: Refusal) -> Response:
    # What is left of such a body is not waited for.
    headers = {"Connection": "close"} if error.status in (408, 413, 415) else None
    return JSONResponse({"error": error.message}, error.status, headers)


async def _not_found(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": f"{error.detail}: {request.method} {request.url.path[:200]}"}, error.status_code)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=_GONE)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed on this request; its log says more"}, 500)
