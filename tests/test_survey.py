"""`shards.survey`: rewarded and punished tokens and words, figures of rows and pairs, bytes by column."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from fake_cache import make_cache, write_cache
from readable_cache import readable_cache

from shards import ShardCache, TeacherSpec
from shards.format.batches import BatchReader
from shards.preferences.pairs import find_pairs, preference_margins
from shards.survey import reading
from shards.survey.counts import Ranked, tops
from shards.survey.sizes import HEADERS, column_sizes
from shards.survey.survey import take_survey
from shards.survey.words import Word, words_of
from shards.token_texts import TokenTexts


@pytest.fixture(scope="module", params=["compact", "float32"])
def fake(request, tmp_path_factory):
    return readable_cache(tmp_path_factory.mktemp("survey") / "cache", values=request.param, pairs=12, rows_per_batch=1)


@pytest.fixture(scope="module")
def cache(fake):
    return ShardCache(fake.folder)


@pytest.fixture(scope="module")
def found(cache):
    return take_survey(cache, "reverse", 0.1, TokenTexts.of(cache))


def rewards(cache, row, negative="reverse"):
    following = cache[row].scores.next_logprob
    return 0.1 * (following["dpo"].astype(np.float64) - following[negative])


def words_by_hand(pieces, counted):
    """(word, its tokens): character by character; a token without text waits for the character that it begins."""
    found, waiting, inside = [], [], False
    for token, (piece, wanted) in enumerate(zip(pieces, counted, strict=True)):
        if not wanted:
            if inside:
                found[-1][1].extend(waiting)
            inside, waiting = False, []
            continue
        waiting.append(token)
        for character in piece:
            if character.isspace():
                inside = False
                continue
            if not inside:
                found.append(["", []])
            inside = True
            found[-1][0] += character
            found[-1][1].extend(waiting)
            waiting = []
        waiting = [] if piece else waiting
    return found


def test_tokens_are_counted_and_summed_as_by_hand(cache, found):
    counts, totals = Counter(), defaultdict(float)
    for row in range(len(cache)):
        for token_id, reward in zip(cache[row].input_ids[cache[row].loss_mask], rewards(cache, row), strict=True):
            counts[int(token_id)] += 1
            totals[int(token_id)] += reward
    listed = {entry.token_id: entry for entry in found.token_counts}
    assert {token_id: entry.count for token_id, entry in listed.items()} == counts
    assert {token_id: entry.total for token_id, entry in listed.items()} == pytest.approx(totals)


def test_words_are_counted_and_summed_as_by_hand(cache, found):
    """By characters: every character that is no space belongs to a word, and brings the reward of its token once."""
    texts, counts, totals = TokenTexts.of(cache), Counter(), defaultdict(float)
    for row in range(len(cache)):
        input_ids, mask = cache[row].input_ids, cache[row].loss_mask
        reward_by_token = dict(zip(np.flatnonzero(mask), rewards(cache, row), strict=True))
        counted = [wanted and not texts.special(i) for i, wanted in zip(input_ids, mask, strict=True)]
        for word, tokens in words_by_hand(texts.pieces(input_ids), counted):
            counts[word] += 1
            totals[word] += sum(reward_by_token[token] for token in tokens)
    listed = {entry.text: entry for entry in found.word_counts}
    assert {text: entry.count for text, entry in listed.items()} == counts
    assert {text: entry.total for text, entry in listed.items()} == pytest.approx(totals)
    assert {"sky", "naïve"} <= set(counts)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " sk", "y", "."], [("The", 0, 1), ("sky.", 1, 4)]),
        ([" ", "\n", "a", " ", " b"], [("a", 2, 3), ("b", 4, 5)]),
        (["a\n", "b"], [("a", 0, 1), ("b", 1, 2)]),
        (["go", "", "", " é", "s"], [("go", 0, 1), ("és", 1, 5)]),
        (["na", "", "ï", "ve"], [("naïve", 0, 4)]),
        (["sky", None, "s"], [("sky", 0, 1), ("s", 2, 3)]),
        (["", None, "s"], [("s", 2, 3)]),
        ([" of the", "m"], [("of them", 0, 2)]),
        ([], []),
    ],
)
def test_words_end_where_tokens_meet_at_white_space(pieces, expected):
    counted = [piece is not None for piece in pieces]
    assert list(words_of([piece or "" for piece in pieces], counted)) == [Word(*word) for word in expected]


def test_the_lists_are_ranked_by_total_or_mean_among_those_that_occur_often_enough():
    entries = [Ranked("often", 9, 4.5), Ranked("strong", 5, 4.0), Ranked("rare", 4, 9.0), Ranked("bad", 6, -1.0)]
    by_total, by_mean = (tops(entries, 2, by, 5) for by in ("total", "mean"))
    assert [entry.text for entry in by_total.rewarded] == ["often", "strong"]
    assert [entry.text for entry in by_mean.rewarded] == ["strong", "often"]
    assert [entry.text for entry in by_total.punished] == ["bad"]
    assert tops(entries, 1, "total", 1).rewarded[0].text == "rare"


def test_rows_have_the_figures_of_their_values(cache, found):
    for row in range(len(cache)):
        response, distance_N = cache[row], cache[row].scores.l1_distance["reverse"]
        figures = found.rows
        assert (figures.row[row], figures.length[row]) == (row, response.loss_mask.sum())
        assert (figures.chosen[row], figures.pair_id[row]) == (response.chosen, response.pair_id)
        assert figures.reward[row] == pytest.approx(rewards(cache, row).sum())
        assert figures.largest_distance[row] == pytest.approx(distance_N.max())
        assert figures.mean_distance[row] == pytest.approx(distance_N.mean())
    assert found.rows.length_correlation == pytest.approx(np.corrcoef(found.rows.length, found.rows.reward)[0, 1])
    assert found.on == f"all {len(cache)} responses"


def test_margins_are_those_of_the_preferences(cache, found):
    pairs = find_pairs(cache)
    expected = preference_margins(cache, pairs, {"aligndistil": TeacherSpec()})
    assert found.rows.margins_of(found.rows.implicit_reward("dpo")) == pytest.approx(expected["dpo"], abs=1e-5)
    assert found.rows.margins_of(found.rows.logprob["reference"]) == pytest.approx(expected["reference"], abs=1e-5)
    total = [rewards(cache, chosen).sum() - rewards(cache, rejected).sum() for chosen, rejected in pairs.rows]
    assert found.rows.margins == pytest.approx(total)


def test_a_response_without_its_partner_has_no_margin(fake, tmp_path):
    responses = [response for response in fake.responses if response.pair_id != 3 or response.chosen]
    shards = replace(fake.plan.shards[-1], rows=fake.plan.shards[-1].rows - 1)
    last = sum(int(r.loss_mask.sum()) for r in responses[shards.first_row :])
    plan = replace(fake.plan, shards=(*fake.plan.shards[:-1], replace(shards, positions=last)))
    write_cache(tmp_path, plan, fake.vocabulary, responses)
    cache = ShardCache(tmp_path)
    rows = take_survey(cache, "reverse", 0.1, TokenTexts.of(cache)).rows
    assert np.isnan(rows.margin).tolist() == [response.pair_id == 3 for response in responses]


def test_a_survey_reads_a_few_rows_at_a_time_and_no_kept_token(cache, monkeypatch):
    read = []
    original = BatchReader.read

    def counted(self, shard, batch, names):
        read.append((shard, batch))
        assert {c.level for c in self.plan.columns() if c.name in names} == {"token", "position"}
        return original(self, shard, batch, names)

    monkeypatch.setattr(BatchReader, "read", counted)
    monkeypatch.setattr(reading, "ROWS_AT_A_TIME", 4)
    at_a_time = 4 // cache.plan.rows_per_batch
    for number, part in enumerate(reading.read_parts(cache, reading.blocks_within(cache, cache.plan.positions))):
        assert len(part.rows) <= 4
        assert len(read) <= (number + 1) * at_a_time
    assert sorted(read) == [(s, b) for s in range(len(cache.plan.shards)) for b in range(cache.plan.num_batches(s))]


def test_a_larger_cache_is_sampled_and_says_so(cache, monkeypatch):
    monkeypatch.setattr(reading, "ROWS_AT_A_TIME", 4)
    found = take_survey(cache, "reverse", 0.1, TokenTexts.of(cache), positions=cache.plan.positions // 2)
    assert 0.3 < found.positions / cache.plan.positions < 0.7
    assert found.on == f"{len(found.rows)} of {len(cache)} responses, evenly spread"
    assert not np.isnan(found.rows.margin).any()  # both responses of a pair are read


def test_without_a_tokenizer_there_are_tokens_but_no_words(tmp_path):
    make_cache(tmp_path, roles=("dpo", "reference"))
    cache = ShardCache(tmp_path)
    found = take_survey(cache, "reference", 0.1, TokenTexts.of(cache))
    assert {entry.text for entry in found.tokens(50, min_count=1).rewarded} <= set(cache.vocabulary)
    assert found.words(5, min_count=1) == ([], [])


def test_column_sizes_are_those_of_the_files(fake, cache):
    sizes = column_sizes(cache)
    assert set(sizes.shares) == {*(column.name for column in fake.plan.columns()), HEADERS}
    assert sum(sizes.shares.values()) == pytest.approx(1)
    assert sizes.total_bytes == sum((fake.folder / shard.file).stat().st_size for shard in fake.plan.shards)
    assert sizes.bytes_of(HEADERS) > sizes.bytes_of("chosen") > 0


def test_a_column_of_noise_is_larger_than_one_of_the_same_number_of_equal_values(tmp_path):
    fake = make_cache(tmp_path, response_tokens=2_000, top_k=2, values="float32", pairs=1)
    positions = [response.scores.num_positions for response in fake.responses]
    shares = column_sizes(ShardCache(tmp_path)).shares
    noise, equal = shares["dpo_next_logprob"], shares["support_count"]
    assert 20 * equal < noise
    stored = column_sizes(ShardCache(tmp_path)).bytes_of("dpo_next_logprob")
    assert stored == pytest.approx(4 * sum(positions), rel=0.2)  # noise cannot be compressed
