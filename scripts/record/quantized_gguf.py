"""Record what llama-quantize makes of the GGUF files of tests/gguf_sources.py.

    python -m pip install llama-cpp-python gguf
    PYTHONPATH=. python scripts/record/quantized_gguf.py [tests/data/gguf_sources.json]

Per case and file: metadata and tensors in the order in which they are written, as
gguf_contents.contents gives them; of quantized tensors the bytes are not compared.
"""

import ctypes
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import llama_cpp  # type: ignore[import-not-found, unused-ignore]

from quantcli.recipes import file_type

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # last: it has a llama_cpp, too
from gguf_contents import contents
from gguf_sources import cases


def quantize(source, target, options):
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = file_type(options["file_type"]).id
    params.allow_requantize = options.get("allow_requantize", False)
    params.keep_split = options.get("keep_split", False)
    params.quantize_output_tensor = not options.get("leave_output_tensor", False)
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize refused {source.name} {options}")


def main(out):
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    made_with = {"script": "scripts/record/quantized_gguf.py"} | {
        package: importlib.metadata.version(package) for package in ("llama-cpp-python", "gguf")
    }
    lines = [f'{{"made_with": {json.dumps(made_with)}']
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, options) in cases(Path(folder)).items():
            made = Path(folder, "made")
            made.mkdir()
            # With keep_split the name is what the parts' names begin with.
            quantize(source, made / ("x" if options.get("keep_split") else "x.gguf"), options)
            found = {path.name: contents(path) for path in sorted(made.iterdir())}
            lines.append(f'"{name}": {json.dumps(found)}')
            for path in made.iterdir():
                path.unlink()
            made.rmdir()
    out.write_text(",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data/gguf_sources.json"))
