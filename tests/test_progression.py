"""« Ma progression » : un fichier du lecteur, que rien n'écrit sans lui, que rien n'écrase et où rien ne se perd."""

import json
import multiprocessing
import re
import time
from datetime import date
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup

from lrq.exercises import EXERCISES, SECTIONS, Bilan, ma_progression, progress, verifier

ROOT = Path(__file__).parents[1]


def right(m, n, c):
    """La réponse à l'exercice 11.1.1."""
    rank = next((r for r in range(min(m, n), 0, -1) if m * n >= c * r * (m + n)), None)
    if rank is None:
        raise ValueError("impossible")
    return rank


def wrong(m, n, c):
    return 1


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Le dossier d'un lecteur, vide, au début d'une session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_opened", None)
    return tmp_path


def shown(bilan):
    return repr(bilan).splitlines()[-1]


def bilan(number, solved=True):
    return Bilan(number, "titre", "réussi" if solved else "à revoir", ())


# --- ce qui est écrit, et quand ---------------------------------------------------------------------------------------


def test_nothing_is_written_where_no_file_was_begun(folder):
    assert verifier("11.1.1", right).reussi
    assert "progression" not in repr(verifier("11.1.1", right))
    assert "Rien n'est noté" in repr(ma_progression())
    assert list(folder.iterdir()) == []


def test_no_file_lies_where_the_book_runs_its_notebooks():
    for place in (ROOT, ROOT / "notebooks", ROOT / "notebooks" / "solutions"):
        assert not (place / progress.NAME).exists()
    for path in (ROOT / "notebooks").glob("**/*.ipynb"):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert "ma_progression(" not in "".join(code), path.name


def test_a_success_is_noted_with_its_date_and_its_tries(folder):
    progress.create(folder / progress.NAME)
    for answer in (wrong, wrong, right):
        last = verifier("11.1.1", answer)
    assert shown(last).endswith("noté dans votre progression (1 sur 21)")
    saved = json.loads((folder / progress.NAME).read_text(encoding="utf-8"))
    assert saved == {"format": 1, "exercices": {"11.1.1": {"essais": 3, "reussi": date.today().isoformat()}}}
    again = ma_progression()
    assert (again.resolus, again.suivant) == (["11.1.1"], "11.1")
    assert f"résolu le {date.today():%d/%m/%Y}, 3 essais" in repr(again)


def test_once_solved_an_exercise_stays_as_it_was(folder, monkeypatch):
    progress.create(folder / progress.NAME)
    progress.record(folder / progress.NAME, "11.1", True)
    before = (folder / progress.NAME).read_bytes()

    class Tomorrow(date):
        @classmethod
        def today(cls):
            return date.fromordinal(date.today().toordinal() + 1)

    monkeypatch.setattr(progress, "date", Tomorrow)
    assert progress.note(bilan("11.1"), tuple(EXERCISES)) == "noté dans votre progression (1 sur 21)"
    assert progress.note(bilan("11.1", solved=False), tuple(EXERCISES)) == ""
    assert (folder / progress.NAME).read_bytes() == before


def test_a_failure_counts_as_a_try_and_an_empty_answer_does_not(folder):
    progress.create(folder / progress.NAME)
    verifier("11.1.1", lambda m, n, c: ...)
    verifier("11.1.1", 3)
    assert progress.load(folder / progress.NAME) == {}
    assert "progression" not in repr(verifier("11.1.1", wrong))
    assert progress.load(folder / progress.NAME) == {"11.1.1": progress.Entry(1, None)}
    assert "à résoudre, 1 essai)" in repr(ma_progression())


def test_a_file_named_by_the_reader_serves_the_whole_session(folder, monkeypatch):
    (folder / "ailleurs").mkdir()
    assert ma_progression("ailleurs/moi.json").path == folder / "ailleurs" / "moi.json"
    monkeypatch.chdir(folder / "ailleurs")
    verifier("11.1.1", right)
    assert ma_progression().resolus == ["11.1.1"]
    assert not (folder / "ailleurs" / progress.NAME).exists()


def test_writing_leaves_nothing_but_the_file_and_its_lock(folder):
    ma_progression(progress.NAME)
    verifier("11.1.1", right)
    assert {path.name for path in folder.iterdir()} <= {progress.NAME, f".{progress.NAME}.verrou"}


# --- ce qui n'est jamais écrasé ---------------------------------------------------------------------------------------

DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"3",
    b"\xff\xfe",
    b'{"format": 1}',
    b'{"format": 1, "exercices": []}',
    b'{"format": 1, "exercices": {"11.1": 3}}',
    b'{"format": 1, "exercices": {"11.1": {"essais": 1, "reussi": "hier"}}}',
    b'{"exercices": {}}',
    b'{"format": 2, "exercices": {}}',
    b'{"format": "autre"}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_an_unreadable_file_gets_a_sentence_and_stays(folder, content):
    path = folder / progress.NAME
    path.write_bytes(content)
    for call in (ma_progression, lambda: ma_progression(progress.NAME)):
        with pytest.raises(ValueError, match=r"progression.*laissé tel quel"):
            call()
    last = verifier("11.1.1", right)
    assert last.reussi
    assert "progression non notée" in shown(last)
    assert path.read_bytes() == content


