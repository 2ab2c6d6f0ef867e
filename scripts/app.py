"""A page to train, draw and take away a concept, in the browser: http://127.0.0.1:7860.

    bash scripts/app.sh

Drop images, write their class, train; write prompts, draw; take the concept away. One training at a time, in
a process of its own: it goes on when the page is closed, and saves when this command ends (Resume goes on).

The page has no password. It listens to this machine alone; with --host 0.0.0.0 everybody who reaches the
machine can train, draw and download, and see the images. Pages of other sites cannot: requests to other names
than this machine's, and from other origins, are refused.
"""

import os
import socket
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.common.errors import UserError, exit_on_user_error
from utils.common.flags import check_fields, option, parse

LARGEST_UPLOAD = "100mb"  # a file


@dataclass(frozen=True)
class AppConfig:
    folder: Path = option(Path("ckpt/app"), "where trainings are kept, a folder each")
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0: every machine of the network gets in")
    port: int = option(7860, "port to listen at", minimum=1, below=65536)

    def __post_init__(self) -> None:
        check_fields(self)


def main(argv: list[str] | None = None) -> None:
    config = parse(AppConfig, argv, __doc__)
    from utils.common.files import check_writable_folder
    from utils.training.lock import RunLock

    if find_spec("gradio") is None:
        raise UserError("gradio is not installed: start the page by bash scripts/app.sh, which installs it")
    check_writable_folder(config.folder, "folder")
    check_address(config.host, config.port)
    with RunLock(config.folder):
        serve(config)


def check_address(host: str, port: int) -> None:
    """Raises UserError for an address that is not this machine's, and for a port that is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error.strerror}): give another --host or --port"
        ) from None


def serve(config: AppConfig) -> None:
    """Until Ctrl-C, SIGTERM or their like; then a training saves and ends."""
    with TemporaryDirectory(prefix="classdiffusion-app-") as name:
        os.environ["GRADIO_TEMP_DIR"] = name  # uploads and downloads, which go with this command
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from starlette.middleware import Middleware

        from utils.app.handlers import EXAMPLE
        from utils.app.own_address import OwnAddressOnly
        from utils.app.page import FOLDER, build, theme
        from utils.app.trainer import Trainer
        from utils.training.interrupt import catch

        ended = threading.Event()
        catch(lambda *_: ended.set())
        trainer = Trainer(config.folder)
        page = build(trainer, Path(name))
        page.launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(EXAMPLE)],
            max_file_size=LARGEST_UPLOAD,
            footer_links=[],
            theme=theme(),
            css_paths=[FOLDER / "page.css"],
            app_kwargs={"middleware": [Middleware(OwnAddressOnly, host=config.host)]},
        )
        print(f"the page is at http://{config.host}:{config.port}; Ctrl-C ends it", flush=True)
        if config.host not in ("127.0.0.1", "localhost", "::1"):
            print("without a password: who reaches this address can train, draw and download", flush=True)
        ended.wait()
        if (job := trainer.running()) is not None:
            print(f"{job.name} saves and stops; Resume goes on when the page is back", flush=True)
        trainer.close()
        page.close(verbose=False)


if __name__ == "__main__":
    exit_on_user_error(main)
