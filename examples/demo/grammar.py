"""A toy language with a true reward: short cooking advice, some of it right, some wrong, some rude.

    prompt      how do i cook a small potato?
    response     boil it, add butter, wait five minutes.

A response is a list of clauses. The method and the seasoning must suit the noun, the minutes the adjective; chatter is
worth nothing, rudeness costs. So single words that depend on the prompt make a response good, and a longer response is
not better.
"""

import math
import random
from dataclasses import dataclass

NOUNS = {  # noun: (method, seasoning)
    "potato": ("boil", "butter"),
    "carrot": ("steam", "butter"),
    "egg": ("boil", "salt"),
    "steak": ("fry", "pepper"),
    "mushroom": ("fry", "salt"),
    "salmon": ("steam", "lemon"),
    "trout": ("grill", "lemon"),
    "apple": ("bake", "sugar"),
    "banana": ("grill", "sugar"),
    "pie": ("bake", "pepper"),
}
ADJECTIVES = {"thin": "two", "small": "five", "large": "ten", "frozen": "twenty"}  # adjective: minutes
QUESTIONS = (
    "how do i cook a {}?",
    "what should i do with a {}?",
    "tell me how to make a {}.",
    "please help me with a {}.",
)
METHODS = tuple(sorted({method for method, _ in NOUNS.values()}))
SEASONINGS = tuple(sorted({seasoning for _, seasoning in NOUNS.values()}))
CHATTER = ("it is quite easy", "everybody likes that", "as my mother said")
RUDE = ("ask somebody else", "who cares", "what a silly question")


JUDGE_SHARPNESS = 2.0  # a response better by 1 is preferred in 88 of 100 comparisons
KINDS = ("method", "seasoning", "minutes", "chatter", "rude")


@dataclass(frozen=True, slots=True)
class Dish:
    adjective: str
    noun: str

    @property
    def right(self) -> dict[str, str]:
        """The word that suits this dish, by kind of advice."""
        method, seasoning = NOUNS[self.noun]
        return {"method": method, "seasoning": seasoning, "minutes": ADJECTIVES[self.adjective]}


WORDS = {"method": METHODS, "seasoning": SEASONINGS, "minutes": tuple(ADJECTIVES.values())}


def dishes(*, held_out: bool) -> list[Dish]:
    """Three quarters of the adjective-noun pairs are for training; of the others only the single words are known."""
    return [
        Dish(adjective, noun)
        for i, noun in enumerate(NOUNS)
        for j, adjective in enumerate(ADJECTIVES)
        if ((i + j) % len(ADJECTIVES) == 0) == held_out
    ]


def prompts(*, held_out: bool) -> list[tuple[str, Dish]]:
    return [
        (question.format(f"{dish.adjective} {dish.noun}"), dish)
        for dish in dishes(held_out=held_out)
        for question in QUESTIONS
    ]


def write_response(dish: Dish, rng: random.Random) -> str:
    """What people write: two to four clauses of different kinds, advice that is right six times in ten."""
    return _text([_clause(kind, dish, rng) for kind in rng.sample(KINDS, rng.randint(2, 4))])


def true_reward(dish: Dish, response: str) -> float:
    """+1 for each right piece of advice; -1 for a wrong one, a second one of its kind, rudeness, an unknown clause, and
    once for an end that is missing or not at the end; chatter is worth nothing."""
    body, end, rest = response.strip().partition(".")
    seen: set[str] = set()
    total = 0.0 if end and not rest else -1.0
    for text in body.split(", "):
        kind, word = parse_clause(text)
        good = kind in dish.right and dish.right[kind] == word and kind not in seen
        total += 1.0 if good else 0.0 if kind == "chatter" else -1.0
        seen.add(kind)
    return total


def draw_pair(prompt: str, dish: Dish, rng: random.Random) -> dict[str, str]:
    """Two responses of different reward; a judge prefers the better one with the Bradley-Terry probability."""
    rewards = [0.0, 0.0]
    while rewards[0] == rewards[1]:
        texts = [write_response(dish, rng) for _ in range(2)]
        rewards = [true_reward(dish, text) for text in texts]
    first_wins = rng.random() < 1 / (1 + math.exp(JUDGE_SHARPNESS * (rewards[1] - rewards[0])))
    chosen, rejected = texts if first_wins else reversed(texts)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def draw(
    num_texts: int, num_pairs: int, *, held_out: bool, rng: random.Random
) -> tuple[list[str], list[dict[str, str]]]:
    """Prompts with a written response each, and preference pairs."""
    asked = prompts(held_out=held_out)
    texts = [prompt + write_response(dish, rng) for prompt, dish in rng.choices(asked, k=num_texts)]
    return texts, [draw_pair(prompt, dish, rng) for prompt, dish in rng.choices(asked, k=num_pairs)]


def judge_accuracy(pairs: list[dict[str, str]]) -> float:
    """Share of pairs whose chosen response has the higher true reward: no model can be expected to exceed it."""
    dish_of = dict(prompts(held_out=False) + prompts(held_out=True))
    margins = [
        true_reward(dish_of[pair["prompt"]], pair["chosen"]) - true_reward(dish_of[pair["prompt"]], pair["rejected"])
        for pair in pairs
    ]
    return sum(margin > 0 for margin in margins) / len(margins)


def parse_clause(text: str) -> tuple[str, str]:
    """(kind, word) of a clause; ("none", text) if it is not one."""
    for kind, words in WORDS.items():
        for word in words:
            if text == _advice(kind, word):
                return kind, word
    return ("chatter" if text in CHATTER else "rude" if text in RUDE else "none"), text


def _clause(kind: str, dish: Dish, rng: random.Random) -> str:
    if kind == "chatter":
        return rng.choice(CHATTER)
    if kind == "rude":
        return rng.choice(RUDE)
    right = dish.right[kind]
    word = right if rng.random() < 0.6 else rng.choice([word for word in WORDS[kind] if word != right])
    return _advice(kind, word)


def _advice(kind: str, word: str) -> str:
    return {"method": f"{word} it", "seasoning": f"add {word}", "minutes": f"wait {word} minutes"}[kind]


def _text(clauses: list[str]) -> str:
    # the space separates the prompt's last token from the response's first
    return " " + ", ".join(clauses) + "."
