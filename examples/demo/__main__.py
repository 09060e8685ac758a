"""make demo: everything from no model at all to two aligned students and one table, in a few minutes on two cores.

The models are tiny and made on the spot, the language is a toy and its reward is known; the commands are the real ones.
"""

import os
import random
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from examples.demo.evaluate import Quality, evaluate
from examples.demo.grammar import draw, judge_accuracy, prompts
from examples.demo.models import TEACHER_FLAGS, load_model, load_tokenizer, train_reference, train_tokenizer
from examples.demo.report import require_progress, results_text, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("runs/demo")
SEED = 0
NUM_TEXTS, NUM_PAIRS, NUM_HELD_OUT_PAIRS = 25_600, 2_000, 1_000
RESPONSES_PER_PROMPT = 20
GAINS = (5, 15)
# what a model this small needs; the defaults are a recipe for real ones
STUDENT_FLAGS = shlex.split(
    "--learning_rate 5e-4 --num_train_epochs 2 --per_device_train_batch_size 32 --global_batch_size 32 "
    "--logging_steps 40 --save_strategy no --report_to none"
)


def main() -> None:
    os.chdir(ROOT)
    quiet()
    started = time.perf_counter()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)

    with step("1. People write advice, and compare some of it: a toy language with a true reward"):
        texts, pairs = draw(NUM_TEXTS, NUM_PAIRS, held_out=False, rng=random.Random(SEED))
        _, held_out_pairs = draw(0, NUM_HELD_OUT_PAIRS, held_out=True, rng=random.Random(SEED + 1))
        write_jsonl(OUT / "pairs.jsonl", pairs)
        write_jsonl(OUT / "held-out-pairs.jsonl", held_out_pairs)
        print(f"{len(texts):,} texts, {len(pairs):,} pairs, {len(held_out_pairs):,} pairs about dishes held out")
        print(textwrap.indent("\n".join(f"{name:>8}  {text.strip()}" for name, text in pairs[0].items()), "  "))

    with step("2. A tokenizer, and a reference model that writes like people do"):
        tokenizer = train_tokenizer(texts)
        reference = train_reference(tokenizer, texts, seed=SEED)
        reference.save_pretrained(OUT / "reference")
        tokenizer.save_pretrained(OUT / "reference")
        print(f"{reference.num_parameters():,} parameters, {len(tokenizer)} tokens")

    with step("3. dpo, and reverse: the same training with chosen and rejected swapped"):
        pairs_flags = ["--data", OUT / "pairs.jsonl", "--out", OUT]
        run("precompute.teachers", "--reference", OUT / "reference", *pairs_flags, "--seed", SEED, *TEACHER_FLAGS)

    with step("4. Run the three models once: the cache"):
        models = [f"{role}={OUT / role}" for role in ("dpo", "reverse", "reference")]
        small = ["--top_k", "16", "--tokens_per_shard", "8192"]
        run("precompute.build", "--models", *models, "--data", OUT / "pairs.jsonl", "--out", OUT / "shards", *small)
    with step("5. Check it, and look at it"):
        run("shards.verify", OUT / "shards")
        run("shards.inspect", OUT / "shards")

    students = {gain: OUT / f"student-gain-{gain}" for gain in GAINS}
    for number, (gain, folder) in enumerate(students.items(), start=6):
        with step(f"{number}. A student of the teacher with gain {gain}, from the cache alone"):
            run("student.train", "--shards", OUT / "shards", "--output_dir", folder, "--gain", gain, *STUDENT_FLAGS)

    with step(f"{6 + len(GAINS)}. How good are they? Sampled responses to held-out prompts, held-out pairs"):
        folders = {"reference": OUT / "reference", "dpo": OUT / "dpo"}
        folders |= {f"student, gain {gain}": folder for gain, folder in students.items()}
        qualities = judge(folders, held_out_pairs)
        text = results_text(qualities, ceiling=judge_accuracy(held_out_pairs))
        (OUT / "results.md").write_text(text + "\n")
        write_json(OUT / "results.json", qualities)
    print(f"\n{text}\n\neverything is in {OUT}; {time.perf_counter() - started:.0f} s in all")
    require_progress(qualities)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    print(f"\n{title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"({time.perf_counter() - started:.1f} s)", flush=True)


def run(module: str, *arguments: object) -> None:
    """Run a command of the project as a user would, and stop where it fails."""
    words = ["-m", module, *map(str, arguments)]
    wrapped = textwrap.wrap(shlex.join(["python", *words]), 110, break_long_words=False, break_on_hyphens=False)
    print("$ " + " \\\n      ".join(wrapped), flush=True)
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        sys.exit(f"demo: {module} ended with exit code {code}")


def judge(folders: dict[str, Path], pairs: Sequence[dict[str, str]]) -> dict[str, Quality]:
    tokenizer = load_tokenizer(folders["reference"])
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    return {
        name: evaluate(
            model,
            loaded["reference"],
            tokenizer,
            prompts(held_out=True),
            pairs,
            responses_per_prompt=RESPONSES_PER_PROMPT,
            seed=SEED,
        )
        for name, model in loaded.items()
    }


def quiet() -> None:
    """One thread a process, which is as fast for models this small; no bars and hints of the libraries below."""
    torch.set_num_threads(1)
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


if __name__ == "__main__":
    main()
