"""student.evaluate: its figures equal the dense formulas, a direct count, and a planted scorer's."""

import json
import math
import re

import dense
import numpy as np
import pytest
import torch
from conftest import build_options
from tiny import load, make_llama, make_pairs, make_tokenizer, nudged, save, with_dropout, write_jsonl
from transformers import LlamaConfig, LlamaForSequenceClassification

from precompute.build.build import build
from shards import Divergence, ShardCache, TeacherSpec
from shards.errors import AlignDistilError
from student.evaluate.__main__ import evaluate, main, parse
from student.evaluate.estimates import ratio, share_interval
from student.evaluate.measure import measure
from student.evaluate.report import LABELS, report_text
from student.evaluate.scorers import find_scorer
from student.evaluate.win_rate import read_samples

V, BETA = 18, 0.1


@pytest.fixture(scope="module")
def student_folder(trio, tmp_path_factory):
    return save(nudged(trio["reference"], 7, 0.1), tmp_path_factory.mktemp("student"))


def flags(**given):
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def on_cache(cache, model, **given):
    report = evaluate(parse(flags(model=model, shards=cache.folder, **given)))
    return report | report["models"][0]


@pytest.fixture(scope="module")
def live(whole_cache, trio, student_folder):
    """For every row: role -> log-probs (N, V) of the live models and of the student, and the next ids (N,)."""
    models = trio | {"student": load(student_folder)}
    found = []
    for response in whole_cache.read(range(len(whole_cache))):
        with torch.no_grad():
            of_role = {role: dense.response_logprobs(model, response, V).double() for role, model in models.items()}
        next_ids = torch.from_numpy(response.input_ids[response.loss_mask].astype("int64"))[:, None]
        found.append((of_role, next_ids))
    return found


def at_next(live, first, second):
    """sum_t log p_first(y_t) - log p_second(y_t) of every row."""
    return np.array([float((of[first] - of[second]).gather(-1, ids).sum()) for of, ids in live])


def mean_kl(live, first, second):
    kls = torch.cat([dense.divergence("reverse_kl", of[first], of[second]) for of, _ in live])
    return float(kls.mean())


