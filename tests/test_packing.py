"""Shared prompts: hidden states equal those of separate rows, and models that cannot share are refused."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import build_options
from tiny import make_llama, make_pairs, make_tokenizer, save, write_jsonl
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from precompute.build.build import build
from precompute.models.role_model import RoleModel
from precompute.scoring.packing import batches_by_length, pack, packed_length, units
from precompute.scoring.score import hidden_states
from precompute.scoring.sharing import require_shared_prompts
from precompute.tokens.tokenized import SharedPrompts, TokenizedResponse
from shards import ShardCache
from shards.errors import CacheConflict, ModelError, OptionError
from shards.verify.__main__ import verify

V = 18
SMALL = {"vocab_size": V, "hidden_size": 16, "initializer_range": 0.4, "pad_token_id": 0}
BODY = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}


def make_row(pair, prompt, response, *, start=None):
    """`start`: the index of the first response token, if not directly after the prompt."""
    ids = np.array([*prompt, *response], dtype=np.int32)
    start = len(prompt) if start is None else start
    return TokenizedResponse(
        sample_id=f"{pair}/{len(response)}",
        pair_id=pair,
        chosen=True,
        input_ids=ids,
        response_start=start,
        loss_mask=np.arange(len(ids)) >= start,
        truncated=False,
        prompt_is_prefix=True,
    )


ROWS = [
    make_row(0, [1, 5, 6, 7, 8], [9, 10, 11, 2]),
    make_row(0, [1, 5, 6, 7, 8], [12, 2]),
    make_row(1, [1, 3], [4, 5, 6, 7, 8, 9, 2]),  # its partner was skipped
    make_row(2, [1, 9, 9, 4], [3, 2]),
    make_row(2, [1, 9, 9, 4], [3, 3, 3, 3, 3, 2]),  # begins as the other response does
    make_row(3, [1, 9, 9, 4], [5, 2]),  # the same prompt, another pair
    make_row(3, [1, 9, 8, 4], [6, 7, 2]),  # a prompt that tokenises otherwise
    make_row(4, [1], [6, 7, 2], start=2),
    make_row(4, [1], [6, 8, 2], start=1),  # its first token is predicted by the only one that is shared
    make_row(5, [3, 4], [6, 7, 2]),
    make_row(5, [4, 4], [6, 8, 2]),  # nothing in common
]
MODELS = {
    "llama": lambda: make_llama(0),
    "eager": lambda: make_llama(0, attn_implementation="eager"),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, n_layer=2, n_head=2, n_positions=64)).eval(),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **BODY, head_dim=8, sliding_window=64)).eval(),
}


def shared(rows):
    found = SharedPrompts()
    for row in rows:
        found.add(row)
    return found


def role_model(model, role="dpo"):
    return RoleModel(role, model, V)


def test_neighbours_of_one_pair_are_packed():
    assert units(ROWS) == [[0, 1], [2], [3, 4], [5, 6], [7, 8], [9], [10]]
    assert [packed_length([ROWS[i] for i in unit]) for unit in units(ROWS)] == [11, 9, 12, 11, 7, 5, 5]
    assert shared(ROWS).saved_tokens == 5 + 4 + 2 + 1
    assert [row.pair_id for row in shared(ROWS).longest] == [2, 2]
    assert shared(ROWS[1:4]).longest is None
    three = [dataclasses.replace(ROWS[0], sample_id=str(i)) for i in range(3)]
    assert units(three) == [[0, 1], [2]]


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_are_those_of_rows_apart(name):
    torch.manual_seed(0)
    model = role_model(MODELS[name]())
    together = hidden_states(model, ROWS, share_prompts=True)
    assert together.shape == hidden_states(model, ROWS).shape
    apart = torch.cat([hidden_states(model, [row]) for row in ROWS])
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-4)
    require_shared_prompts({"dpo": model}, shared(ROWS).longest, 12)


def test_a_packed_row_holds_the_shared_tokens_once():
    packed = pack(ROWS[:3], share_prompts=True)
    assert packed.input_ids.tolist() == [
        [1, 5, 6, 7, 8, 9, 10, 11, 2, 12, 2],
        [1, 3, 4, 5, 6, 7, 8, 9, 2, 0, 0],
    ]
    assert packed.position_ids.tolist()[0] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6]
    rows, tokens = packed.places // 11, packed.places % 11
    assert rows.tolist() == [0] * 6 + [1] * 7
    assert tokens.tolist() == [4, 5, 6, 7, 4, 9, 1, 2, 3, 4, 5, 6, 7]
    assert packed.next_ids.tolist() == [9, 10, 11, 2, 12, 2, 4, 5, 6, 7, 8, 9, 2]
    assert packed.attention_mask[0, 0, 10].tolist() == [True] * 5 + [False] * 4 + [True] * 2
    assert packed.attention_mask[0, 0, 8].tolist() == [True] * 9 + [False] * 2


def test_batches_keep_pairs_together_and_count_them_packed():
    batches = batches_by_length(ROWS, 24, share_prompts=True)
    assert sorted(i for batch in batches for i in batch) == list(range(len(ROWS)))
    for batch in batches:
        groups = units([ROWS[i] for i in batch])
        longest = max(packed_length([ROWS[batch[i]] for i in group]) for group in groups)
        assert len(groups) == 1 or longest * len(groups) <= 24
    for pair in ([0, 1], [3, 4], [5, 6], [7, 8]):
        (batch,) = [batch for batch in batches if pair[0] in batch]
        assert batch[batch.index(pair[0]) + 1] == pair[1]
    assert batches[0] == [3, 4, 0, 1]


@pytest.fixture(scope="module")
def shared_cache(trio_folders, pairs_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "cache"
    build(build_options(trio_folders, pairs_file, out, share_prompts=True, **WHOLE))
    return out


WHOLE = {"responses": "both", "top_k": V, "min_top_k": V, "support": "fixed", "values": "float32"}


def test_a_cache_is_the_same_up_to_rounding(shared_cache, trio_folders, pairs_file, tmp_path):
    build(build_options(trio_folders, pairs_file, tmp_path / "apart", **WHOLE))
    shared, apart = ShardCache(shared_cache), ShardCache(tmp_path / "apart")
    assert len(shared) == len(apart) > 2 and not list(verify(shared_cache))
    for mine, theirs in zip(shared.read(range(len(shared))), apart.read(range(len(apart))), strict=True):
        assert mine.sample_id == theirs.sample_id
        np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
        for role, logprobs in theirs.scores.logprobs.items():
            np.testing.assert_allclose(mine.scores.logprobs[role], logprobs, atol=2e-5)


def test_the_plan_says_what_is_spared(trio_folders, pairs_file, tmp_path, capsys):
    build(build_options(trio_folders, pairs_file, tmp_path / "cache", share_prompts=True, **WHOLE))
    assert "tokens (" in capsys.readouterr().out.split("shared prompts")[1].splitlines()[0]


def test_a_build_with_shared_prompts_is_another_build(shared_cache, trio_folders, pairs_file):
    with pytest.raises(CacheConflict, match="share_prompts"):
        build(build_options(trio_folders, pairs_file, shared_cache, **WHOLE))


def test_one_response_of_each_pair_has_no_prompt_to_share(trio_folders, pairs_file, tmp_path):
    with pytest.raises(OptionError, match="share_prompts: expected it with --responses both only, got chosen"):
        build_options(trio_folders, pairs_file, tmp_path, share_prompts=True, responses="chosen")


def test_a_body_that_a_mask_says_nothing_to_is_refused():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(**SMALL, state_size=4, num_hidden_layers=2)).eval()
    with pytest.raises(ModelError, match=r"^dpo: expected .*leave --share_prompts out$"):
        require_shared_prompts({"dpo": role_model(mamba)}, shared(ROWS).longest, 10)


class Deaf(RoleModel):
    """Sees everything before a token and ignores the mask."""

    def hidden(self, input_ids_BT, attention_mask, position_ids_BT=None):
        return super().hidden(input_ids_BT, torch.ones_like(input_ids_BT), position_ids_BT)


def test_hidden_states_that_differ_are_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"^dpo: expected the same hidden states .* got some [\d.]+% off in the pair of"
    ):
        require_shared_prompts({"dpo": Deaf("dpo", make_llama(0), V)}, shared(ROWS).longest, 10)


def test_rows_longer_than_a_window_are_refused():
    model = MistralForCausalLM(MistralConfig(**SMALL, **BODY, sliding_window=9)).eval()
    with pytest.raises(ModelError, match=r"at most 9 tokens, its window of attention, .* got one of 10"):
        require_shared_prompts({"dpo": role_model(model)}, ROWS[5:7], 10)
    model.config.sliding_window = 10
    require_shared_prompts({"dpo": role_model(model)}, ROWS[5:7], 10)


def test_a_build_refuses_such_models_before_it_writes(trio_folders, tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(4))
    model = MistralForCausalLM(MistralConfig(**SMALL, **BODY, sliding_window=2)).eval()
    folders = dict(trio_folders, reverse=save(model, tmp_path / "reverse", make_tokenizer()))
    with pytest.raises(ModelError, match="reverse: expected rows of at most 2 tokens"):
        build(build_options(folders, data, tmp_path / "cache", share_prompts=True, **WHOLE))
    assert not (tmp_path / "cache").exists()
