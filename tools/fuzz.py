"""Draw what people might write, for as long as you like, and stop at the first input that is neither used nor refused.

    python tools/fuzz.py --minutes 60               every subject of tests/fuzzing.py in turn
    python tools/fuzz.py --minutes 5 --subjects rows

Prints a line a minute, and the smallest input that does not hold, if there is one (exit 1). What was found before is tried first.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import fuzzing  # noqa: E402

EXAMPLES_A_ROUND = 500


def fuzz(name: str, folder: Path, found: DirectoryBasedExampleDatabase) -> int:  # inputs drawn
    "Draw one round of a subject's inputs; raise for one that does not hold."
    subject, drawn_inputs = fuzzing.SUBJECTS[name], 0

    @settings(max_examples=EXAMPLES_A_ROUND, deadline=None, database=found, suppress_health_check=list(HealthCheck),
              phases=(Phase.reuse, Phase.generate, Phase.target, Phase.shrink), print_blob=False)
    @given(drawn=subject.inputs)
    def draw(drawn):
        nonlocal drawn_inputs
        drawn_inputs += 1
        with tempfile.TemporaryDirectory(dir=folder) as place:
            subject.check(drawn, Path(place))

    draw()
    return drawn_inputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--subjects", nargs="+", choices=fuzzing.SUBJECTS, default=list(fuzzing.SUBJECTS))
    options = parser.parse_args()
    start, last, counts = time.monotonic(), 0.0, dict.fromkeys(options.subjects, 0)
    found = DirectoryBasedExampleDatabase(Path(tempfile.gettempdir()) / "llmlab-fuzz")
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - start < options.minutes * 60:
            for name in options.subjects:
                counts[name] += fuzz(name, Path(folder), found)
            if time.monotonic() - last > 60:
                last = time.monotonic()
                print(f"{(last - start) / 60:.1f} min: {counts}", flush=True)
    print(f"{(time.monotonic() - start) / 60:.1f} min, every input used or refused: {counts}")


if __name__ == "__main__":
    main()