@pytest.mark.parametrize("preset", dense.PRESETS)
def test_with_all_tokens_kept_the_figures_are_the_dense_formulas(whole_cache, live, student_folder, preset):
    report = on_cache(whole_cache, student_folder, teacher=preset)
    found = {name: row["model"]["mean"] for name, row in report["quantities"].items()}
    assert found["kl_reference"] == pytest.approx(mean_kl(live, "student", "reference"), rel=1e-4)
    assert found["kl_reference_per_sequence"] == pytest.approx(
        found["kl_reference"] * whole_cache.plan.positions / len(whole_cache)
    )
    targets = [dense.teacher(of, *dense.PRESETS[preset])[0] for of, _ in live]
    expected = torch.cat(
        [dense.divergence("reverse_kl", of["student"], t) for (of, _), t in zip(live, targets, strict=True)]
    )
    assert found["divergence_teacher"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found["support_mass"] == pytest.approx(1, abs=1e-6)
    rewards = torch.cat([(of["student"].exp() * BETA * (of["dpo"] - of["reverse"])).sum(-1) for of, _ in live])
    assert found["expected_reward"] == pytest.approx(float(rewards.mean()), rel=1e-4)

    chosen = whole_cache.index.chosen
    reward = BETA * at_next(live, "student", "reference")
    assert found["implicit_reward_chosen"] == pytest.approx(reward[chosen].mean(), rel=1e-4)
    assert found["implicit_reward_rejected"] == pytest.approx(reward[~chosen].mean(), rel=1e-4)
    contrast = BETA * at_next(live, "dpo", "reverse")
    assert report["cached"]["contrastive_reward_chosen"]["mean"] == pytest.approx(contrast[chosen].mean(), rel=1e-4)
    lengths = whole_cache.index.num_positions
    assert report["cached"]["tokens_rejected"]["mean"] == pytest.approx(lengths[~chosen].mean())


@pytest.mark.parametrize("name", ["forward_kl", "jsd"])
def test_the_divergence_to_the_teacher_is_the_one_asked_for(whole_cache, live, student_folder, name):
    report = on_cache(whole_cache, student_folder, divergence=name, jsd_weight=0.3)
    values = []
    for of, _ in live:
        target, _ = dense.teacher(of, *dense.PRESETS["aligndistil"])
        values.append(dense.divergence(name, of["student"], target, jsd_weight=0.3))
    found = report["quantities"]["divergence_teacher"]["model"]["mean"]
    assert found == pytest.approx(float(torch.cat(values).mean()), rel=1e-4)


def test_a_model_that_was_left_in_train_mode_is_measured_without_its_dropout(whole_cache, trio):
    student = with_dropout(nudged(trio["reference"], 7, 0.1))
    given = {"batch_size": 8, "chunk_positions": 256, "pad_token_id": 0, "description": "student"}
    sums = [
        measure(student.train(training), whole_cache, TeacherSpec(), divergence=Divergence(), **given)
        for training in (False, True)
    ]
    np.testing.assert_array_equal(sums[0].divergence, sums[1].divergence)
    np.testing.assert_array_equal(sums[0].log_ratio, sums[1].log_ratio)


def test_accuracies_are_a_direct_count(whole_cache, live, student_folder):
    found = on_cache(whole_cache, student_folder)["accuracy"]
    targets = [dict(of, teacher=dense.teacher(of, *dense.PRESETS["aligndistil"])[0]) for of, _ in live]
    live = [(of, ids) for of, (_, ids) in zip(targets, live, strict=True)]
    ratios = {
        "model": at_next(live, "student", "reference"),
        "teacher": at_next(live, "teacher", "reference"),
        "dpo": at_next(live, "dpo", "reference"),
        "contrastive": at_next(live, "dpo", "reverse"),
    }
    index = whole_cache.index
    rows = {(pair, kind): row for row, (pair, kind) in enumerate(zip(index.pair_id, index.chosen, strict=True))}
    assert len(rows) == 24
    for name, ratio_R in ratios.items():
        wins = sum(ratio_R[rows[pair, True]] > ratio_R[rows[pair, False]] for pair in range(12))
        row = found[name]
        assert (row["wins"], row["ties"], row["losses"], row["total"]) == (wins, 0, 12 - wins, 12)
        assert row["share"] == pytest.approx(wins / 12)
        assert row["low"] < row["share"] < row["high"]


def test_the_reference_against_itself_is_nothing(whole_cache, trio_folders):
    reference = trio_folders["reference"]
    report = on_cache(whole_cache, reference, against=reference)
    for name in ("kl_reference", "implicit_reward_chosen", "implicit_reward_rejected", "implicit_reward_margin"):
        row = report["quantities"][name]
        assert abs(row["model"]["mean"]) < 1e-5
        assert row["difference"] == {"mean": 0, "standard_error": 0}
    row = report["accuracy"]["model"]
    assert (row["ties"], row["share"]) == (12, 0.5)


def test_a_difference_is_that_of_the_means_with_the_paired_error(sparse_cache, student_folder, trio_folders):
    first, second = student_folder, trio_folders["dpo"]
    both = on_cache(sparse_cache, first, against=second)
    alone = [on_cache(sparse_cache, model)["quantities"] for model in (first, second)]
    for name, row in both["quantities"].items():
        assert [row["model"], row["against"]] == [found[name]["model"] for found in alone]
        assert row["difference"]["mean"] == pytest.approx(row["model"]["mean"] - row["against"]["mean"], abs=1e-12)
    accuracy = both["accuracy"]
    assert accuracy["difference"]["mean"] == pytest.approx(accuracy["model"]["share"] - accuracy["against"]["share"])


def test_buckets_bound_the_dense_divergences_from_below(whole_cache, sparse_cache, student_folder):
    dense_rows, sparse_rows = (on_cache(cache, student_folder)["quantities"] for cache in (whole_cache, sparse_cache))
    for name in ("kl_reference", "divergence_teacher"):
        assert sparse_rows[name]["model"]["mean"] < dense_rows[name]["model"]["mean"]
    for name in ("implicit_reward_chosen", "implicit_reward_rejected"):  # these do not depend on the support
        assert sparse_rows[name]["model"]["mean"] == pytest.approx(dense_rows[name]["model"]["mean"], rel=1e-5)


def test_batches_and_chunks_change_nothing(sparse_cache, student_folder):
    whole = on_cache(sparse_cache, student_folder, batch_size=24)["quantities"]
    small = on_cache(sparse_cache, student_folder, batch_size=5, chunk_positions=3)["quantities"]
    for name, row in whole.items():
        assert small[name]["model"]["mean"] == pytest.approx(row["model"]["mean"], rel=1e-5, abs=1e-7)


def test_a_ratio_of_sums_has_the_standard_error_of_its_groups():
    generator = np.random.default_rng(0)
    group_R = np.repeat(np.arange(400), 2)
    means, errors = [], []
    for _ in range(200):
        counts_R = generator.integers(1, 20, 800).astype(float)
        shared_R = np.repeat(generator.normal(size=400), 2)  # what the responses of a pair have in common
        values_R = counts_R * (0.5 + shared_R) + generator.normal(size=800)
        found = ratio(values_R, counts_R, group_R)
        means.append(found.mean)
        errors.append(found.standard_error)
    assert np.mean(means) == pytest.approx(0.5, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
    assert ratio(np.ones(2), np.ones(2), np.zeros(2)).standard_error is None


def test_the_interval_of_a_share_covers_it():
    generator = np.random.default_rng(0)
    for share, trials in ((0.5, 40), (0.9, 60), (0.98, 50)):
        found = [share_interval(wins / trials, trials) for wins in generator.binomial(trials, share, 2_000)]
        assert 0.91 < np.mean([low <= share <= high for low, high in found]) < 0.99
    assert share_interval(1.0, 10)[1] == pytest.approx(1) and share_interval(1.0, 10)[0] == pytest.approx(0.7225, 1e-3)


def test_the_json_holds_the_numbers_of_the_table(sparse_cache, student_folder, trio_folders, tmp_path, capsys):
    file = tmp_path / "report.json"
    given = {"model": student_folder, "against": trio_folders["reference"], "shards": sparse_cache.folder}
    main([*flags(**given), "--json", str(file)])
    text = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report_text(report) == text.rstrip("\n")
    assert max(map(len, text.splitlines())) <= max(100, len(str(sparse_cache.folder)) + 60)
    lines = text.splitlines()
    for name, row in report["models"][0]["quantities"].items():
        label = LABELS[name].format(divergence="reverse_kl")
        (number,) = [i for i, line in enumerate(lines) if line.startswith(f"{label}  ")]
        found = [float(number) for line in lines[number : number + 2] for number in re.findall(r"(\S+) ±", line)]
        assert found == pytest.approx([row[column]["mean"] for column in ("model", "difference", "against")], abs=1e-4)
        assert lines[number + 1].startswith(" " * 40 + "against")
    (line,) = [line for line in lines if line.startswith("implicit reward of model ")]
    row = report["models"][0]["accuracy"]["model"]
    numbers = [int(row["wins"]), int(row["ties"]), int(row["total"])]
    assert [int(number) for number in re.findall(r"\S+", line[40:])[:3]] == numbers


def test_a_cache_of_chosen_responses_gives_what_it_can(trio_folders, pairs_file, student_folder, tmp_path):
    build(build_options(trio_folders, pairs_file, tmp_path / "cache", top_k=5, max_top_k=12, values="compact"))
    report = on_cache(ShardCache(tmp_path / "cache"), student_folder)
    assert (report["pairs"], report["accuracy"]) == (0, None)
    assert "implicit_reward_chosen" in report["quantities"] and "implicit_reward_rejected" not in report["quantities"]
    text = report_text(report)
    assert "no pair of a chosen and a rejected response here; build with --responses both" in text
    assert "The cache's values are compact" in " ".join(text.split())


def test_a_learned_strength_takes_its_numbers_from_the_command(sparse_cache, student_folder):
    given = {"strength": "learned", "learned_offset": 0.2, "learned_slope": 3}
    report = on_cache(sparse_cache, student_folder, teacher="aligndistil", **given)
    assert report["teacher"]["learned_slope"] == 3


# ---- samples


def words(prompts, completions):
    """A planted reward: the number of words of the completion."""
    return [len(completion.split()) for completion in completions]


def samples(path, lengths, first=0):
    rows = [
        {"id": number, "prompt": f"p{number}", "completion": " a" * length, "truncated": False}
        for number, length in enumerate(lengths, start=first)
    ]
    return write_jsonl(path, rows)


@pytest.fixture
def two_files(tmp_path):
    """Over six prompts in common: three wins, one tie, two losses."""
    ours = samples(tmp_path / "a.jsonl", [9, 5, 5, 2, 1, 2, 4])
    return ours, samples(tmp_path / "b.jsonl", [3, 4, 4, 4, 2, 2, 1, 1], first=1)


SCORER = "test_evaluate:words"


def test_the_win_rate_of_a_planted_scorer(two_files):
    first, second = two_files
    found = evaluate(parse(flags(samples=first, samples_against=second, scorer=SCORER)))["samples"]
    row = found["win_rate"]
    assert (row["wins"], row["ties"], row["losses"], row["prompts"]) == (3, 1, 2, 6)
    assert (row["unmatched"], row["unmatched_against"]) == (1, 2)
    assert row["share"] == pytest.approx(3.5 / 6)
    assert (row["low"], row["high"]) == pytest.approx(share_interval(3.5 / 6, 6))
    mine, theirs = [5, 5, 2, 1, 2, 4], [3, 4, 4, 4, 2, 2]
    assert found["score"]["model"]["mean"] == pytest.approx(np.mean(mine))
    assert found["score"]["against"]["mean"] == pytest.approx(np.mean(theirs))
    difference = np.subtract(mine, theirs)
    assert found["score"]["difference"]["mean"] == pytest.approx(difference.mean())
    assert found["score"]["difference"]["standard_error"] == pytest.approx(difference.std(ddof=1) / math.sqrt(6))
    text = report_text({"samples": found})
    assert "0.500 / 0.167 / 0.333" in text and "6 samples; without a match 1, 2" in text


def test_a_model_ties_with_itself_and_a_file_alone_has_a_mean(two_files, tmp_path):
    first, _ = two_files
    row = evaluate(parse(flags(samples=first, samples_against=first, scorer=SCORER)))["samples"]["win_rate"]
    assert (row["ties"], row["share"]) == (7, 0.5)
    (tmp_path / "mine.py").write_text("def score(prompts, completions):\n    return [float(len(p)) for p in prompts]\n")
    alone = evaluate(parse(flags(samples=first, scorer=f"{tmp_path / 'mine.py'}:score")))["samples"]
    assert alone["score"] == {"model": {"mean": 2.0, "standard_error": 0.0}} and "win_rate" not in alone


def test_several_samples_of_a_prompt_are_one_trial(tmp_path):
    rows = [
        {"id": i, "sample": j, "prompt": "p", "completion": " a" * (1 + (i + j) % 2)} for i in range(4) for j in (0, 1)
    ]
    first = write_jsonl(tmp_path / "a.jsonl", rows)
    second = write_jsonl(tmp_path / "b.jsonl", [row | {"completion": " a"} for row in rows])
    row = evaluate(parse(flags(samples=first, samples_against=second, scorer=SCORER)))["samples"]["win_rate"]
    assert (row["total"], row["prompts"], row["wins"], row["ties"]) == (8, 4, 4, 4)
    assert (row["low"], row["high"]) == pytest.approx(share_interval(0.75, 4))


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path):
    row = {"id": 0, "prompt": "a\u2028b\x85", "completion": "c\x1dd\r\n"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (sample,) = read_samples(tmp_path / "a.jsonl")
    assert (sample.prompt, sample.completion) == (row["prompt"], row["completion"])


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    torch.manual_seed(3)
    config = LlamaConfig(**make_llama(0).config.to_dict() | {"num_labels": 1})
    return save(LlamaForSequenceClassification(config).eval(), tmp_path_factory.mktemp("reward"))


def test_a_reward_model_scores_every_completion_as_if_alone(reward_folder, tmp_path):
    rows = [{"id": i, "prompt": p["prompt"], "completion": p["chosen"]} for i, p in enumerate(make_pairs(5))]
    first = write_jsonl(tmp_path / "a.jsonl", rows)
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(reward_folder).eval(), make_tokenizer()
    expected = []
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"] + "</s>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(model(input_ids=ids).logits.item())
    scorer = find_scorer(str(reward_folder), device=torch.device("cpu"), dtype="float32", batch_size=3)
    scores = scorer([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert scores == pytest.approx(expected, rel=1e-5)
    found = evaluate(parse(flags(samples=first, scorer=reward_folder, batch_size=3)))["samples"]
    assert found["score"]["model"]["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["score"]["model"]["standard_error"] == pytest.approx(np.std(expected, ddof=1) / 5**0.5, rel=1e-5)


# ---- bad input


def refusal(given):
    with pytest.raises(AlignDistilError) as caught:
        main(flags(**given))
    message = str(caught.value)
    assert "\n" not in message
    return message


def three(prompts, completions):
    return [1.0, 2.0, 3.0]


def nothing(prompts, completions):
    return [float("nan")] * len(prompts)


def test_options_that_say_too_little(whole_cache, student_folder, tmp_path):
    assert refusal({}) == "model: expected --model with --shards, or --samples with --scorer, got neither"
    assert refusal({"model": student_folder}) == "shards: expected with --model, got none"
    assert refusal({"samples": "a.jsonl"}) == "scorer: expected with --samples, got none"
    given = {"model": student_folder, "shards": whole_cache.folder}
    assert refusal(given | {"batch_size": 0}) == "batch_size: expected 1 or more, got 0"
    assert refusal(given | {"json": tmp_path}) == f"json: expected a file in a folder that is there, got {tmp_path}"
    assert "expected a gain of 30 or less, got 31" in refusal(given | {"gain": 31})
    assert "device: expected auto, cpu, cuda or cuda:N, got 'tpu'" in refusal(given | {"device": "tpu"})


def test_models_that_do_not_fit_the_cache(whole_cache, trio, tmp_path):
    given = {"shards": whole_cache.folder, "model": tmp_path / "no"}
    assert refusal(given) == f"{tmp_path / 'no'}: expected a model folder, found none"
    other = save(trio["dpo"], tmp_path / "other", make_tokenizer(["a", "the"]))
    assert refusal(given | {"model": other}).startswith(f"tokenizers of the cache and {other} differ: token 'a' has")
    short = save(make_llama(0, max_position_embeddings=4), tmp_path / "short")
    assert "expected rows of at most 4 tokens" in refusal(given | {"model": short})
    broken = nudged(trio["dpo"], 0, 0.0)
    with torch.no_grad():
        broken.model.embed_tokens.weight[[3, 5, 8, 10, 11]] = float("nan")  # not tokens that a model is tried on
    folder = save(broken, tmp_path / "broken")
    message = refusal(given | {"model": folder})
    where = r"sample \d+/(chosen|rejected) at token \d+"
    assert re.fullmatch(rf"model: expected finite hidden states for {where}, got others", message)


def test_sample_files_that_cannot_be_read(two_files, tmp_path):
    first, _ = two_files
    given = {"samples": first, "scorer": SCORER}

    def of_rows(*rows):
        return refusal(given | {"samples": write_jsonl(tmp_path / "c.jsonl", rows)})

    good = {"id": 1, "prompt": "p1", "completion": " a"}
    assert of_rows(good, good) == "c.jsonl line 2: expected another id and sample, got ('1', 0) again"
    assert of_rows({"id": 1, "prompt": "p"}) == (
        "c.jsonl line 1: expected the columns id, prompt and completion, got id, prompt"
    )
    assert "both as lists of messages, got list, str" in of_rows(good | {"prompt": [{"role": "user", "content": "p"}]})
    assert of_rows() == f"{tmp_path / 'c.jsonl'}: expected samples, found none"
    (tmp_path / "c.jsonl").write_text("{")
    assert "c.jsonl line 1: expected a JSON object" in refusal(given | {"samples": tmp_path / "c.jsonl"})
    assert "no.jsonl: expected a .jsonl file of samples" in refusal(given | {"samples": tmp_path / "no.jsonl"})
    far = samples(tmp_path / "far.jsonl", [1], first=99)
    assert (
        refusal(given | {"samples_against": far})
        == f"{far}: expected samples with ids of {first}, found none in common"
    )
    other = write_jsonl(tmp_path / "other.jsonl", [good | {"prompt": "another"}])
    message = refusal(given | {"samples_against": other})
    assert message == f"{other} id 1: expected the prompt that {first} has, got another"


def test_scorers_that_give_no_scores(two_files, student_folder, tmp_path):
    given = {"samples": two_files[0]}
    assert refusal(given | {"scorer": "test_evaluate:three"}) == "scorer: expected 7 scores, one a completion, got 3"
    assert (
        refusal(given | {"scorer": "test_evaluate:nothing"}) == "scorer: expected finite scores, got nan for ('0', 0)"
    )
    expected = "scorer: expected module:function, file.py:function or a reward model's folder, got "
    assert refusal(given | {"scorer": "test_evaluate:no"}) == (
        f"{expected}'test_evaluate:no', whose module has no function 'no'"
    )
    assert refusal(given | {"scorer": "no_such_module:f"}).startswith(f"{expected}'no_such_module:f' (No module named")
    assert refusal(given | {"scorer": "no.py:f"}) == f"{expected}'no.py:f', no such file"
    message = refusal(given | {"scorer": student_folder})
    assert re.search(": expected weights for score.weight, found none", message)
