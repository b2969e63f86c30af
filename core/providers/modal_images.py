"""Images of Modal: what is in a registry, made ready to run there."""

from __future__ import annotations

import time

from modal_proto import api_pb2

from ..errors import InvalidSpec, Unavailable
from .modal_wire import Wire

# With this builder an image is what it is in its registry: Modal adds no packages of its own.
BUILDER = "2025.06"
LOOKS_FOR = 55.0  # seconds that one look at a build lasts
PAUSE = 0.05  # seconds between two of them
BROKEN = {  # what a build may end with that trying again does not mend
    api_pb2.GenericResult.GENERIC_STATUS_FAILURE,
    api_pb2.GenericResult.GENERIC_STATUS_MEMORY_MANAGER_EVICTION,
}


def prepared(wire: Wire, image: str, app_id: str, deadline: float) -> str:
    """
    The id of an image, which Modal knows or builds. Raises InvalidSpec when it cannot be built. No
    sandbox is made here: whatever else goes wrong is Unavailable, never an unknown outcome, and
    Modal goes on with a build that nobody waits for.
    """
    doing = f"prepare image {image}"
    answer = wire.ask(
        "ImageGetOrCreate",
        api_pb2.ImageGetOrCreateRequest(
            app_id=app_id,
            image=api_pb2.Image(dockerfile_commands=[f"FROM {image}"]),
            builder_version=BUILDER,
        ),
        api_pb2.ImageGetOrCreateResponse,
        doing=doing,
        deadline=deadline,
    )
    if not answer.image_id:
        raise Unavailable(f"cannot {doing}: Modal's answer has no id")
    result = answer.result
    while not result.status:
        result = _built(wire, answer.image_id, doing, deadline)
    if result.status in BROKEN:
        said = result.exception or f"see `modal image logs {answer.image_id}`"
        raise InvalidSpec(f"image {image!r} cannot be built: {said}")
    if result.status != api_pb2.GenericResult.GENERIC_STATUS_SUCCESS:
        raise Unavailable(
            f"cannot {doing}: its build ended with status {result.status} {result.exception}"
        )
    return answer.image_id


def _built(wire: Wire, image_id: str, doing: str, deadline: float) -> api_pb2.GenericResult:
    """How the build ended; without a status while it lasts."""
    left = deadline - time.monotonic()
    answers = wire.follow(
        "ImageJoinStreaming",
        api_pb2.ImageJoinStreamingRequest(
            image_id=image_id, timeout=max(0.0, min(LOOKS_FOR, left - 1))
        ),
        api_pb2.ImageJoinStreamingResponse,
        doing=doing,
        deadline=deadline,
    )
    for answer in answers:
        if answer.result.status:
            return answer.result
    time.sleep(max(0.0, min(PAUSE, deadline - time.monotonic())))
    return api_pb2.GenericResult()
