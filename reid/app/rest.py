"""The REST interface under ``/api``: what the page and the command line do, for other programs.

Every address calls one plain function. A refusal is a status of 4xx with one line, ``{"detail": "..."}``, without a
path of the machine. The description for programs (OpenAPI) is at ``/api/openapi.json``.
"""

from __future__ import annotations

from threading import BoundedSemaphore
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from reid import __version__
from reid.app import gallery_changes as changes
from reid.app.access import USER_KEY, require
from reid.app.accounts import Role, User
from reid.app.change_neighbours import neighbours_json
from reid.app.gallery_export import write_export
from reid.app.gallery_service import GalleryService, SearchWishes
from reid.app.job_kinds import submit_job
from reid.app.job_records import CAMERA, UNDO
from reid.app.network_changes import find_change, network_changes
from reid.app.new_crops import discard_new_crops, keep_new_crop, waiting_cameras
from reid.app.query import SearchOptions
from reid.app.refusals import REASONS, Refused, without_paths
from reid.errors import ReidError
from reid.records import Modality
from reid.structured_text import one_line

SEARCHES = 2  # at a time; others wait
LONGEST = 200  # characters of a text

Text = Annotated[str, Query(max_length=LONGEST)]
Texts = Annotated[list[Annotated[str, Field(max_length=LONGEST)]], Query(max_length=50)]
CropId = Annotated[int, Path(ge=0, le=2**53)]
JobNumber = Annotated[int, Path(ge=1, le=2**31)]
IMAGE_BODY = {
    "requestBody": {
        "description": "A crop of one person or object: the content of a JPEG, PNG, BMP or WebP file.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobWish(_Wish):
    """A job that is asked for."""

    kind: str = Field(max_length=LONGEST)
    parameters: dict[str, str | int | float | bool] = Field(default_factory=dict, max_length=20)


class DecisionWish(_Wish):
    """What somebody says about persons."""

    verb: Literal["same", "different", "confirm", "split", "name", "undo"]
    subjects: list[Annotated[str, Field(max_length=LONGEST)]] = Field(default_factory=list, max_length=500)
    text: str = Field("", max_length=LONGEST)
    instead: bool = False


class CameraWish(_Wish):
    """A camera that is to be added with its crops."""

    camera: str = Field(max_length=LONGEST)
    category: str = Field("person", max_length=LONGEST)
    modality: Modality | None = None
    source: str = Field("", max_length=2000)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the job."""
        return {**self.model_dump(), "modality": str(self.modality or "")}


class EraseWish(_Wish):
    """Which rows are to be erased, and how many the preview showed."""

    identity: str = Field("", max_length=LONGEST)
    person: str = Field("", max_length=LONGEST)
    camera: str = Field("", max_length=LONGEST)
    before: str = Field("", max_length=LONGEST)
    where: str = Field("", max_length=2000)
    crops: list[Annotated[int, Field(ge=0, le=2**53)]] = Field(default_factory=list, max_length=1000)
    rows: int | None = Field(None, ge=0)

    def wish(self) -> changes.ErasureWish:
        """Return the conditions."""
        return changes.ErasureWish(
            self.identity, self.person, self.camera, self.before, self.where, tuple(self.crops)
        )  # fmt: skip


def rest_interface(service: GalleryService) -> FastAPI:
    """Build the REST interface of a gallery.

    Args:
        service: The gallery.

    Returns:
        An ASGI application for requests whose user and whole body are known, as :class:`reid.app.gate.Gate` passes on.
    """
    rest = FastAPI(
        title="reid", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
        description="Search a gallery of crops, extend it, name persons, run jobs, and erase.",
    )  # fmt: skip
    _answer_errors(rest)
    _add_questions(rest, service)
    _add_changes(rest, service)
    _add_cameras(rest, service)
    _add_jobs(rest, service)
    return rest


async def _content(request: Request) -> bytes:
    return await request.body()


def _user(request: Request) -> User:
    user = request.scope.get(USER_KEY)
    if not isinstance(user, User):
        raise Refused(401)
    return user


def _with_role(role: Role) -> Any:
    def user(request: Request) -> User:
        found = _user(request)
        require(found, role)
        return found

    return Depends(user)


Content = Annotated[bytes, Depends(_content)]
Viewer = Annotated[User, _with_role(Role.VIEWER)]
Operator = Annotated[User, _with_role(Role.OPERATOR)]
Admin = Annotated[User, _with_role(Role.ADMIN)]


def _add_questions(rest: FastAPI, service: GalleryService) -> None:
    """Add the addresses that change nothing."""
    free = BoundedSemaphore(SEARCHES)

    @rest.get("/api/health", summary="Say whether the application can answer; needs no login.")
    def health() -> dict[str, Any]:
        return service.health()

    @rest.get("/api/gallery", summary="Say what the gallery holds.")
    def gallery(_: Viewer) -> dict[str, Any]:
        return service.describe()

    @rest.post(
        "/api/search", summary="Rank the gallery by similarity to an image or to a crop.", openapi_extra=IMAGE_BODY
    )
    def search(
        user: Viewer,
        content: Content,
        crop: Annotated[list[Annotated[int, Field(ge=0, le=2**53)]], Query(max_length=20)] = [],  # noqa: B006
        camera: Text = "",
        modality: Modality | None = None,
        category: Text = "",
        k: Annotated[int, Query(ge=1, le=200)] = 10,
        cross_camera: bool = False,
        answers: Modality | None = None,
        in_camera: Texts = [],  # noqa: B006
        not_in_camera: Texts = [],  # noqa: B006
        after: Text = "",
        before: Text = "",
        ranking: Literal["plain", "normalized", "reranked"] = "normalized",
        one_per: Literal["", "person", "identity", "track"] = "",
        known: Literal["", "known", "unknown"] = "",
        purpose: Text = "",
        unknown_camera: Literal["", "nearest", "mixture"] = "",
    ) -> dict[str, Any]:
        options = SearchOptions(
            cross_camera, answers, "", k, tuple(in_camera), tuple(not_in_camera), after, before, ranking, one_per,
            compare=False, known=known,
        )  # fmt: skip
        wishes = SearchWishes(camera, modality, category, options, purpose, unknown_camera)
        with free:
            return service.search(user, wishes, [content] if content else [], crop)

    @rest.get("/api/crops/{crop}/image", summary="Return the picture of a crop as JPEG.", response_class=Response)
    def image(_: Viewer, crop: CropId) -> Response:
        return Response(service.image_of(crop), media_type="image/jpeg", headers={"cache-control": "no-store"})

    @rest.get("/api/gallery/export", summary="Return vectors and rows as a file.", response_class=FileResponse)
    def export(user: Admin, format: Literal["parquet", "npz", "safetensors"] = "parquet") -> FileResponse:
        path = write_export(service, user, format)
        name = f"{service.folder.resolve().name}.{format}"
        gone = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, filename=name, headers={"cache-control": "no-store"}, background=gone)

    @rest.get("/api/cameras", summary="List the cameras.")
    def cameras(_: Viewer) -> list[dict[str, Any]]:
        return service.list_cameras()

    @rest.get("/api/persons", summary="List the persons and their crops.")
    def persons(
        _: Viewer,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> dict[str, Any]:
        return service.list_persons(limit, offset)

    @rest.get("/api/audit", summary="Return the latest lines of the log of searches and changes.")
    def audit(_: Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        return service.audit.entries(limit)


def _add_changes(rest: FastAPI, service: GalleryService) -> None:
    """Add the addresses that change the gallery."""

    @rest.post("/api/crops", summary="Add an image to the gallery.", status_code=201, openapi_extra=IMAGE_BODY)
    def add(
        user: Operator,
        content: Content,
        camera: Text = "",
        modality: Modality | None = None,
        category: Text = "person",
        identity: Text = "",
        time: Text = "",
        track: Text = "",
    ) -> dict[str, Any]:
        labels = changes.CropLabels(camera, modality, category, identity, time, track)
        return changes.add_crop(service, user, content, labels)

    @rest.post("/api/persons", summary="Say that persons or crops are the same, different, right, or have a name.")
    def decide(user: Operator, wish: DecisionWish) -> dict[str, Any]:
        return changes.decide(service, user, wish.verb, wish.subjects, wish.text, wish.instead)

    @rest.post("/api/identify", summary="Group the crops into persons, as a job.", status_code=202)
    def identify(user: Operator, again: Annotated[bool, Body(embed=True)] = False) -> dict[str, Any]:
        return service.jobs.describe(submit_job(service, user, "identify", {"again": again}).number)

    @rest.post("/api/erase/preview", summary="Say what an erasure would remove.")
    def preview(_: Admin, wish: EraseWish) -> dict[str, Any]:
        return changes.preview_erasure(service, wish.wish())

    @rest.post("/api/erase", summary="Erase the rows that the preview showed; rows is their number.")
    def erase(user: Admin, wish: EraseWish) -> dict[str, Any]:
        return changes.erase(service, user, wish.wish(), wish.rows or 0)


def _add_cameras(rest: FastAPI, service: GalleryService) -> None:
    """Add the addresses of new cameras, and of changes of the network."""

    @rest.post("/api/cameras/crops", summary="Keep a crop of a new camera.", status_code=201, openapi_extra=IMAGE_BODY)
    def keep(user: Operator, content: Content, camera: Text, category: Text = "person") -> dict[str, Any]:
        return keep_new_crop(service, user, content, camera, category)

    @rest.get("/api/cameras/crops", summary="List the cameras whose crops wait.")
    def waiting(_: Viewer) -> list[dict[str, Any]]:
        return [one.to_json() for one in waiting_cameras(service)]

    @rest.delete("/api/cameras/crops", summary="Delete the crops of a new camera that wait.")
    def discard(user: Operator, camera: Text, category: Text = "person") -> dict[str, Any]:
        return discard_new_crops(service, user, camera, category)

    @rest.post("/api/cameras", summary="Measure a new camera on its crops and add them, as a job.", status_code=202)
    def add(user: Operator, wish: CameraWish) -> dict[str, Any]:
        return service.jobs.describe(submit_job(service, user, CAMERA, wish.parameters()).number)

    @rest.get("/api/cameras/changes", summary="List the changes of the network, the latest first.")
    def changes_of_network(_: Viewer) -> list[dict[str, Any]]:
        return [one.to_json() for one in network_changes(service)]

    @rest.get("/api/cameras/changes/{number}/neighbours", summary="Compare a camera's neighbours before and after.")
    def neighbours(_: Viewer, number: JobNumber) -> list[dict[str, Any]]:
        return neighbours_json(service, find_change(service, number))

    @rest.post("/api/cameras/undo", summary="Undo the last change of the network, as a job.", status_code=202)
    def undo(user: Operator) -> dict[str, Any]:
        return service.jobs.describe(submit_job(service, user, UNDO, {}).number)


def _add_jobs(rest: FastAPI, service: GalleryService) -> None:
    """Add the addresses of long jobs."""
    queue = service.jobs

    @rest.get("/api/jobs", summary="List the jobs, the latest first.")
    def jobs(_: Viewer, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> list[dict[str, Any]]:
        return [queue.describe(job.number) for job in queue.jobs()[:limit]]

    @rest.post("/api/jobs", summary="Put a job into the queue.", status_code=202)
    def submit(user: Operator, wish: JobWish) -> dict[str, Any]:
        return queue.describe(submit_job(service, user, wish.kind, wish.parameters).number)

    @rest.get("/api/jobs/{number}", summary="Say how far a job is.")
    def job(_: Viewer, number: JobNumber) -> dict[str, Any]:
        return queue.describe(number)

    @rest.post("/api/jobs/{number}/{verb}", summary="Stop a job for good or for now, or go on with it.")
    def change(_: Operator, number: JobNumber, verb: Literal["cancel", "pause", "resume"]) -> dict[str, Any]:
        getattr(queue, verb)(number)
        return queue.describe(number)


def _answer_errors(rest: FastAPI) -> None:
    """Answer every error with its status and one line."""

    @rest.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> JSONResponse:
        return _line(error.status, REASONS[error.status])

    @rest.exception_handler(ReidError)
    def wrong(_: Request, error: ReidError) -> JSONResponse:
        return _line(422, without_paths(str(error)))

    @rest.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _line(422, without_paths(f"{where}: {first['msg']}" if where else str(first["msg"])))

    @rest.exception_handler(HTTPException)
    def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return _line(error.status_code, REASONS.get(error.status_code, "this request cannot be answered"))

    @rest.exception_handler(OSError)
    def unable(_: Request, __: OSError) -> JSONResponse:
        return _line(503, "the machine cannot read or write what this needs, such as a full disk; nothing was answered")

    @rest.exception_handler(Exception)
    def fault(_: Request, __: Exception) -> JSONResponse:
        return _line(500, REASONS[500])


def _line(status: int, text: str) -> JSONResponse:
    return JSONResponse({"detail": one_line(text)}, status)
