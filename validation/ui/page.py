"""The page itself, in gradio: it is served to this machine alone, tells nobody of itself and loads nothing from elsewhere."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ...editor.common.errors import SaeuronError, first_line
from ...editor.denoisers.sampling_settings import Sampling
from ...editor.edit.gains import BY_HAND
from . import markup
from .firing import ALL
from .settings import Wish
from .studio import Drawn, Studio
from .suggestions import Found, Suggestion

HOST = "127.0.0.1"
_STYLE = Path(__file__).with_name("style.css")
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
"""gradio's themes fetch theirs from Google"""
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; frame-ancestors 'none'"
"""gradio makes its components by scripts in the page, and by eval"""
_A_PAGE = 8
"""prompts shown at once"""
_WAITING = "Draw a picture first."


def free_port(port: int) -> int:
    """The port, or any free one for 0; raises `SaeuronError` where it can't be taken."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left may be taken at once
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise SaeuronError(
                f"--port {port} can't be taken on {HOST}: {first_line(error)}; give another, or 0 for any that is free"
            ) from None
        return int(tried.getsockname()[1])


@contextmanager
def alone() -> Iterator[None]:
    """Inside, no library tells anybody of itself, gradio isn't opened to others by the environment and leaves no file behind.

    Open it before `make_page`.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # gradio asks its own server whether it runs, which a proxy couldn't reach.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    with tempfile.TemporaryDirectory(prefix="saeuron-try-", ignore_cleanup_errors=True) as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch
        yield


class _Guard:
    """Answers this machine's own address alone, and lets the page load from nowhere else.

    A page of somebody else's whose name was made to lead to 127.0.0.1 says that name as the host.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition(":")[0]
        if scope["type"] != "http" or host not in (HOST, "localhost"):
            await send(
                {"type": "http.response.start", "status": 403, "headers": []} if scope["type"] == "http" else {"type": "websocket.close"}
            )
            if scope["type"] == "http":
                await send({"type": "http.response.body", "body": b"this page is for this machine alone"})
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", _POLICY)]}
            await send(message)

        await self._app(scope, receive, guarded)


def make_page(studio: Studio, examples: Sequence[Suggestion], found: Found | None, port: int) -> Any:
    """The page, to be served by `serve`.

    Args:
        studio: draws.
        examples: prompts to click.
        found: what attacks found; None: there is no report of one.
        port: that it will be served on.
    """
    import gradio as gr

    sampling, concepts = studio.record.sampling, studio.edit.header.concepts
    choices = [ALL, *concepts] if len(concepts) > 1 else [*concepts]
    busy = threading.Lock()

    def draw(
        prompt: str, negative: str, seed: Any, steps: Any, guidance: Any, concept: str, progress: Any = gr.Progress()  # noqa: B008 - gradio looks for it there
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        wish = _wish(gr, prompt, negative, seed, steps, guidance)
        said = markup.notes([f"{wish.prompt} (seed {wish.seed}, {wish.steps} steps, guidance {wish.guidance:g})", *studio.warnings(wish)])
        # What is open draws one picture at a time.
        with busy, _as_errors(gr):
            drawn = studio.edited(wish, _progress(progress, "edited model"))
        firing = drawn.firing
        at, last = (0, 2) if firing is None else (firing.peak(concept), max(len(firing.timesteps), 2))
        later = (
            drawn, gr.update(interactive=True), gr.update(value=at + 1, maximum=last, interactive=True), _map(drawn, concept, at + 1), said
        )  # fmt: skip
        yield (_pictures(studio, wish, drawn, None, studio.no_original or "Being drawn …"), *later)
        if not studio.no_original:
            with busy, _as_errors(gr):
                unedited = studio.unedited(wish, _progress(progress, "original model"))
            yield (_pictures(studio, wish, drawn, unedited, ""), *later)

    def take(many: Sequence[Suggestion]) -> Callable[[int], tuple[Any, ...]]:
        def fill(index: int) -> tuple[Any, ...]:
            one = many[index]
            return one.prompt, "", *(gr.skip() if value is None else value for value in (one.seed, one.steps, one.guidance))

        return fill

    with gr.Blocks(title=f"Try {studio.root.resolve().name}", analytics_enabled=False) as page:
        gr.HTML(_head(studio))
        gr.HTML(markup.notice(_notices(studio, port)))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                most = max(100, sampling.steps, *(one.steps or 0 for one in (found.suggestions if found else ())))
                prompt = gr.Textbox(label="Prompt", lines=2, value=examples[0].prompt if examples else "", elem_id="try-prompt")
                negative = gr.Textbox(label="Negative prompt", lines=1, placeholder="what not to draw; may stay empty")
                seed = gr.Number(label="Seed", value=Sampling.seed, precision=0, elem_id="try-seed")
                steps = gr.Slider(1, most, value=sampling.steps, step=1, label="Steps")
                guidance = gr.Slider(0, max(20.0, sampling.guidance), value=sampling.guidance, step=0.1, label="Guidance")
                button = gr.Button("Draw", variant="primary", elem_id="try-draw")
            with gr.Column(scale=3, min_width=300):
                empty = [("Unedited", studio.no_original or _WAITING, "try-unedited"), (_without(studio), _WAITING, "try-edited")]
                pictures = gr.HTML(markup.side_by_side([markup.figure(title, None, why, name) for title, why, name in empty]))
                note = gr.HTML("")
        explained = "At each step of the edited model, over its picture. Only features that the edit changes are shown."
        gr.HTML(markup.section("Where features fired", [studio.no_maps or explained]))
        with gr.Row(visible=not studio.no_maps):
            with gr.Column(scale=2, min_width=300):
                concept = gr.Radio(choices, value=choices[0], label="Features of", interactive=False, elem_id="try-concept")
                step = gr.Slider(1, 2, value=1, step=1, label="Step", interactive=False, elem_id="try-step")
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(_map(None, choices[0], 1))
        state = gr.State(None)
        fields = [prompt, negative, seed, steps, guidance]
        known = "Those that the artifact was proven with." if examples else "The artifact names none."
        _prompts(gr, "Prompts", [known], examples, take, fields)
        told = ["No attack report is here. saeuron attack writes one; --attack FILE shows it."] if found is None else list(found.notes)
        if found is not None and found.suggestions:
            told.append("A click takes prompt, seed, steps and guidance of a picture that was found.")
        _prompts(gr, "Found by attacks", told, found.suggestions if found else [], take, fields)

        outputs = [pictures, state, concept, step, shown, note]
        gr.on([button.click, prompt.submit], draw, [*fields, concept], outputs, api_name="draw", concurrency_limit=1)
        for one in (concept.input, step.input):
            one(_map, [state, concept, step], shown, show_progress="hidden", queue=False, api_visibility="private")
    return page


def serve(page: Any, port: int, open_browser: bool, ready: Callable[[str], None]) -> None:
    """Serve it on `HOST` until it is interrupted, inside `alone`.

    Args:
        page: of `make_page`.
        port: see `free_port`.
        open_browser: open it there.
        ready: told its address, once it answers.

    Raises:
        SaeuronError: the port was taken meanwhile.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    try:
        page.launch(
            server_name=HOST, server_port=port, share=False, inbrowser=open_browser, quiet=True, ssr_mode=False, mcp_server=False, run_history=False,
            enable_monitoring=False, pwa=False, prevent_thread_lock=True, footer_links=[], app_kwargs={"middleware": [Middleware(_Guard)]},
            theme=gr.themes.Base(primary_hue="slate", neutral_hue="slate", **_FONTS), css_paths=[_STYLE],
        )  # fmt: skip
    except OSError as error:
        raise SaeuronError(f"--port {port} can't be taken on {HOST}: {first_line(error)}") from None
    try:
        ready(f"http://{HOST}:{port}/")
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def _head(studio: Studio) -> str:
    name, said = studio.root.resolve().name, f"{_without(studio)}; drawn by {studio.runs_on}"
    return f'<div class="try-head"><h1>{markup.text(name)}</h1><p>{markup.text(said)}</p></div>'


