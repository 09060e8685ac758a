"""make demo: goes from no model at all to two aligned students and one table, in two minutes on two cores.

The models are tiny and made on the spot, the language is a toy and its reward is known; the commands are the real ones.
"""

import os
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
from examples.demo.grammar import judge_accuracy, prompts
from examples.demo.inputs import SEED, write_pairs, write_reference
from examples.demo.models import TEACHER_FLAGS, load_model, load_tokenizer
from examples.demo.report import require_progress, results_text, write_json

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("runs/demo")
RESPONSES_PER_PROMPT = 20
CORES = min(2, os.cpu_count() or 1)
GAINS = (5, 15)
# for a model this small; the defaults are a recipe for real ones
STUDENT_FLAGS = shlex.split(
    "--learning_rate 5e-4 --num_train_epochs 2 --per_device_train_batch_size 32 --global_batch_size 32 "
    "--logging_steps 10 --save_strategy no --report_to none"
)


def main() -> None:
    os.chdir(ROOT)
    quiet()
    started = time.perf_counter()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)

    with step("1. People write advice, and compare some of it: a toy language with a true reward"):
        texts, held_out_pairs = write_pairs(OUT)

    with step("2. A tokenizer, and a reference model that writes like people do"):
        write_reference(OUT, texts)

    with step("3. dpo, and reverse: the same training with chosen and rejected swapped"):
        pairs_flags = ["--data", OUT / "pairs.jsonl", "--out", OUT]
        run("precompute.teachers", "--reference", OUT / "reference", *pairs_flags, "--seed", SEED, *TEACHER_FLAGS)

    with step("4. Run the three models once: the cache"):
        models = [f"{role}={OUT / role}" for role in ("dpo", "reverse", "reference")]
        small = ["--top_k", "16", "--tokens_per_shard", "8192", "--responses", "both"]
        run("precompute.build", "--models", *models, "--data", OUT / "pairs.jsonl", "--out", OUT / "shards", *small)
    with step("5. Check it, and look at it"):
        run("shards.verify", OUT / "shards")
        run("shards.inspect", OUT / "shards")
        run("shards.inspect", OUT / "shards", "--html", OUT / "cache.html")

    students = {gain: OUT / f"student-gain-{gain}" for gain in GAINS}
    with step("6. Students of teachers with gain 5 and 15 at the same time, from the cache alone"):
        flags = {gain: ["--output_dir", folder, "--gain", gain, *STUDENT_FLAGS] for gain, folder in students.items()}
        run_together("student.train", [["--shards", OUT / "shards", *flags[gain]] for gain in GAINS])

    with step("7. How good are they? Sampled responses to held-out prompts, held-out pairs"):
        folders = {"reference": OUT / "reference", "dpo": OUT / "dpo"}
        folders |= {f"student, gain {gain}": folder for gain, folder in students.items()}
        qualities = judge(folders, held_out_pairs)
        text = results_text(qualities, ceiling=judge_accuracy(held_out_pairs))
        (OUT / "results.md").write_text(text + "\n")
        write_json(OUT / "results.json", qualities)
    with step("8. How did the trainings go? Their curves over each other, to open in a browser"):
        run("student.report", *students.values(), "--html", OUT / "runs.html")
    print(f"\n{text}\n\neverything is in {OUT}; {time.perf_counter() - started:.0f} s in all")
    print(f"open {OUT / 'cache.html'} in a browser: what the cache knows about every token")
    print(f"open {OUT / 'runs.html'} in a browser: how the trainings went")
    require_progress(qualities)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print the step, and how long it took."""
    print(f"\n{title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"({time.perf_counter() - started:.1f} s)", flush=True)


def run(module: str, *arguments: object) -> None:
    """Run a command of the project as a user would, and stop where it fails."""
    run_together(module, [arguments])


def run_together(module: str, runs: Sequence[Sequence[object]]) -> None:
    """Run a command once for each list of arguments, all at the same time. The output of the first is shown at once,
    that of the others when they have ended."""
    started, threads = [], str(max(1, CORES // len(runs)))
    for number, arguments in enumerate(runs):
        words = ["-m", module, *map(str, arguments)]
        wrapped = textwrap.wrap(shlex.join(["python", *words]), 110, break_long_words=False, break_on_hyphens=False)
        print("$ " + " \\\n      ".join(wrapped), flush=True)
        unseen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if number else {}
        started.append(
            subprocess.Popen(
                [sys.executable, *words], env=os.environ | {"OMP_NUM_THREADS": threads}, text=True, **unseen
            )
        )
    for process in started:
        printed, errors = process.communicate()
        print(printed or "", end="", flush=True)
        if process.returncode:
            for other in started:
                other.kill()
            sys.exit(f"{errors or ''}demo: {module} ended with exit code {process.returncode}")


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
    """Two cores at most, as models this small have no use for more; no bars and hints of the libraries below."""
    torch.set_num_threads(CORES)
    os.environ |= {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


if __name__ == "__main__":
    main()
