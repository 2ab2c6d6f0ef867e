"""The page: images and class, training, drawing, download; gradio's components and what they call."""

from pathlib import Path

import gradio as gr

from utils.app import views
from utils.app.downloads import LAYOUTS
from utils.app.form import LABELS, TOKEN, Form, default_steps
from utils.app.handlers import Handlers
from utils.app.trainer import Trainer
from utils.bases.registry import BASES
from utils.config.methods import METHODS

FOLDER = Path(__file__).parent
TITLE = "ClassDiffusion"
LEAD = (
    "<h1>ClassDiffusion</h1><p>Teach an image model one thing of yours from 3 to 6 images; then draw it "
    "wherever you like.</p>"
)
BASE, METHOD = "toon", "classdiffusion"
SECONDS = 2.0  # between two looks at the training
SYSTEM_FONTS = ("system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")


def theme() -> gr.themes.Base:
    """Plain, and in the system's own fonts: the page asks no other machine for anything."""
    mono = ("ui-monospace", "Consolas", "monospace")
    return gr.themes.Base(primary_hue="blue", neutral_hue="neutral", font=SYSTEM_FONTS, font_mono=mono)


def build(trainer: Trainer, downloads: Path) -> gr.Blocks:
    """The page. downloads: a folder for files to take away, which goes with the program."""
    handlers = Handlers(trainer, downloads)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(LEAD, elem_id="lead")
        with gr.Row(elem_classes="columns"):
            with gr.Column(min_width=320):
                form = _form()
            with gr.Column(min_width=320):
                view = _training()
        with gr.Row(elem_classes="columns"):
            with gr.Column(min_width=320):
                draw = _draw()
            with gr.Column(min_width=320):
                draw["grid"] = gr.HTML(views.empty(views.NO_IMAGES), elem_id="grid")
        with gr.Row(elem_classes="columns"), gr.Column(min_width=320):
            take = _downloads()
        _connect(page, handlers, form, view, draw, take)
    return page


def _form() -> dict[str, gr.components.Component]:
    gr.HTML("<h2>1 &ensp;Images and class</h2>")
    return {
        "uploads": gr.File(
            file_count="multiple", label="Images", height=140, elem_id="uploads", show_label=False
        ),
        "thumbnails": gr.HTML(),
        "example": gr.Button("Use the example: five images of a dog", size="sm", elem_id="example"),
        "cls": gr.Textbox(
            label=LABELS["--cls_token"],
            placeholder="dog",
            info="What the images show, in a word or two.",
            max_lines=1,
            elem_id="class",
        ),
        **_settings(),
        "plan": gr.HTML(elem_id="plan"),
        "train": gr.Button("Train", variant="primary", elem_id="train"),
        "message": gr.HTML(elem_id="train-message"),
    }


def _settings() -> dict[str, gr.components.Component]:
    with gr.Row():
        method = gr.Dropdown(
            [(each.title, name) for name, each in METHODS.items()],
            value=METHOD,
            label=LABELS["--method"],
            min_width=220,
            elem_id="method",
        )
        base = gr.Dropdown(
            list(BASES),
            value=BASE,
            allow_custom_value=True,
            label="Base model",
            info="Or the path of a pipeline folder, or of a .safetensors file.",
            min_width=220,
            elem_id="base",
        )
    with gr.Row():
        steps = gr.Number(
            default_steps(BASE, METHOD),
            label=LABELS["--max_train_steps"],
            precision=0,
            min_width=140,
            elem_id="steps",
        )
        seed = gr.Number(0, label=LABELS["--seed"], precision=0, min_width=140, elem_id="seed")
    with gr.Accordion("More", open=False):
        token = gr.Textbox(
            TOKEN,
            label=LABELS["--modifier_token"],
            info="The new word that stands for your subject in prompts.",
            max_lines=1,
            elem_id="token",
        )
        prompt = gr.Textbox(
            label="Prompt of the samples",
            placeholder="a <new1> dog on the beach",
            info="Drawn four times while it trains.",
            max_lines=1,
            elem_id="sample-prompt",
        )
    return {"method": method, "base": base, "steps": steps, "seed": seed, "token": token, "prompt": prompt}


