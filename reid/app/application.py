"""The command that serves the application: prepare data and galleries that are missing, then serve the page.

Progress and errors go to stderr. The address of the page goes to stdout as soon as a browser can open it.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

# Heavy imports stay inside functions, because the processes that draw the street import this file again.
if TYPE_CHECKING:
    import gradio as gr

    from reid.app.asgi import Application
    from reid.app.first_view import FirstValues
    from reid.app.gallery_service import GalleryService
    from reid.app.guard import PageGuard
    from reid.app.served_data import ServedData
    from reid.app.uploads import UploadStore

STYLE = Path(__file__).parent / "pages" / "style.css"
UPLOAD_LIMIT = "10mb"
KEPT_RUN_TIMES = 100  # of past events; gradio tabulates them at every event


def build_page(service: GalleryService, uploads: UploadStore) -> tuple[gr.Blocks, list[FirstValues]]:
    """Build the page.

    Args:
        service: The gallery that the page shows.
        uploads: Where the page finds what visitors upload.

    Returns:
        The page, not yet served; and the components whose first values depend on the galleries.
    """
    # Importing gradio takes seconds, and it reads the folder for uploads from the environment.
    import gradio as gr

    from reid.app.page_hub import PageHub
    from reid.app.pages import all_pages

    blocks: gr.Blocks
    with gr.Blocks(title="reid", analytics_enabled=False, fill_width=True) as blocks:
        hub = PageHub(service.data, all_pages(service, uploads))
    blocks.queue(max_size=32, default_concurrency_limit=2)
    blocks._queue.ANALYTICS_MAX_EVENTS = KEPT_RUN_TIMES
    return blocks, [hub.first_values]


def guarded_application(service: GalleryService, local: bool = True) -> PageGuard:
    """Build the page as a web application behind its guard.

    Args:
        service: The gallery that the page shows.
        local: Whether it is served on a loopback address.
    """
    from reid.app.first_view import FirstView
    from reid.app.guard import PageGuard
    from reid.app.messages import MessageRules
    from reid.app.sessions import Sessions
    from reid.app.uploads import UploadStore

    uploads = UploadStore()
    blocks, values = build_page(service, uploads)
    page = FirstView(web_application(blocks), blocks, service.data, values)
    return PageGuard(page, MessageRules(blocks), Sessions(blocks), uploads, local)


def web_application(blocks: gr.Blocks) -> Application:
    """Turn the page into a web application without API documentation, history and monitoring.

    ``UPLOAD_LIMIT`` is for the browser, which then refuses a larger file before it sends it.
    """
    import gradio as gr
    from fastapi import FastAPI

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mounted: Application = gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=UPLOAD_LIMIT,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        allowed_paths=[],
        theme=_theme(),
        css=STYLE.read_text(encoding="utf-8"),
    )
    return mounted


def _theme() -> gr.themes.Base:
    """Return a plain, dense theme; it uses the fonts of the visitor's system, so that none is fetched."""
    import gradio as gr

    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        spacing_size="sm",
        text_size="sm",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="#f8fafc",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_shadow="none",
        block_title_text_weight="600",
        block_title_text_size="12px",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_padding="2px 0px",
        form_gap_width="0px",
        input_background_fill="*background_fill_primary",
        input_border_width="1px",
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        arguments: The words after the program's name; None reads them from ``sys.argv``.

    Returns:
        The options by name.

    Example:
        >>> parse_arguments(["--port", "0"]).port
        0
    """
    parser = argparse.ArgumentParser(description="Serve the application to this machine.")
    parser.add_argument("--port", type=int, default=7860, help="port; 0 takes any free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine only)"
    )
    parser.add_argument("--gallery", type=Path, help="folder of a gallery to show as it is")
    parser.add_argument(
        "--data",
        type=Path,
        help="manifest, or folder that holds one or whose subfolders do; the synthetic street is made in a folder"
        " without any files (default: data/street)",
    )
    parser.add_argument("--galleries", type=Path, help="folder for the computed galleries (default: galleries)")
    parser.add_argument("--weights", type=Path, help="weights to show (default: the shipped ones)")
    parser.add_argument("--backbone", help="name of the network of the weights, where they do not say it")
    parser.add_argument("--profiles", type=Path, action="append", help="camera profiles of these weights")
    parser.add_argument("--plain", type=Path, help="plain-BN weights to compare with (default: the shipped pair)")
    parser.add_argument("--identities", type=int, help="test people at each site of a new synthetic street")
    from reid.app.serving_options import add_safety_arguments

    add_safety_arguments(parser)
    return parser.parse_args(arguments)


def open_data_of(options: argparse.Namespace) -> ServedData:
    """Open the gallery that the options name, or prepare the data that they name.

    Raises:
        ConfigError: Options are given that do not go together.
        ReidError: The gallery, the data or the weights cannot be read.
    """
    from reid.errors import ConfigError

    profiles = options.profiles or ()
    if options.gallery is not None:
        names = {"--data": options.data, "--galleries": options.galleries, "--plain": options.plain}
        beside = [name for name, value in {**names, "--identities": options.identities}.items() if value is not None]
        if beside:
            raise ConfigError(f"--gallery: shows a gallery as it is, so {beside[0]} has no meaning beside it")
        from reid.app.opened_gallery import open_served_gallery

        return open_served_gallery(options.gallery, options.weights, options.backbone, profiles)
    from reid.app.data_preparation import prepare_data
    from reid.pipeline import DEFAULT_DATA, DEFAULT_GALLERY

    data, galleries = options.data or DEFAULT_DATA, options.galleries or DEFAULT_GALLERY.parent
    return prepare_data(data, galleries, options.weights, options.plain, options.identities, profiles, options.backbone)


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data and serve the page until the program is interrupted.

    Args:
        arguments: The command line, as for :func:`parse_arguments`.

    Returns:
        The exit code: 0 after serving, 1 after an error (one line on stderr), 130 after an interruption before that.
    """
    options = parse_arguments(arguments)
    from reid.app.server import listen, private_folder, serve
    from reid.app.serving_options import address_for_others, check_safety, tls_of, warn_without_tls
    from reid.errors import ReidError

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
    try:
        check_safety(options)
        with private_folder(), listen(options.host, options.port) as listener:
            warn_without_tls(options)
            data = open_data_of(options)
            from reid.app.serving import gated_application

            with gated_application(options, data, guarded_application) as gate:
                port, tls = listener.getsockname()[1], tls_of(options)
                scheme = "http" if tls is None else "https"
                serve(gate, listener, address_for_others(options.host, port, scheme, options.allow_host or ()), tls)
    except ReidError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        typer.echo("interrupted; the next start continues where this one stopped", err=True)
        return 130
    return 0
