"""Les figures interactives dans un vrai JupyterLab : Python et le lecteur règlent le même rang."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from urllib.request import urlopen

import nbformat
import pytest
from playwright.sync_api import expect

CELLS = [
    "import torch\n"
    "from lrq.widgets import PhotoExplorer, SpectrumExplorer\n"
    'explorer = SpectrumExplorer({"gauss": torch.randn(24, 16)})\n'
    "explorer",
    "photo = PhotoExplorer(torch.rand(24, 16))\nphoto",
    'print("rang lu :", explorer.rank)',
    'explorer.rank = 5\nprint("rang écrit")',
    "explorer.rank = 999",
    'print("rang gardé :", explorer.rank)',
    'from lrq.widgets import SelfTest\ntest = SelfTest("11.1", seed=1)\ntest',
    'test.seed = 2\nprint("graine changée")',
]
SHOW, SHOW_PHOTO, READ, WRITE, FORBIDDEN, READ_AGAIN, ASK, RENEW = range(len(CELLS))
NEWS = {"fetchNews": "false", "checkForUpdates": False}  # ni question à l'ouverture, ni requête au-dehors
# Sans la phrase lue à voix haute, qui suit avec un temps de retard.
SHOWN = """root => JSON.stringify([
  root.dataset.rank,
  root.querySelector('[data-readout="verdict"]').textContent,
  [...root.querySelectorAll('svg')].map(drawing => drawing.outerHTML),
])"""


@contextlib.contextmanager
def jupyterlab(folder):
    """L'adresse d'un JupyterLab ouvert sur `folder`, jeton compris, sans rien des réglages de la machine."""
    private = folder / ".jupyter"
    news = private / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text(json.dumps(NEWS), encoding="utf-8")
    places = {
        **{f"JUPYTER_{name}_DIR": str(private / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        **{f"JUPYTERLAB_{name}_DIR": str(private / name.lower()) for name in ("SETTINGS", "WORKSPACES")},
        "IPYTHONDIR": str(private / "ipython"),
    }
    options = ["--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"]
    options += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]  # 0 : un port libre
    options += ["--LabApp.expose_app_in_browser=True"]  # pour savoir quand l'application est prête
    with (folder / "jupyterlab.log").open("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folder,
            env=os.environ | places,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield address(server, private / "runtime" / f"jpserver-{server.pid}.json", folder / "jupyterlab.log")
        finally:
            server.terminate()  # il arrête ses noyaux
            server.wait(30)


def address(server, announced, log):
    """L'adresse d'une page et son jeton, dès que le serveur répond."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and server.poll() is None:
        try:
            record = json.loads(announced.read_text(encoding="utf-8"))
            urlopen(f"{record['url']}api/status?token={record['token']}", timeout=5).close()
        except (OSError, ValueError):  # pas encore écrit, écrit à moitié, pas encore à l'écoute
            time.sleep(0.1)
        else:
            return f"{record['url']}lab/tree/{{}}?token={record['token']}"
    raise AssertionError(f"JupyterLab ne répond pas :\n{log.read_text(encoding='utf-8')[-3000:]}")


