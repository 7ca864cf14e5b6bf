"""The demo: ``python demo/app.py [--port 7860]`` makes what is missing, then serves a page to this machine.

Progress and complaints go to stderr; the address goes to stdout once it can be opened.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

# Heavy imports stay inside functions: processes that draw the street import this file again.
if TYPE_CHECKING:
    import gradio as gr

    from reid.app.server import Application
    from reid.app.world import World

STYLE = Path(__file__).parent / "pages" / "style.css"
UPLOAD_LIMIT = "10mb"
OPEN_WARNING = (
    "warning: --host {host}: everyone who can reach this machine can see the pictures of people and search them;"
    " there is no password"
)
STALE = 3600  # seconds after which what is left of an upload is removed


def build(world: World) -> gr.Blocks:
    """The page over a world that :func:`prepare` made."""
    import gradio as gr  # here: it costs seconds, and the folder for uploads must be named before

    from reid.app.pages.camera_page import cameras_page
    from reid.app.pages.score_page import ScoresPage
    from reid.app.pages.search_page import SearchPage

    blocks: gr.Blocks
    with gr.Blocks(title="reid", analytics_enabled=False, fill_width=True, delete_cache=(STALE, STALE)) as blocks:
        gr.HTML(_heading(world), apply_default_css=False)
        with gr.Tab("Search", id="search"):
            SearchPage(world)
        with gr.Tab("Scores", id="scores"):
            ScoresPage(world)
        with gr.Tab("Cameras", id="cameras"):
            cameras_page(world)
    blocks.queue(max_size=32, default_concurrency_limit=2)
    return blocks


def application(blocks: gr.Blocks) -> Application:
    """The page as a web application: no documentation, no history, no file but uploads of 10 MB at most."""
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
    """Quiet and dense; fonts of the visitor's own system, so that none is fetched."""
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


def _heading(world: World) -> str:
    gallery = world.norms[0].gallery
    identities = len({(sample.category, sample.identity) for sample in gallery.samples})
    cameras = len({(world.site_of[sample.path], sample.camera) for sample in gallery.samples})
    return (
        '<header class="reid-heading"><h1>reid</h1><p>Who is this, in another camera, another light?'
        f" Ranked by likeness among <b>{len(gallery):,}</b> crops of <b>{identities:,}</b> identities"
        f" in <b>{cameras}</b> cameras.</p></header>"
    )


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="demo/app.py", description="Serve the demo to this machine.")
    parser.add_argument("--port", type=int, default=7860, help="0 takes any free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder whose subfolders hold manifest.csv; without any the street is made there (default: data/street)",
    )
    parser.add_argument("--galleries", type=Path, help="folder for what is computed (default: galleries)")
    parser.add_argument("--weights", type=Path, help="weights to show (default: the shipped ones)")
    parser.add_argument("--plain", type=Path, help="plain-BN weights to compare with (default: the shipped pair)")
    parser.add_argument("--identities", type=int, help="test people at each site of a street to be made")
    return parser.parse_args(given)


def _stop(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(given: list[str] | None = None) -> int:
    """Prepare and serve until interrupted; the exit code."""
    chosen = arguments(given)
    from reid.app.server import is_loopback, listen, private_folder, serve
    from reid.app.world import prepare
    from reid.errors import ReidError
    from reid.pipeline import DEFAULT_DATA, DEFAULT_GALLERY

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    try:
        with private_folder() as uploads, listen(chosen.host, chosen.port) as listener:
            if not is_loopback(chosen.host):
                typer.echo(OPEN_WARNING.format(host=chosen.host), err=True)
            data, galleries = chosen.data or DEFAULT_DATA, chosen.galleries or DEFAULT_GALLERY.parent
            world = prepare(data, galleries, chosen.weights, chosen.plain, chosen.identities)
            serve(application(build(world)), listener, uploads)
    except ReidError as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    except KeyboardInterrupt:
        typer.echo("interrupted; the next start continues", err=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
