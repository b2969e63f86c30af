"""
Modal's control plane, as far as sandboxes need it.

It takes and gives the messages of Modal's own package, so Modal's SDK can use it as well.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.providers.grpcs import Grpc

TOKEN_ID = "ak-of-the-tests"  # noqa: S105 - of no account
TOKEN_SECRET = "as-of-the-tests"  # noqa: S105 - of no account
IMAGE = "python:3.13-slim"
V2 = re.compile(r"Sandbox\w+V2")  # what needs the token of short life
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TAG = re.compile(r"[A-Za-z0-9._-]{1,63}")
LONGEST = 86_400
Result = api_pb2.GenericResult


@dataclass
class Box:
    """A sandbox, as the server has it."""

    id: str
    app_id: str
    definition: api_pb2.Sandbox
    tags: dict[str, str]
    env: dict[str, str]
    created_at: float
    ended: int = 0  # a GenericStatus
    ends_at: float | None = None  # for one that is being terminated


class FakeModal(Grpc):
    """
    One workspace. `boxes` are by id; `images` are those that the registry has. Set what it should
    be like: `page` is how many are listed at once; to terminate a sandbox takes `ending` seconds,
    to build an image `building`; a token lives `token_lives` seconds.
    """

    service = api_pb2.DESCRIPTOR.services_by_name["ModalClient"]
    streaming = frozenset({"ImageJoinStreaming"})

    def __init__(self) -> None:
        super().__init__()
        self.environments = {"main"}
        self.images = {IMAGE}
        self.page = 2
        self.quota = 1000
        self.ending = 0.0
        self.building = 0.0
        self.token_lives = 1200.0
        self.clock = time.time
        self.boxes: dict[str, Box] = {}
        self.apps: dict[tuple[str, str], str] = {}  # by environment and name
        self.built: dict[str, tuple[str, float]] = {}  # by tag: id, and when it is ready
        self.tokens: dict[str, float] = {}
        self.stale: list[api_pb2.SandboxInfo] | None = None  # what listings say, if behind

    @property
    def environ(self) -> dict[str, str]:
        """What a provider, or Modal's SDK, is given to find it."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
        }

    def running(self) -> list[Box]:
        """What runs, and bills."""
        return [box for box in self.boxes.values() if not self._result(box).status]

    def freeze(self) -> None:
        """Let listings say from now on what they would say at this moment."""
        self.stale = [self._info(box) for box in self.running()]

    def admit(self, call: str, headers: dict[str, Any]) -> None:
        given = headers.get("x-modal-token-id"), headers.get("x-modal-token-secret")
        if given != (TOKEN_ID, TOKEN_SECRET):
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed or unknown")
        for header in ("x-modal-client-version", "x-modal-client-type"):
            if not headers.get(header):
                raise GRPCError(Status.FAILED_PRECONDITION, f"{header} is missing")
        token = headers.get("x-modal-auth-token", "")
        if V2.fullmatch(call) and self.clock() >= self.tokens.get(token, 0.0):
            raise GRPCError(Status.UNAUTHENTICATED, "auth token is missing or expired")

    def details(self, status: Status, words: str, details: Any) -> bytes:
        wrapped = api_pb2.RPCStatus(code=status.value, message=words)
        if details is not None:
            wrapped.details.add().Pack(details, type_url_prefix="type.modal.com/")
        return bytes(wrapped.SerializeToString())

    # Calls, by their names

    def auth_token_get(self, _: Any) -> Any:
        token = self._jwt()
        self.tokens[token] = self.clock() + self.token_lives
        return api_pb2.AuthTokenGetResponse(token=token)

    def client_hello(self, _: Any) -> Any:
        return api_pb2.ClientHelloResponse()

    def environment_get_or_create(self, request: Any) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def app_get_or_create(self, request: Any) -> Any:
        where = self._place(request.environment_name, request.app_name)
        if where not in self.apps:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"App {request.app_name!r} not found")
            self.apps[where] = f"ap-{secrets.token_hex(11)}"
        return api_pb2.AppGetOrCreateResponse(app_id=self.apps[where])

    def image_get_or_create(self, request: Any) -> Any:
        self._known_app(request.app_id)
        (line,) = request.image.dockerfile_commands
        tag = line.removeprefix("FROM ")
        if tag not in self.built:
            self.built[tag] = (f"im-{secrets.token_hex(11)}", self.clock() + self.building)
        image_id, _ = self.built[tag]
        return api_pb2.ImageGetOrCreateResponse(image_id=image_id, result=self._build(tag))

    async def image_join_streaming(self, request: Any) -> list[Any]:
        (tag,) = (tag for tag, (found, _) in self.built.items() if found == request.image_id)
        left = self.built[tag][1] - self.clock()
        await asyncio.sleep(max(0.0, min(request.timeout, left)))
        return [api_pb2.ImageJoinStreamingResponse(result=self._build(tag))]

    def sandbox_create_v2(self, request: Any) -> Any:
        self._known_app(request.app_id)
        asked, tags = request.definition, _tags(request.tags)
        if not 1 <= asked.timeout_secs <= LONGEST:
            raise GRPCError(Status.INVALID_ARGUMENT, f"timeout {asked.timeout_secs}")
        for text, pattern in [(asked.name or "-", NAME), *((tag, TAG) for tag in tags.values())]:
            if not pattern.fullmatch(text):
                raise GRPCError(Status.INVALID_ARGUMENT, f"{text!r} is no name or tag")
        if asked.image_id not in {image_id for image_id, _ in self.built.values()}:
            raise GRPCError(Status.NOT_FOUND, f"Image {asked.image_id!r} not found")
        if asked.name and self._by_name(request.app_id, asked.name):
            raise GRPCError(Status.ALREADY_EXISTS, f"A sandbox named {asked.name!r} runs")
        if len(self.running()) >= self.quota:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "Workspace sandbox limit reached")
        env = {key: value for s in request.secret_sources for key, value in s.env.contents.items()}
        box = Box(f"sb-01{secrets.token_hex(12)}", request.app_id, asked, tags, env, self.clock())
        self.boxes[box.id] = box
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=box.id, metadata=api_pb2.SandboxHandleMetadata(app_id=box.app_id)
        )

    def sandbox_get_from_name(self, request: Any) -> Any:
        raise GRPCError(Status.NOT_FOUND, "the backend before has none of these")

    def sandbox_get_from_name_v2(self, request: Any) -> Any:
        app_id = self.apps.get(self._place(request.environment_name, request.app_name), "")
        found = self._by_name(app_id, request.sandbox_name)
        if found is None:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {request.sandbox_name!r} not found")
        return api_pb2.SandboxGetFromNameResponse(
            sandbox_id=found.id, metadata=api_pb2.SandboxHandleMetadata(app_id=app_id)
        )

    def sandbox_wait(self, request: Any) -> Any:
        raise GRPCError(Status.NOT_FOUND, "the backend before has none of these")

    def sandbox_wait_v2(self, request: Any) -> Any:
        box = self._box(request.sandbox_id)
        metadata = api_pb2.SandboxHandleMetadata(app_id=box.app_id)
        return api_pb2.SandboxWaitResponse(result=self._result(box), metadata=metadata)

    def sandbox_tags_get_v2(self, request: Any) -> Any:
        return api_pb2.SandboxTagsGetResponse(tags=_protos(self._box(request.sandbox_id).tags))

    def sandbox_tags_set_v2(self, request: Any) -> Any:
        self._box(request.sandbox_id).tags = _tags(request.tags)
        return empty_pb2.Empty()

    def sandbox_terminate_v2(self, request: Any) -> Any:
        box = self._box(request.sandbox_id)
        ended = self._result(box)
        if not ended.status and box.ends_at is None:
            box.ends_at = self.clock() + self.ending
        return api_pb2.SandboxTerminateResponse(existing_result=ended)

    def sandbox_list_v2(self, request: Any) -> Any:
        wanted = _tags(request.tags)
        now = [self._info(box) for box in self.boxes.values() if box in self.running()]
        found = [
            item
            for item in (now if self.stale is None else self.stale)
            if request.app_id in {"", item.app_id}
            and wanted.items() <= _tags(item.tags).items()
            and (not request.before_timestamp or item.created_at < request.before_timestamp)
        ]
        found.sort(key=lambda item: (-item.created_at, item.id))
        return api_pb2.SandboxListResponse(sandboxes=found[: self.page])

    # What they share

    def _place(self, environment: str, app: str) -> tuple[str, str]:
        if (environment or "main") not in self.environments:
            raise GRPCError(Status.NOT_FOUND, f"Environment {environment!r} not found")
        return environment or "main", app

    def _known_app(self, app_id: str) -> None:
        if app_id not in self.apps.values():
            raise GRPCError(Status.NOT_FOUND, f"App {app_id!r} not found")

    def _build(self, tag: str) -> api_pb2.GenericResult:
        if self.clock() < self.built[tag][1]:
            return Result()
        if tag in self.images:
            return Result(status=Result.GENERIC_STATUS_SUCCESS)
        return Result(status=Result.GENERIC_STATUS_FAILURE, exception=f"{tag}: manifest unknown")

    def _by_name(self, app_id: str, name: str) -> Box | None:
        named = (b for b in self.running() if b.app_id == app_id and b.definition.name == name)
        return next(named, None)

    def _box(self, which: str) -> Box:
        if which not in self.boxes:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {which!r} not found")
        return self.boxes[which]

    def _result(self, box: Box) -> api_pb2.GenericResult:
        now = self.clock()
        if not box.ended and box.ends_at is not None and now >= box.ends_at:
            box.ended = Result.GENERIC_STATUS_TERMINATED
        if not box.ended and now >= box.created_at + box.definition.timeout_secs:
            box.ended = Result.GENERIC_STATUS_TIMEOUT
        return Result(status=box.ended)  # type: ignore[arg-type]  # a number of that enumeration

    def _info(self, box: Box) -> api_pb2.SandboxInfo:
        return api_pb2.SandboxInfo(
            id=box.id,
            name=box.definition.name,
            app_id=box.app_id,
            tags=_protos(box.tags),
            created_at=box.created_at,
            timeout_secs=box.definition.timeout_secs,
            task_info=api_pb2.TaskInfo(started_at=box.created_at + 0.1, result=self._result(box)),
            metadata=api_pb2.SandboxHandleMetadata(app_id=box.app_id),
        )

    def _jwt(self) -> str:
        claims = json.dumps({"exp": self.clock() + self.token_lives, "id": secrets.token_hex(4)})
        middle = base64.urlsafe_b64encode(claims.encode()).decode().rstrip("=")
        return f"e30.{middle}.signature"


def _tags(protos: Any) -> dict[str, str]:
    return {tag.tag_name: tag.tag_value for tag in protos}


def _protos(tags: dict[str, str]) -> list[api_pb2.SandboxTag]:
    return [api_pb2.SandboxTag(tag_name=key, tag_value=value) for key, value in tags.items()]
