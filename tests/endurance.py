"""L'endurance : les carnets rejoués trois fois sur un fil de calcul et trois fois sur deux, puis 5 000 instances.

``make endurance`` rejoue tous les carnets, ``make endurance CARNETS=notebooks/11_00_introduction.ipynb`` celui-là seul.
Le premier échec arrête tout.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
TURNS, THREADS, CASES = 3, (1, 2), 5000


def pytest(*arguments, **environment):
    """Les tests que rapporte pytest, réparti sur les cœurs ; s'il échoue, tout s'arrête."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "rapport.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-n", "logical", "--maxprocesses", "4", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode
        if code:
            sys.exit(f"Échec : pytest {' '.join(arguments)} rend {code}, avec {environment}.")
        return list(ElementTree.parse(report).iter("testcase"))


def main(notebooks):
    """Tout, dans l'ordre ; une phrase dit à la fin ce qui a été fait."""
    start, cells, files = time.monotonic(), 0, set()
    for threads in THREADS:
        for turn in range(1, TURNS + 1):
            print(f"\n=== nbval, {threads} fil(s), passage {turn} sur {TURNS}", flush=True)
            # par carnet : ses cellules se suivent dans un même noyau, qui hérite du nombre de fils
            fils = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
            found = pytest("--dist", "loadfile", "--nbval", *notebooks, **fils)
            cells, files = cells + len(found), files | {test.get("classname") for test in found}
    print(f"\n=== propriétés, {CASES} cas au moins", flush=True)
    found = pytest("tests/test_properties.py", LRQ_PROFIL="endurance")
    cases = sum(int(prop.get("value")) for test in found for prop in test.iter("property") if prop.get("name") == "cas")
    if cases < CASES:
        sys.exit(f"Échec : {cases} cas seulement, attendu {CASES}.")
    minutes = (time.monotonic() - start) / 60
    print(
        f"\nEndurance tenue en {minutes:.0f} min : {len(files)} carnet(s) rejoué(s) {TURNS} fois sur un fil et autant "
        f"sur deux ({cells} cellules en tout), {len(found)} propriétés éprouvées sur {cases} cas."
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["notebooks"])