def _notices(studio: Studio, port: int) -> list[str]:
    lines = ["There is no safety checker: whatever the models draw is shown."]
    if studio.record.model.safety_checker:
        lines = [
            "No safety checker looks at these pictures: the checkpoint has one, which isn't used here. Whatever the models draw is shown."
        ]
    return [
        *lines,
        f"This page is served on {HOST}:{port}, to this machine only. It is not shared, sends nothing away and loads nothing from other hosts.",
    ]


def _without(studio: Studio) -> str:
    """What the edited model is."""
    by_hand = all(setting.status == BY_HAND for setting in studio.record.settings)
    return f"{'Steered:' if by_hand else 'Without'} {', '.join(studio.edit.header.concepts)}"


def _pictures(studio: Studio, wish: Wish, drawn: Drawn, unedited: Any, missing: str) -> str:
    before = None if unedited is None else Image.fromarray(unedited)
    said = f"Picture of “{wish.prompt}”, seed {wish.seed}"
    return markup.side_by_side([
        markup.figure("Unedited", before, f"{said}, by the original model" if before else missing, "try-unedited"),
        markup.figure(_without(studio), Image.fromarray(drawn.picture), f"{said}, by the edited model", "try-edited"),
    ])  # fmt: skip


def _map(drawn: Drawn | None, concept: str, step: Any) -> str:
    if drawn is None or drawn.firing is None:
        return markup.side_by_side([markup.figure("", None, _WAITING, "try-map")])
    last = len(drawn.firing.timesteps) - 1
    return markup.heat_map(drawn.picture, drawn.firing, concept, min(max(int(step) - 1, 0), last))


def _prompts(gr: Any, title: str, said: Sequence[str], many: Sequence[Suggestion], take: Any, fields: Sequence[Any]) -> None:
    """A list of prompts to click."""
    gr.HTML(markup.section(title, said))
    if many:
        labels = [one.label for one in many]
        # A textbox's examples would be cut after 60 characters.
        held = gr.Radio(labels, render=False)
        chips = gr.Dataset(
            components=[held], samples=[[label] for label in labels], type="index", samples_per_page=_A_PAGE, show_label=False
        )
        chips.click(take(many), chips, list(fields), show_progress="hidden", api_visibility="private")


def _wish(gr: Any, prompt: str, negative: str, seed: Any, steps: Any, guidance: Any) -> Wish:
    for value, name in ((seed, "seed"), (steps, "steps"), (guidance, "guidance")):
        if value is None:
            raise gr.Error(f"{name} is empty", print_exception=False)
    with _as_errors(gr):
        return Wish(str(prompt), str(negative or "").strip(), int(seed), int(steps), float(guidance))


@contextmanager
def _as_errors(gr: Any) -> Iterator[None]:
    """What a user can mend is one line on the page; of anything else the terminal tells more."""
    try:
        yield
    except SaeuronError as error:
        raise gr.Error(str(error).removeprefix("--"), print_exception=False) from None


def _progress(progress: Any, whose: str) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), desc=whose, unit="steps")
