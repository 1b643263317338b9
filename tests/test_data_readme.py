"""lrq/data/LISEZMOI.md dit vrai : chaque fichier de données y est, avec son empreinte."""

import hashlib
import re

from lrq.models import DATA, load_digits_data, load_sentences

README = (DATA / "LISEZMOI.md").read_text(encoding="utf-8")


def test_hashes_are_those_of_the_files():
    stated = {name: digest for digest, name in re.findall(r"^ +([0-9a-f]{64})  (\S+)$", README, re.MULTILINE)}
    files = [*DATA.glob("*.safetensors"), *DATA.glob("*.txt")]
    assert stated == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_file_is_described():
    files = {path.name for path in DATA.iterdir() if path.is_file()} - {"__init__.py", "LISEZMOI.md"}
    assert set(re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)) == files


def test_counts_are_those_of_the_data():
    (x_train, _), (x_test, _) = load_digits_data()
    assert f"{len(x_train) + len(x_test)} images" in README
    assert f"{len(x_train)} pour apprendre, {len(x_test)} pour juger" in README
    calibration, test = load_sentences("calibration"), load_sentences("test")
    assert f"{len(calibration) + len(test)} phrases" in README
    assert f"les {len(calibration)} premières" in README
