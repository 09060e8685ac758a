"""The demo's language and its true reward; its figures for known models."""

import random
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_llama, make_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))

from examples.demo import grammar
from examples.demo.evaluate import evaluate, preference_accuracy, response_logprobs

SMALL_POTATO = grammar.Dish("small", "potato")


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (" boil it, add butter, wait five minutes.", 3),
        (" wait five minutes, boil it.", 2),
        (" boil it, add lemon.", 0),
        (" boil it, boil it, boil it, boil it.", -2),
        (" it is quite easy, as my mother said.", 0),
        (" boil it, who cares.", 0),
        (" boil it, butter.", 0),
        (" boil it, add butter", 1),
        (" boil it. add butter.", 0),
        ("", -2),
    ],
)
def test_the_true_reward_counts_right_and_wrong_advice(response, reward):
    assert grammar.true_reward(SMALL_POTATO, response) == reward


def test_written_responses_are_all_clauses_and_longer_is_not_better():
    rng = random.Random(0)
    rewards = {2: [], 3: [], 4: []}
    for prompt, dish in grammar.prompts(held_out=False) * 30:
        response = grammar.write_response(dish, rng)
        assert prompt and response.startswith(" ") and response.endswith(".")
        clauses = response.strip()[:-1].split(", ")
        assert all(grammar.parse_clause(clause)[0] != "none" for clause in clauses)
        rewards[len(clauses)].append(grammar.true_reward(dish, response))
    means = {count: sum(values) / len(values) for count, values in rewards.items()}
    assert means[4] <= means[2] + 0.1


def test_held_out_dishes_are_new_pairs_of_known_words():
    known, new = grammar.dishes(held_out=False), grammar.dishes(held_out=True)
    assert not set(known) & set(new) and len(known) == 3 * len(new)
    assert {dish.noun for dish in new} <= {dish.noun for dish in known}
    assert {dish.adjective for dish in new} <= {dish.adjective for dish in known}


def test_a_judge_prefers_the_better_response_most_of_the_time():
    _, pairs = grammar.draw(0, 500, held_out=True, rng=random.Random(0))
    assert 0.88 < grammar.judge_accuracy(pairs) < 1
    assert pairs == grammar.draw(0, 500, held_out=True, rng=random.Random(0))[1]


def test_log_probs_do_not_change_with_the_batch():
    model = make_llama(0)
    prompts, responses = [[1, 5, 6], [1, 4]], [[7], [8, 9, 10, 2]]
    together = list(response_logprobs(model, prompts, responses))
    for prompt, response, rows_NV in zip(prompts, responses, together, strict=True):
        assert rows_NV.shape == (len(response), model.config.vocab_size)
        (alone_NV,) = response_logprobs(model, [prompt], [response])
        torch.testing.assert_close(rows_NV, alone_NV)


def test_a_model_has_no_distance_to_itself_and_no_implicit_reward():
    model, tokenizer = make_llama(0), make_tokenizer()
    pairs = [{"prompt": "the cat", "chosen": " sat on", "rejected": " ran"}]
    asked = [("the cat", SMALL_POTATO), ("a big dog sat", SMALL_POTATO)]
    quality = evaluate(model, model, tokenizer, asked, pairs, responses_per_prompt=4, seed=0)
    assert quality.kl_nats == 0
    assert preference_accuracy(model, model, tokenizer, pairs) == 0