def test_a_refused_file_does_not_serve(folder):
    progress.create(folder / progress.NAME)
    (folder / "autre.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="laissé tel quel"):
        ma_progression("autre.json")
    assert shown(verifier("11.1.1", right)).endswith("(1 sur 21)")
    assert ma_progression().path == folder / progress.NAME


def test_another_version_is_said_to_be_one(folder):
    (folder / progress.NAME).write_text('{"format": 2, "exercices": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match="format 2, attendu 1"):
        ma_progression()


def test_creating_never_overwrites(folder):
    path = folder / progress.NAME
    assert progress.create(path)
    progress.record(path, "11.1", True)
    assert not progress.create(path)
    assert ma_progression(progress.NAME).resolus == ["11.1"]


@pytest.mark.parametrize("name", ["absent/progression.json", ".", 5])
def test_an_impossible_place_is_refused(name):
    with pytest.raises((TypeError, ValueError), match="fichier : reçu"):
        ma_progression(name)
    assert ma_progression().path is None


@pytest.mark.parametrize("error", [PermissionError, OSError, NotImplementedError, TimeoutError])
def test_checking_never_fails_because_of_the_file(folder, monkeypatch, error):
    progress.create(folder / progress.NAME)
    before = (folder / progress.NAME).read_bytes()

    def refuse(contents):
        raise error("non")

    monkeypatch.setattr(progress, "write_whole", refuse)
    last = verifier("11.1.1", right)
    assert last.reussi
    assert shown(last).strip().startswith("• progression non notée : progression.json est inaccessible")
    assert (folder / progress.NAME).read_bytes() == before


def test_a_lock_that_cannot_be_taken_is_said_quietly(folder):
    """Comme dans un dossier en lecture seule, que root, lui, peut toujours écrire."""
    progress.create(folder / progress.NAME)
    (folder / f".{progress.NAME}.verrou").unlink(missing_ok=True)
    (folder / f".{progress.NAME}.verrou").mkdir()
    last = verifier("11.1.1", right)
    assert last.reussi
    assert "progression.json est inaccessible" in shown(last)


def test_a_lock_that_is_kept_does_not_block_for_long(folder, monkeypatch):
    path = folder / progress.NAME
    progress.create(path)
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    with progress.locked(path):
        start = time.perf_counter()
        assert "progression non notée" in shown(verifier("11.1.1", right))
        assert time.perf_counter() - start < 3


def test_a_folder_that_vanished_is_no_matter(folder, monkeypatch):
    def vanished():
        raise FileNotFoundError

    monkeypatch.setattr(progress.Path, "cwd", staticmethod(vanished))
    assert verifier("11.1.1", right).reussi


# --- deux carnets à la fois -------------------------------------------------------------------------------------------


def note_all(path, numbers):
    for number in numbers:
        progress.record(Path(path), number, True)


def test_two_notebooks_lose_nothing(folder, monkeypatch):
    path = folder / progress.NAME
    progress.create(path)
    load = progress.load

    def slow(path):
        entries = load(path)
        time.sleep(0.01)  # le temps qu'il faut à l'autre pour écrire, s'il n'attend pas
        return entries

    monkeypatch.setattr(progress, "load", slow)
    numbers = list(EXERCISES)
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    writers = [context.Process(target=note_all, args=(str(path), part)) for part in (numbers[::2], numbers[1::2])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert sorted(ma_progression().resolus) == sorted(EXERCISES)


def test_what_another_version_knows_is_kept(folder):
    path = folder / progress.NAME
    progress.create(path)
    progress.record(path, "99.9", True)
    assert progress.note(bilan("11.1"), tuple(EXERCISES)).endswith("(1 sur 21)")
    assert "99.9" in progress.load(path)
    assert ma_progression().resolus == ["11.1"]


# --- ce qui est montré ------------------------------------------------------------------------------------------------


def test_sections_are_those_of_the_book_in_its_order():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    course = [
        Path(file).name for file in files if str(Path(file).parent) == "notebooks" and Path(file).name[0].isdigit()
    ]
    assert [f"{int(name[:2])}.{int(name[3:5])}" for name in course] == list(SECTIONS)
    for name, exercises in zip(course, SECTIONS.values(), strict=True):
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        places = [text.index(f"(exercice-{exercise.number.replace('.', '-')})=") for exercise in exercises]
        assert places == sorted(places)


def test_every_exercise_is_shown_in_text_and_in_html(folder, rng):
    path = folder / progress.NAME
    progress.create(path)
    solved = set(rng.choice(list(EXERCISES), size=int(rng.integers(1, 21)), replace=False))
    note_all(path, solved)
    whole = ma_progression()
    assert set(whole.resolus) == solved
    assert whole.suivant == next(number for number in EXERCISES if number not in solved)
    page = BeautifulSoup(whole._repr_html_(), "html.parser")
    rows = [[cell.get_text() for cell in row.select("td")] for row in page.select("tbody tr")]
    assert [row[1] for row in rows] == list(EXERCISES)
    for section, number, title, state in rows:
        assert EXERCISES[number] in SECTIONS[section]
        assert title == EXERCISES[number].title
        assert ("résolu le" in state) == (number in solved)
        line = next(line for line in repr(whole).splitlines() if re.match(rf" +[✓·] {re.escape(number)} ", line))
        assert (line.split()[0] == "✓") == (number in solved)
    assert page.progress["value"] == str(len(solved))
    assert f"À suivre : exercice {whole.suivant}, " in page.get_text()


def test_the_end_is_said(folder):
    progress.create(folder / progress.NAME)
    note_all(folder / progress.NAME, EXERCISES)
    assert repr(ma_progression()).startswith("Ma progression : 21 exercices résolus sur 21")
    assert repr(ma_progression()).endswith("Tout est résolu.")
    assert ma_progression().suivant is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_count_agrees(folder, count):
    progress.create(folder / progress.NAME)
    note_all(folder / progress.NAME, list(EXERCISES)[:count])
    assert ["0 exercice résolu sur", "1 exercice résolu sur", "2 exercices résolus sur"][count] in repr(
        ma_progression()
    )
