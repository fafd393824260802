"""What must be there before anything is measured: a virtual environment, the peers, the models. All of it under .cache/."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from measure import Missing, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PINNED = {
    "llama.cpp": "llama-cpp-python==0.3.36",
    "openvino": "openvino-genai==2026.4.1.0",
    "mistral.rs": "mistralrs==0.9.5",
    "candle": "candle-core 0.11.1",
}
MAKE_MODELS = ["gguf==0.19.0", "numpy"]
VOCABULARY = ("llama-models==0.3.0", "llama_models/llama3/tokenizer.model")
VOCABULARY_SHA256 = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
LLAMA_CPP_FLAGS = """-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_BLAS=OFF -DLLAMA_CURL=OFF
-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
-DBUILD_SHARED_LIBS=OFF""".split()
LLAMA_CPP_TOOLS = ["llama-bench", "llama-batched-bench", "llama-completion", "llama-quantize"]

# pip asks a source package's build system for the name it has; this one's would take minutes. A stand-in answers.
STAND_IN = '''
import os

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name = "llama_cpp_python-0.3.36.dist-info"
    os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 0.3.36\\n")
    return name
'''


def do(command, why, env=None, cwd=None):
    """Runs a step of preparation; raises Missing with its last line."""
    say(f"{why} ...")
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=os.environ | (env or {}), cwd=cwd)
    if done.returncode != 0:
        words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Missing(f"{why} failed: {(words or ['no output'])[-1][:200]}")
    return done.stdout


class House:
    """The folder .cache/bench."""

    def __init__(self, folder, models, llama_cpp_build):
        self.folder, self.models, self.llama_cpp_build = folder, models, llama_cpp_build
        self.folder.mkdir(parents=True, exist_ok=True)
        self.models.mkdir(parents=True, exist_ok=True)
        self.python = folder / "venv/bin/python"

    def pip(self, *packages):
        if not self.python.exists():
            do([sys.executable, "-m", "venv", self.folder / "venv"], "making a virtual environment")
        do([self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], f"installing {' '.join(packages)}")

    def download(self, package, *options, env=None):
        folder = self.folder / "downloads"
        quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", folder]
        do([sys.executable, "-m", "pip", "download", *quiet, *options, package], f"downloading {package}", env)
        return folder

    def llama_cpp(self):
        """The folder of llama.cpp's tools, built from the source that the Python package carries."""
        if self.llama_cpp_build:
            found = [p for p in (self.llama_cpp_build / "bin", self.llama_cpp_build) if (p / "llama-bench").is_file()]
            if not found:
                raise Missing(f"there is no llama-bench in {self.llama_cpp_build}")
            return found[0]
        source = self.folder / "llama_cpp_python-0.3.36/vendor/llama.cpp"
        tools = source / "build/bin"
        if all((tools / name).is_file() for name in LLAMA_CPP_TOOLS):
            return tools
        if not source.is_dir():
            stand_in = self.folder / "stand-in/scikit_build_core"
            stand_in.mkdir(parents=True, exist_ok=True)
            (stand_in / "__init__.py").write_text("")
            (stand_in / "build.py").write_text(STAND_IN)
            options = ["--no-build-isolation", "--no-binary", "llama-cpp-python"]
            folder = self.download(PINNED["llama.cpp"], *options, env={"PYTHONPATH": str(stand_in.parent)})
            with tarfile.open(folder / "llama_cpp_python-0.3.36.tar.gz") as archive:
                archive.extractall(self.folder, filter="data")
        self.pip("cmake==4.4.4", "ninja==1.13.2")
        path = {"PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}
        do(["cmake", "-B", "build", "-G", "Ninja", *LLAMA_CPP_FLAGS], "configuring llama.cpp", path, source)
        do(["cmake", "--build", "build", "--target", *LLAMA_CPP_TOOLS], "building llama.cpp (10 minutes)", path, source)
        return tools

    def candle(self):
        """The program of scripts/bench/candle."""
        folder = self.folder / "candle"
        (folder / "src").mkdir(parents=True, exist_ok=True)
        for name, to in (("Cargo.toml", "Cargo.toml"), ("main.rs", "src/main.rs")):
            text = (HERE / "candle" / name).read_text()
            if not (folder / to).exists() or (folder / to).read_text() != text:
                (folder / to).write_text(text)
        flags = {"RUSTFLAGS": "-C target-cpu=native", "CARGO_TARGET_DIR": str(folder / "target")}
        do(["cargo", "build", "--release"], "building candle (6 minutes the first time)", flags, folder)
        return folder / "target/release/bench-candle"

    def vocabulary(self):
        path = self.folder / "llama3.model"
        if not path.exists():
            package, member = VOCABULARY
            folder = self.download(package)
            wheel = next(folder.glob("llama_models-*.whl"))
            with zipfile.ZipFile(wheel) as archive:
                path.write_bytes(archive.read(member))
        if hashlib.sha256(path.read_bytes()).hexdigest() != VOCABULARY_SHA256:
            path.unlink()
            raise Missing("the vocabulary of Llama 3 is not the one expected")
        return path

    def model(self, model, puna):
        """Pulls or makes a model's file, if it is not there."""
        path = self.models / f"{model.name}.gguf"
        if path.exists():
            return path
        part = path.with_suffix(".part")
        if model.synthetic:
            shape, kind = model.synthetic
            self.pip(*MAKE_MODELS)
            do([self.python, HERE / "models.py", part, shape, kind, self.vocabulary()], f"writing {path.name}")
        elif model.kind == "Q4_1":
            home = {"PUNA_HOME": str(ROOT / ".cache/puna-home")}
            do([puna, "pull", "smollm2:135m"], "pulling smollm2:135m", home)
            shown = do([puna, "show", "smollm2:135m", "--format", "json"], "looking at it", home)
            shutil.copyfile(shown.split('"path":"', 1)[1].split('"', 1)[0], part)
        else:
            from works import SMOL

            quantize = self.llama_cpp() / "llama-quantize"
            do([quantize, "--allow-requantize", self.model(SMOL, puna), part, model.kind], f"writing {path.name}")
        part.rename(path)
        return path
