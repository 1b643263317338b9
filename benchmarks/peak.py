"""Le pic de mémoire résidente de quelques lignes, dans un processus neuf."""

import subprocess
import sys

CODE = """
import sys, threading, time
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

{prepare}
before, peak, done = resident(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
{measured}
done = True
thread.join()
print((peak - before) * 4096)
"""


def peak_bytes(prepare: str, measured: str, *arguments: int) -> int:
    """Octets que `measured` ajoute au plus à ce que tient déjà le processus après `prepare` ; `sys.argv` les suit."""
    code = CODE.replace("{prepare}", prepare).replace("{measured}", measured)
    run = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True)
    return int(run.stdout)
