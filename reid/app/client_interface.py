"""What ``gradio_client`` can ask of a gallery, where the operator allows it: the functions of the REST interface.

The page itself takes no calls of other programs.  This is a second, small application of gradio under ``/client``,
without files, uploads and state: a picture comes as base64 text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from reid.app.access import USER_KEY, user_of_event
from reid.app.asgi import replay_body
from reid.app.gallery_service import GalleryService, SearchWishes
from reid.app.messages import FILE_KEY
from reid.app.query import SearchOptions
from reid.app.refusals import Refused, without_paths
from reid.app.uploads import UPLOAD_BYTES
from reid.errors import ConfigError, DataError, ReidError, unknown_name
from reid.records import Modality
from reid.structured_text import one_line, parse_json

if TYPE_CHECKING:
    from reid.app.asgi import Application, Receive, Scope, Send

CLIENT = "/client"
CLIENT_BYTES = UPLOAD_BYTES * 4 // 3 + 2**16  # of a message with a picture in base64
MOST_ANSWERS = 200
MESSAGE, RESULTS = f"{CLIENT}/gradio_api/queue/join", f"{CLIENT}/gradio_api/queue/data"
# What gradio_client asks for; every other address of gradio, such as those of files, is unknown here.
ROUTES = {
    f"{CLIENT}/config": "GET", f"{CLIENT}/gradio_api/info": "GET", MESSAGE: "POST",
    RESULTS: "GET",
}  # fmt: skip
FUNCTIONS = (0, 1, 2)  # search, gallery, cameras
_SESSION = re.compile("[A-Za-z0-9-]{1,64}")
_WISHES: dict[str, type] = {"camera": str, "modality": str, "category": str, "purpose": str, "unknown_camera": str}
_OPTIONS: dict[str, type] = {
    "cross_camera": bool, "answers": int, "after": str, "before": str, "ranking": str, "one_per": str, "known": str,
}  # fmt: skip
Found = TypeVar("Found")


def client_interface(service: GalleryService) -> Application:
    """Build the application that ``gradio_client`` talks to.

    Args:
        service: The gallery.

    Returns:
        An ASGI application for requests whose user is known, as :class:`reid.app.gate.Gate` passes on. What nobody
        reads is bounded and dropped as for the page (:mod:`reid.app.sessions`).
    """
    import gradio as gr
    from fastapi import FastAPI

    from reid.app.sessions import Sessions, read_session

    def told(answer: Callable[[], Found]) -> Found:
        try:
            return answer()
        except (ReidError, Refused) as error:
            raise gr.Error(one_line(without_paths(str(error))), print_exception=False) from None

    def search(image: str, crops: list[int], options: dict[str, Any], request: gr.Request) -> dict[str, Any]:
        return told(lambda: search_for_client(service, user_of_event(request), image, crops, options))

    def gallery() -> dict[str, Any]:
        return told(service.describe)

    def cameras() -> list[dict[str, Any]]:
        return told(service.list_cameras)

    with gr.Blocks(analytics_enabled=False) as blocks:
        search.__annotations__["request"] = gr.Request  # gradio looks names up at the module, which does not import it
        for function in (search, gallery, cameras):
            gr.api(function, api_name=function.__name__)
    blocks.queue(max_size=32, default_concurrency_limit=2)
    mounted: Application = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks, path=CLIENT, footer_links=[],
        run_history=False, show_error=True, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        allowed_paths=[],
    )  # fmt: skip
    sessions, started = Sessions(blocks), False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal started
        if not started:  # the queue belongs to the loop of the server
            started = True
            blocks.run_startup_events()
            await blocks.run_extra_startup_events()
        await sessions.drop_idle()
        visitor = _visitor_of(scope)
        if scope["path"] == MESSAGE:
            body = (await receive())["body"]
            session = str(parse_json(body.decode("utf-8"))["session_hash"])
            await sessions.enter(session, visitor)
            await sessions.make_room_for_result(session)
            receive = replay_body(body, receive)
        if scope["path"] == RESULTS:
            await sessions.read_results(read_session(scope), visitor, lambda: mounted(scope, receive, send))
        else:
            await mounted(scope, receive, send)

    return answer


def _visitor_of(scope: Scope) -> str:
    """Return whose session it is: a user's, from one address."""
    user, client = scope.get(USER_KEY), scope.get("client")
    return f"{getattr(user, 'name', '')} {client[0] if client else ''}"


def search_for_client(
    service: GalleryService, user: Any, image: str, crops: list[int], options: dict[str, Any]
) -> dict[str, Any]:
    """Search with a picture or with crops, as ``POST /api/search`` does.

    Args:
        service: The gallery.
        user: Who searches.
        image: The content of an image file in base64; "" for none.
        crops: Ids of crops of the gallery.
        options: The options of the address by their names; ``answers`` is their number, as ``k`` is there.

    Raises:
        ConfigError: An option is unknown, or of another type.
        DataError: The image cannot be read, or no row may answer.
    """
    known = [*_WISHES, *_OPTIONS, "in_camera", "not_in_camera", "answers_modality"]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(unknown_name("option", name, known))
        wanted = {**_OPTIONS, **_WISHES, "answers_modality": str}.get(name, list)
        if type(value) is not wanted or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            raise ConfigError(f"{name}: expected a value of type {wanted.__name__}")
    answers = options.get("answers", 10)
    if not 1 <= answers <= MOST_ANSWERS:
        raise ConfigError(f"answers: expected 1 to {MOST_ANSWERS}")
    if options.get("unknown_camera", "") not in ("", "nearest", "mixture"):
        raise ConfigError(unknown_name("unknown_camera", options["unknown_camera"], ["nearest", "mixture"]))
    if not all(type(crop) is int and 0 <= crop <= 2**53 for crop in crops):
        raise ConfigError("crops: expected the ids of crops")
    chosen = {name: options[name] for name in _OPTIONS if name in options}
    search = SearchOptions(
        **{"cross_camera": False, "ranking": "normalized", **chosen}, modality=_modality(options, "answers_modality"),
        cameras=tuple(options.get("in_camera", ())), without_cameras=tuple(options.get("not_in_camera", ())),
        compare=False,
    )  # fmt: skip
    wishes = {name: options[name] for name in _WISHES if name in options and name != "modality"}
    asked = SearchWishes(**wishes, modality=_modality(options, "modality"), options=search)
    return service.search(user, asked, [_content(image)] if image else [], crops)


def _modality(options: dict[str, Any], name: str) -> Modality | None:
    text = options.get(name, "")
    if text and text not in [str(one) for one in Modality]:
        raise ConfigError(unknown_name(name, text, [str(one) for one in Modality]))
    return Modality(text) if text else None


def _content(image: str) -> bytes:
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("image: expected the content of an image file in base64") from None


def _names_a_file(value: object) -> bool:
    """Whether a part of a message is what gradio takes for a file."""
    if isinstance(value, dict):
        return FILE_KEY in value or any(map(_names_a_file, value.values()))
    return isinstance(value, list) and any(map(_names_a_file, value))


def check_message(content: bytes) -> None:
    """Refuse (400) what ``gradio_client`` does not send.

    Example:
        >>> check_message(b'{"data": [], "fn_index": 0, "session_hash": "x1"}')
    """
    try:
        message = parse_json(content.decode("utf-8"))
        session, index = message["session_hash"], message["fn_index"]
        is_right = isinstance(message["data"], list) and index in FUNCTIONS and not isinstance(index, bool)
        if is_right and _SESSION.fullmatch(session) and not _names_a_file(message):
            return
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise Refused(400)
