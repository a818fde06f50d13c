"""Record how the sentencepiece library itself encodes text with the model files of the tests.

    python scripts/record/sentencepiece_ids.py

Needs `sentencepiece`. Writes tests/data/tokenizer/sentencepiece.json: style -> [text, ids].
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import sentencepiece

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny_tokenizers import DATA, text

MODELS = {"llama2": "tokenizer.model", "gemma": "tokenizer.model", "t5": "spiece.model"}
MODELS |= {"internlm2": "tokenizer.model"}
MORE = (
    "  two  spaces   three ",
    "\t\ttabs \r\n\n\n",
    "ﬁne Ａ １２３ 🦙 \u200d end",
    "x",
    " ",
    "▁ a▁b",
)


def main() -> None:
    ids = {}
    for style, name in MODELS.items():
        model = sentencepiece.SentencePieceProcessor(model_file=str(DATA / style / name))
        ids[style] = [[line, model.encode(line)] for line in (*text().splitlines(), *MORE)]
    made_with = {"script": "scripts/record/sentencepiece_ids.py"}
    made_with["sentencepiece"] = version("sentencepiece")
    content = json.dumps({"made_with": made_with, "ids": ids}, ensure_ascii=False)
    (DATA / "sentencepiece.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
