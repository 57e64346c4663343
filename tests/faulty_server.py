"""`poolgraph serve` whose model is slow on the word w58 and dies of the word w59: run it as the command line is run.

``server_process([sys.executable, faulty_server.__file__, "serve", ...])``
"""

from __future__ import annotations

import sys
import time

SLOW_WORD, SLOW_ID = "w58", 62
FATAL_WORD, FATAL_ID = "w59", 63
SLOW_SECONDS = 1.0

FORBIDDEN = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "sentence_transformers", "optimum", "openvino")
"""What a serving process must not load."""


def make_faulty() -> None:
    """Give models their faults."""
    from poolgraph.runtime.loaded import LoadedModel

    run_batch = LoadedModel.run_batch

    def run(model, texts, *args, **options):
        ids = {int(number) for text in texts for number in text.input_ids}
        if SLOW_ID in ids:
            time.sleep(SLOW_SECONDS)
        if FATAL_ID in ids:
            raise RuntimeError("the model thread dies of SECRET")
        return run_batch(model, texts, *args, **options)

    LoadedModel.run_batch = run


def main() -> int:
    from poolgraph.cli import main as run_command

    make_faulty()
    code = run_command(sys.argv[1:])
    sys.stderr.write(f"loaded: {sorted(set(FORBIDDEN) & set(sys.modules))}\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
