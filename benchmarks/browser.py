"""Le Chromium de la machine et un serveur local, pour les mesures comme pour les tests."""

import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

VARIABLE = "LRQ_CHROMIUM"
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
USUAL = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)
# Le bac à sable de Chromium ne tourne pas sous root, et seules nos propres pages s'ouvrent ici.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
ABSENT = "aucun Chromium trouvé"
ADVICE = (
    "Debian ou Ubuntu : sudo apt install chromium. macOS ou Windows : installez Chromium ou Chrome.\n"
    f"S'il est déjà installé ailleurs, donnez son chemin : {VARIABLE}=/chemin/du/chromium"
)


def find() -> str | None:
    """Le chemin du Chromium (ou Chrome) installé, jamais une copie téléchargée ; None s'il n'y en a pas."""
    named = os.environ.get(VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise FileNotFoundError(f"{VARIABLE}={named} : ce programme n'existe pas ou ne s'exécute pas")
        return path
    local = os.environ.get("LOCALAPPDATA")
    usual = [*USUAL, *([local + r"\Google\Chrome\Application\chrome.exe"] if local else [])]
    candidates = [*map(shutil.which, COMMANDS), *(path for path in usual if Path(path).is_file())]
    return next((path for path in candidates if path), None)


@contextmanager
def launched(executable: str) -> Iterator:
    """Un navigateur ouvert, refermé à la sortie."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """Sert des fichiers sans rien écrire au terminal."""

    def log_message(self, *_: object) -> None:
        pass


class Compressed(Quiet):
    """Sert comme le ferait un hébergeur de pages : textes compressés, cache de dix minutes, connexions gardées."""

    protocol_version = "HTTP/1.1"
    texts = ("text/", "application/javascript", "application/json", "image/svg")

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        kind, body = self.guess_type(path), path.read_bytes()
        is_text = kind.startswith(self.texts)
        if is_text:
            body = gzip.compress(body, 6)
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if is_text else kind)
        if is_text:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Cache-Control", "max-age=600")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] = Quiet) -> Iterator[str]:
    """L'adresse locale où `folder` est servi, le temps du bloc."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
