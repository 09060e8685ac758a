"""Where teachers have their distance: at the words that decide a response's worth, or at the choice to stop.

Dimensions: B responses, T prompt and response tokens, N response positions of a kind, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.alignment.judge import compose_dense
from benchmarks.alignment.methods import PRESETS
from benchmarks.alignment.task import PHRASES, prompts
from benchmarks.alignment.world import World
from shards import TeacherSpec
from shards.format.schema import Role

VALUE_SHOWN = -2
"""Value of a teacher's knob: the last but one."""
NOWHERE = TeacherSpec.preset("linear")  # of models that are all the reference: the reference
WORD_OPENERS = {"add": "seasoning", "wait": "minutes"}  # a word whose next one is advice, and of which kind
assert all(PHRASES[kind].startswith(opener) for opener, kind in WORD_OPENERS.items())


@torch.no_grad()
def credit(world: World, models: Mapping[Role, Any], beta: float) -> dict[str, dict[str, float]]:
    """By model or teacher (beta: of its dpo), at the positions of the reference's own responses to held-out prompts:

    right_word       mean probability of the right word where a seasoning or a time follows
    stop             mean probability of the full stop where a clause has ended
    word_distance, stop_distance   D_t there, of dpo and reverse, or of dpo and reference for their teachers
    word_kl, stop_kl, all_kl   nats per response of KL(p || reference) at these positions, and at all
    """
    judge = world.judge
    ids_BT, mask_BR = judge.sample_teacher({"reference": judge.reference, "dpo": judge.reference}, NOWHERE)
    start = judge.ids_BP.shape[1]
    logprobs = {
        role: model(ids_BT).logits[:, start - 1 : -1].double().log_softmax(-1)[mask_BR]
        for role, model in models.items()
    }
    places = _places(world, ids_BT, mask_BR)
    found = {role: _figures(logprobs[role], logprobs["reference"], places, None) for role in models}
    for name, student in PRESETS.items():
        value = student.values[VALUE_SHOWN]
        spec = student.spec_at(value, beta)
        distance_N = (logprobs["dpo"].exp() - logprobs[spec.negative].exp()).abs().sum(-1)
        found[student.label(name, value)] = _figures(
            compose_dense(logprobs, spec), logprobs["reference"], places, distance_N
        )
    return found


def _places(world: World, ids_BT: torch.Tensor, mask_BR: torch.Tensor) -> dict[str, torch.Tensor]:
    """words, stops: which positions; right: the right word's id; stop: the full stop's; count: of responses."""
    tokens = world.judge.tokenizer
    asked, start = prompts(held_out=True), world.judge.ids_BP.shape[1]
    words_BR, stops_BR = torch.zeros_like(mask_BR), torch.zeros_like(mask_BR)
    right_BR = torch.zeros_like(mask_BR, dtype=torch.long)
    comma, stop = tokens.convert_tokens_to_ids([",", "."])
    for row, ids_T in enumerate(ids_BT):
        dish = asked[row % len(asked)][1]
        texts = tokens.convert_ids_to_tokens(ids_T.tolist())
        for at in torch.nonzero(mask_BR[row])[:, 0].tolist():
            stops_BR[row, at] = int(ids_T[start + at]) in (comma, stop)
            if at and texts[start + at - 1] in WORD_OPENERS:
                words_BR[row, at] = True
                right_BR[row, at] = tokens.convert_tokens_to_ids(dish.right[WORD_OPENERS[texts[start + at - 1]]])
    found = {"words": words_BR[mask_BR], "stops": stops_BR[mask_BR], "right": right_BR[mask_BR]}
    return found | {"stop": torch.tensor(stop), "count": torch.tensor(len(ids_BT))}


def _figures(
    p_NV: torch.Tensor, q_NV: torch.Tensor, places: Mapping[str, torch.Tensor], distance_N: torch.Tensor | None
) -> dict[str, float]:
    words, stops, count = places["words"], places["stops"], places["count"]
    kl_N = (p_NV.exp() * (p_NV - q_NV)).sum(-1)
    right_N = p_NV[words].gather(-1, places["right"][words][:, None]).exp()
    found = {
        "right_word": right_N.mean(),
        "stop": p_NV[stops][:, places["stop"]].exp().mean(),
        "word_kl": kl_N[words].sum() / count,
        "stop_kl": kl_N[stops].sum() / count,
        "all_kl": kl_N.sum() / count,
    }
    if distance_N is not None:
        found |= {"word_distance": distance_N[words].mean(), "stop_distance": distance_N[stops].mean()}
    return {name: float(value) for name, value in found.items()}