def _training() -> dict[str, gr.components.Component]:
    gr.HTML("<h2>2 &ensp;Training</h2>")
    concept = gr.Dropdown([], label="Concept", visible=False, filterable=False, elem_id="concept")
    view = gr.HTML(elem_id="training")
    with gr.Row():
        stop = gr.Button("Stop and save", visible=False, min_width=120, elem_id="stop")
        resume = gr.Button("Resume", visible=False, min_width=120, elem_id="resume")
    return {
        "concept": concept,
        "view": view,
        "stop": stop,
        "resume": resume,
        "message": gr.HTML(elem_id="job-message"),
    }


def _draw() -> dict[str, gr.components.Component]:
    gr.HTML("<h2>3 &ensp;Draw</h2>")
    prompts = gr.Textbox(
        label="Prompts",
        info="One a line, with the token and the class.",
        placeholder="a <new1> dog in the snow",
        lines=4,
        elem_id="prompts",
    )
    with gr.Row():
        count = gr.Slider(1, 8, 2, step=1, label="Images of each", min_width=140, elem_id="count")
        seed = gr.Number(0, label=LABELS["--seed"], precision=0, min_width=140, elem_id="draw-seed")
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", min_width=120, interactive=False, elem_id="draw")
        end = gr.Button("Stop", min_width=120, visible=False, elem_id="end-drawing")
    return {
        "prompts": prompts,
        "count": count,
        "seed": seed,
        "draw": draw,
        "end": end,
        "message": gr.HTML(elem_id="draw-message"),
    }


def _downloads() -> dict[str, gr.components.Component]:
    gr.HTML("<h2>4 &ensp;Download</h2>")
    return {
        "why": gr.HTML(elem_id="why"),
        **{
            layout: gr.Button(label, visible=False, elem_id=f"take-{layout}")
            for layout, label in LAYOUTS.items()
        },
        "message": gr.HTML(elem_id="take-message"),
        "file": gr.File(label="Ready", interactive=False, visible=False, elem_id="file"),
    }


def _connect(page: gr.Blocks, handlers: Handlers, form: dict, view: dict, draw: dict, take: dict) -> None:
    """Which event calls what, and where the answer goes."""
    quiet = {"show_progress": "hidden"}
    fields = [form[name] for name in Form.__dataclass_fields__]
    choice = [form[name] for name in ("cls", "base", "method", "steps", "token")]
    for name in ("uploads", "base"):
        form[name].change(handlers.look, [form["uploads"], form["base"]], form["thumbnails"], **quiet)
    form["example"].click(handlers.example, None, [form["uploads"], form["cls"]], **quiet)
    for name in ("method", "base"):
        form[name].change(handlers.steps, [form["base"], form["method"]], form["steps"], **quiet)
    for field in choice:
        field.change(handlers.plan, choice, form["plan"], trigger_mode="always_last", **quiet)

    seen = gr.State("")  # what the session's browser shows, so that nothing is sent twice
    shown = [view["concept"], view["view"], view["stop"], view["resume"], draw["draw"], take["why"]]
    shown += [take[layout] for layout in LAYOUTS] + [seen]
    look = {"fn": handlers.refresh, "inputs": [view["concept"], seen], "outputs": shown, **quiet}
    started = form["train"].click(
        handlers.train, [form["uploads"], *fields], [view["concept"], form["message"]], **quiet
    )
    started.then(**look)
    view["stop"].click(handlers.stop, None, view["message"], **quiet).then(**look)
    view["resume"].click(handlers.resume, view["concept"], view["message"], **quiet).then(**look)
    view["concept"].change(**look)
    view["concept"].change(handlers.prompts, view["concept"], draw["prompts"], **quiet)
    page.load(handlers.plan, choice, form["plan"], **quiet)
    page.load(**look)
    gr.Timer(SECONDS).tick(**look)

    wanted = [view["concept"], draw["prompts"], draw["count"], draw["seed"]]
    drawing = draw["draw"].click(
        handlers.draw, wanted, [draw["grid"], draw["message"], draw["end"]], concurrency_limit=1, **quiet
    )
    draw["end"].click(lambda: gr.update(visible=False), None, draw["end"], cancels=[drawing], **quiet)
    for layout in LAYOUTS:
        take[layout].click(handlers.take(layout), view["concept"], [take["file"], take["message"]], **quiet)