@pytest.fixture
def notebook(browser, tmp_path):
    """Le carnet d'essai, ouvert dans JupyterLab."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "essai.ipynb")
    with jupyterlab(tmp_path) as url:
        context = browser.new_context(viewport={"width": 1280, "height": 1600})
        page = context.new_page()
        page.add_locator_handler(page.locator("dialog.jp-Dialog"), close)
        page.goto(url.format("essai.ipynb"))
        page.wait_for_function("window.jupyterapp?.restored.then(() => true)", timeout=40_000)
        expect(page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')).to_be_visible(timeout=40_000)
        yield page
        context.close()


def close(dialog):
    """Referme ce que JupyterLab demande quand la machine est chargée (noyau lent, connexion coupée), et le garde."""
    print("JupyterLab a demandé :", dialog.inner_text())
    dialog.locator(".jp-mod-accept").click()


def cell(page, index):
    return page.locator(".jp-Notebook .jp-Cell").nth(index)


def active(page):
    """Le numéro de la cellule sélectionnée."""
    return page.locator(".jp-Notebook .jp-Cell").evaluate_all(
        "cells => cells.findIndex(cell => cell.classList.contains('jp-mod-active'))"
    )


def run(page, index, expected=None):
    """Exécute une cellule, comme le lecteur ; recommence jusqu'à ce qu'elle écrive ce qu'on attend.

    L'application qui s'ouvre reprend parfois le clavier à la cellule cliquée. Et une figure n'envoie un réglage qu'une
    fois reçu l'accusé du précédent : une cellule exécutée aussitôt peut encore lire celui d'avant.
    """
    prompt, output = cell(page, index).locator(".jp-InputPrompt"), cell(page, index).locator(".jp-OutputArea-output")
    for left in reversed(range(5)):
        cell(page, index).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        with contextlib.suppress(AssertionError) if left else contextlib.nullcontext():
            expect(prompt).not_to_have_text("[ ]:", timeout=3000)
            if expected:
                expect(output).to_contain_text(expected, timeout=5000)
            return


def test_reader_and_python_move_the_same_rank(notebook):
    page = notebook
    run(page, SHOW)
    spectrum = page.locator('.lrq-explorer[data-explorer="spectrum"][data-ready]')
    expect(spectrum).to_be_visible(timeout=30_000)
    run(page, SHOW_PHOTO)
    expect(page.locator('.lrq-explorer[data-explorer="photo"][data-ready]')).to_be_visible(timeout=20_000)

    # Le lecteur règle, Python lit. JupyterLab a ses raccourcis sur les flèches : il les laisse à la figure.
    slider, cut = spectrum.locator('[data-control="rank"]'), spectrum.locator('[data-control="cut"]')
    for handle in (slider, cut):
        handle.focus()
        selected = active(page)
        for key, expected in [("Home", 1), ("ArrowRight", 2), ("ArrowUp", 3), ("ArrowDown", 2), ("PageUp", 12)]:
            page.keyboard.press(key)
            expect(spectrum).to_have_attribute("data-rank", str(expected))
            expect(handle).to_be_focused()
        assert active(page) == selected
    page.keyboard.press("ArrowLeft")
    expect(spectrum).to_have_attribute("data-rank", "11")
    run(page, READ, "rang lu : 11")

    # Entrée, un autre de ses raccourcis, reste aux boutons.
    jump, fold = spectrum.locator('[data-control="jump"]').last, spectrum.locator("summary")
    jump.focus()
    page.keyboard.press("Enter")
    expect(spectrum).to_have_attribute("data-rank", jump.get_attribute("data-rank"))
    fold.focus()
    page.keyboard.press("Enter")
    expect(spectrum.locator('[data-control="code"]')).to_have_attribute("open", "")
    slider.focus()
    page.keyboard.press("Home")
    expect(spectrum).to_have_attribute("data-rank", "1")
    run(page, READ, re.compile(r"rang lu : 1$", re.MULTILINE))

    # Python règle, le lecteur voit.
    run(page, WRITE, "rang écrit")
    expect(slider).to_have_value("5")
    expect(spectrum).to_have_attribute("data-rank", "5")

    # Un rang impossible est refusé, en français, et rien ne bouge.
    before = spectrum.evaluate(SHOWN)
    run(page, FORBIDDEN, re.compile(r"TraitError: .*\b999\b.*\b(attendu|entre|au plus|doit)\b", re.DOTALL))
    run(page, READ_AGAIN, "rang gardé : 5")
    assert spectrum.evaluate(SHOWN) == before

    # Un autotest : les chiffres que JupyterLab prend pour des raccourcis s'écrivent, et Python en demande d’autres.
    run(page, ASK)
    form = page.locator('[data-explorer="self-test"][data-ready] form').first
    field, statement = form.locator("input"), form.locator(".lrq-statement")
    field.focus()
    selected, asked = active(page), statement.text_content()
    page.keyboard.type("12a1", delay=20)
    expect(field).to_have_value("12a1")
    assert active(page) == selected
    field.fill("12")
    field.press("Enter")
    expect(form.locator('[data-readout="verdict"]')).to_contain_text(re.compile(r"Juste\.|Faux\."))
    run(page, RENEW, "graine changée")
    expect(statement).not_to_have_text(asked)
    expect(form.locator('[data-readout="verdict"]')).to_be_empty()
