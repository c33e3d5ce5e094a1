"""Wait for what comes by itself, however long that takes on a busy machine."""
import time

PATIENCE = 300  # seconds until something counts as stuck


def wait_for(condition, what, seconds=PATIENCE):
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting for {what() if callable(what) else what}"
        time.sleep(0.2)
    return value
