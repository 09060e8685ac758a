"""The task: advice on the demo's dishes, whose true reward is a sum over clauses, and noisy preferences about it.

    prompt      how do i cook a small potato ?
    response     boil it , add butter , everybody likes that , wait two minutes .

Up to three clauses of a response can be right, each through a single word that depends on the prompt. So the worth of a
clause or token is known, and a response has good and bad parts. Longer responses are better up to a point, because
advice is more often right than wrong; but every token costs, so a policy that only exploits length gains a little and
then loses.
"""

import math
import random

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from examples.demo.grammar import CHATTER, RUDE, WORDS, Dish, dishes
from examples.demo.models import BOS, EOS, PAD, SPECIAL_TOKENS

QUESTIONS = ("how do i cook a {} ?", "what goes well with a {} ?")  # of one length: no prompt needs padding
KINDS = {"method": 25, "seasoning": 25, "minutes": 25, "chatter": 17, "rude": 8}  # kind of clause: how often of 100
MOST_CLAUSES = 6
RIGHT = 0.75  # how often a piece of advice suits the dish
TOKEN_COST = 0.03
PHRASES = {"method": "{} it", "seasoning": "add {}", "minutes": "wait {} minutes"}
CLAUSES = {
    **{phrase.format(word): (kind, word) for kind, phrase in PHRASES.items() for word in WORDS[kind]},
    **{text: ("chatter", text) for text in CHATTER},
    **{text: ("rude", text) for text in RUDE},
}
"""Text of a clause -> its kind and word."""

Pair = dict[str, str]


def prompts(*, held_out: bool) -> list[tuple[str, Dish]]:
    """Every question about every dish; held-out dishes are new pairs of known words."""
    return [
        (question.format(f"{dish.adjective} {dish.noun}"), dish)
        for dish in dishes(held_out=held_out)
        for question in QUESTIONS
    ]


def true_reward(dish: Dish, response: str) -> float:
    """The sum over clauses, minus the cost of the tokens and of a missing end.

    Advice: +1 if right, 0 if right again, -1 if wrong; chatter 0; rudeness and anything else -1; no full stop, or text
    after it, -1; TOKEN_COST for each word and mark. The best response has three right clauses: about 2.6.
    """
    body, end, rest = response.strip().partition(" .")
    total = 0.0 if end and not rest else -1.0
    seen: set[str] = set()
    for text in body.split(" , "):
        kind, word = CLAUSES.get(text, ("none", text))
        if kind in PHRASES:
            total += -1.0 if word != dish.right[kind] else 0.0 if kind in seen else 1.0
            seen.add(kind)
        elif kind != "chatter":
            total -= 1.0
    return total - TOKEN_COST * len(response.split())


def write_response(dish: Dish, rng: random.Random) -> str:
    """What people write: one to six clauses of kinds drawn independently."""
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=rng.randint(1, MOST_CLAUSES))
    # the space separates the prompt's last token from the response's first
    return " " + " , ".join(_clause(kind, dish, rng) for kind in kinds) + " ."


def draw_texts(count: int, rng: random.Random) -> list[str]:
    """Prompts with a written response each."""
    return [prompt + write_response(dish, rng) for prompt, dish in rng.choices(prompts(held_out=False), k=count)]


def draw_pairs(count: int, *, held_out: bool, rng: random.Random) -> list[Pair]:
    """Two responses each; the judge prefers the first with the probability sigmoid(difference of true rewards)."""
    pairs = []
    for prompt, dish in rng.choices(prompts(held_out=held_out), k=count):
        texts = [write_response(dish, rng) for _ in range(2)]
        margin = true_reward(dish, texts[0]) - true_reward(dish, texts[1])
        first_wins = rng.random() < 1 / (1 + math.exp(-margin))
        chosen, rejected = texts if first_wins else reversed(texts)
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def judge_accuracy(pairs: list[Pair]) -> float:
    """Share of pairs whose chosen response has the higher true reward (a tie is half a pair)."""
    dish_of = dict(prompts(held_out=False) + prompts(held_out=True))
    margins = [
        true_reward(dish_of[pair["prompt"]], pair["chosen"]) - true_reward(dish_of[pair["prompt"]], pair["rejected"])
        for pair in pairs
    ]
    return sum(0.5 if margin == 0 else margin > 0 for margin in margins) / len(margins)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and mark of the language."""
    texts = [*CLAUSES, *(prompt for held_out in (False, True) for prompt, _ in prompts(held_out=held_out)), ", ."]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=PAD)


def _clause(kind: str, dish: Dish, rng: random.Random) -> str:
    if kind not in PHRASES:
        return rng.choice(CHATTER if kind == "chatter" else RUDE)
    right = dish.right[kind]
    word = right if rng.random() < RIGHT else rng.choice([word for word in WORDS[kind] if word != right])
    return PHRASES[kind].format(word)
