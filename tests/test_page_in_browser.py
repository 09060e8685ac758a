"""The page of a cache in a real browser: it makes no request, shows text as text, and composes what Python composes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from browser import NARROW, Opened
from fake_cache import make_cache, write_cache
from tiny_tokenizers import tiny_tokenizer

from shards import ShardCache, TeacherSpec
from shards.inspect.__main__ import main
from shards.token_texts import TokenTexts

HOSTILE = [
    '<script>alert("1")</script>',
    "&lt;b&gt; &amp;amp; <b>bold</b></script><!--",
    "\u202eright to left\u202c א ב and 👩‍👩‍👧 over several tokens",
    "  two  spaces,\na line and\ta tab<|im_end|>",
]
MINUS = "\N{MINUS SIGN}"


def written(cache, file, *flags):
    main([str(cache), "--html", str(file), *map(str, flags)])
    return file


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """Compact values; of some positions all tokens are kept, and of most not."""
    folder = tmp_path_factory.mktemp("browser") / "cache"
    return make_cache(folder, pairs=6, values="compact", response_tokens=24, vocabulary_size=60)


@pytest.fixture(scope="module")
def file(fake):
    return written(fake.folder, fake.folder.parent / "page.html")


def number(value, digits):
    text = f"{abs(value):.{digits}f}"
    return MINUS + text if value < 0 and float(text) else text


def signed(value, digits):
    return ("+" if value > 0 and float(f"{value:.{digits}f}") else "") + number(value, digits)


def percent(probability):
    share = 100 * probability
    if share == 0 or share >= 0.005 or share < 1e-99:
        return f"{share:.2f} %" if share >= 0.005 else "< 1e-99 %" if share else "0 %"
    power = math.floor(math.log10(share))
    digit = f"{share / 10.0**power:.0f}"
    return f"1e-{-power - 1} %" if digit == "10" else f"{digit}e-{-power} %"


READ = """async ([row, token]) => {
  location.hash = `#row-${row}-token-${token}`;
  const named = () => document.querySelector("#panel .quiet")?.textContent.startsWith(`token ${token} of row ${row},`);
  const there = () => named() && document.querySelector(".token.view");
  for (let i = 0; i < 500 && !there(); i++) await new Promise(requestAnimationFrame);
  const panel = document.querySelector("#panel");
  return {
    facts: Object.fromEntries([...panel.querySelectorAll("[data-fact]")].map((b) => [b.dataset.fact, b.textContent])),
    table: [...panel.querySelectorAll("tbody tr")].map((tr) => [...tr.cells].map((cell) => cell.textContent)),
    exactness: panel.querySelector(".exactness").textContent,
    spec: page.teacher.state.spec,
  };
}"""


def expected(cache, row, n, spec, texts):
    """What the panel of a position must show, from the numbers of Python."""
    scores, teacher = cache[row].scores, cache.teacher([row], spec)
    start = int(scores.support_count[:n].sum())
    kept = slice(start, start + int(scores.support_count[n]))
    models = [scores.logprobs[role][kept].astype(float) for role in ("reference", "dpo", "reverse")]
    models.append(teacher.logprobs[kept])
    best = {int(i) for logprobs in models for i in np.argsort(-logprobs, kind="stable")[:5]}
    ids = scores.support_ids[kept]
    rows = {texts[int(ids[i])]: [percent(math.exp(logprobs[i])) for logprobs in models] for i in best}
    reward = spec.beta * (float(scores.next_logprob["dpo"][n]) - float(scores.next_logprob[spec.negative][n]))
    facts = {
        "reward": signed(reward, 4),
        "D_t": number(scores.l1_distance[spec.negative][n], 4),
        "w_t": number(teacher.strength[n], 4),
        "λ_t": number(teacher.weight[n], 4),
        "kept": str(scores.support_count[n]),
    }
    tails = [float(scores.tail_logprob[role][n]) for role in ("reference", "dpo", "reverse")]
    tail = [percent(math.exp(logprob)) for logprob in (*tails, teacher.tail_logprob[n])]
    own = percent(math.exp(teacher.next_logprob[n]))
    return rows, facts, tail, own, float(teacher.tail_bound[n])


TEACHERS = {
    "a gain between nodes": ("aligndistil", {"gain": "7.3"}),
    "the last gain node": ("adaptive", {"gain": "30"}),
    "a constant strength": ("contrastive", {"kl_coef": "0.037"}),
    "a learned strength": ("aligndistil", {"strength": "learned", "offset": "4.2", "slope": "1.5"}),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_moving_a_slider_shows_the_numbers_of_python(name, browser, file, fake):
    preset, moves = TEACHERS[name]
    cache, generator = ShardCache(fake.folder), np.random.default_rng(0)
    texts = {token_id: text.replace("\n", "↵") for text, token_id in fake.vocabulary.items()}
    seen = set()
    with Opened(browser, file) as opened:
        opened.page.select_option("#control-preset", preset)
        for control, value in moves.items():
            if control == "strength":
                opened.page.select_option("#control-strength", value)
            elif control == "gain":
                opened.page.fill("#slider-gain", value)
            else:
                opened.page.fill(f"#field-{control}", value)
                opened.page.press(f"#field-{control}", "Enter")
        for row in generator.choice(len(cache), 10).tolist():
            response = cache[row]
            tokens = np.flatnonzero(response.loss_mask)
            n = int(generator.integers(len(tokens)))
            shown = opened.evaluate(READ, [row, int(tokens[n])])
            rows, facts, tail, own, bound = expected(cache, row, n, TeacherSpec(**shown["spec"]), texts)
            assert shown["facts"] == facts
            *table, last = shown["table"]
            found = {line[0].partition(" ← ")[0]: line[1:] for line in table if "more kept" not in line[0]}
            assert {text: found[text] for text in rows} == rows
            (here,) = [line for line in table if "← here" in line[0]]
            assert here[4] == own
            assert last[1:] == tail
            (kind,) = [k for k in ("All tokens are kept", "at a node", "interpolated") if k in shown["exactness"]]
            assert (kind == "interpolated") == (bound > 0) and (kind == "All tokens are kept") == (tail[0] == "0 %")
            seen.add(kind)
        assert opened.errors == []
    assert len(seen) > 1


def test_the_page_has_the_float32_numbers_of_python_to_the_last_bit(browser, file, fake):
    code = """async (row) => {
      const { scores } = await page.rows.load(row);
      const kept = Object.entries(scores.logprobs).map(([role, values]) => [role, [...values]]);
      return { ids: [...scores.support_ids], ...Object.fromEntries(kept) };
    }"""
    cache = ShardCache(fake.folder)
    with Opened(browser, file) as opened:
        for row in range(len(cache)):
            found = opened.evaluate(code, row)
            assert found.pop("ids") == cache[row].scores.support_ids.tolist()
            for role, values in found.items():
                assert np.array_equal(np.array(values, np.float32), cache[row].scores.logprobs[role])


def test_a_strength_beyond_the_nodes_is_refused_with_the_reason(browser, file):
    with Opened(browser, file, "#row-0-token-4") as opened:
        opened.page.wait_for_selector("#panel .facts")
        opened.page.fill("#field-gain", "31")
        opened.page.press("#field-gain", "Enter")
        fault = "expected a gain of 30 or less, the last node, got 31"
        assert opened.page.inner_text("#teacher-text") == f"No such teacher: {fault}."
        opened.page.wait_for_function("document.querySelector('.exactness').textContent.startsWith('No teacher')")
        assert opened.page.inner_text('[data-fact="w_t"]') == "\N{EN DASH}"
        assert opened.errors == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A cache of hostile texts under a real tokenizer; a cache without a tokenizer, of hostile tokens."""
    folder = tmp_path_factory.mktemp("hostile")
    tokenizer = tiny_tokenizer().backend_tokenizer
    size = tokenizer.get_vocab_size()
    fake = make_cache(
        folder / "fake", pairs=2, vocabulary_size=size, top_k=6, response_tokens=160, roles=("dpo", "reference")
    )
    responses = []
    for response, text in zip(fake.responses, HOSTILE, strict=True):
        ids = tokenizer.encode(text).ids
        whole = np.resize(
            np.array([*tokenizer.encode("<|im_start|>user <i>").ids, *ids], np.int32), len(response.input_ids)
        )
        responses.append(replace(response, input_ids=whole, sample_id=response.sample_id))
    (folder / "texts").mkdir()
    write_cache(folder / "texts", fake.plan, tokenizer.get_vocab(), responses, tokenizer.to_str())
    odd = {f'<img src="x" onerror="alert({i})">&amp;\u202e': i for i in range(size)}
    (folder / "<i>tokens").mkdir()
    write_cache(folder / "<i>tokens", fake.plan, odd, fake.responses)
    return folder


def test_hostile_texts_are_shown_as_text(browser, hostile):
    cache = ShardCache(hostile / "texts")
    texts = TokenTexts.of(cache)
    file = written(hostile / "texts", hostile / "texts.html")
    with Opened(browser, file) as opened:
        for row in range(len(cache)):
            opened.evaluate("(row) => page.rows.open(row, page.rows.by_id.get(row).prompt_tokens + 2)", row)
            opened.page.wait_for_selector(f'.response[data-row="{row}"] .token.view')
            response = cache[row]
            pieces = texts.pieces(response.input_ids)
            shown = opened.evaluate("(row) => document.querySelector(`.response[data-row='${row}']`).textContent", row)
            assert shown == "".join(pieces[response.response_start :])
        chips = opened.evaluate("[...document.querySelectorAll('#pair .chip')].map((chip) => chip.textContent)")
        assert set(chips) <= {"<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>"} and "<|im_start|>" in chips
        assert opened.evaluate("document.querySelectorAll('main b, main i, main img').length") == opened.evaluate(
            "document.querySelectorAll('main b.number, #margin b, .verdict b').length"
        )
        assert opened.errors == [] and opened.requests == [f"file://{file}"]


def test_hostile_tokens_and_names_are_shown_as_text_and_what_is_missing_is_said(browser, hostile):
    file = written(hostile / "<i>tokens", hostile / "odd.html")
    with Opened(browser, file, "#row-1-token-6") as opened:
        opened.page.wait_for_selector("#panel .alternatives")
        assert opened.page.inner_text("h1") == f"Cache {hostile}/<i>tokens"
        assert '<img␣src="x"' in opened.page.inner_text("#panel") and "U+202E" in opened.page.inner_text("#panel")
        assert opened.evaluate("document.querySelectorAll('img').length") == 0
        notices = opened.evaluate("[...document.querySelectorAll('.notice')].map((notice) => notice.textContent)")
        assert "no model reverse" in notices[0] and "no tokenizer.json" in notices[1]
        disabled = opened.evaluate("[...document.querySelectorAll('option:disabled')].map((option) => option.value)")
        assert {"aligndistil", "contrastive", "reverse"} <= set(disabled)
        heads = opened.evaluate("[...document.querySelectorAll('.alternatives th')].map((head) => head.textContent)")
        assert heads == ["instead", "reference", "dpo", "teacher"]
        assert opened.errors == [] and opened.requests == [f"file://{file}"]


def test_keys_move_over_tokens_and_a_link_names_one(browser, file, fake):
    tokens = np.flatnonzero(ShardCache(fake.folder)[2].loss_mask).tolist()
    with Opened(browser, file, f"#row-2-token-{tokens[3]}", size=NARROW) as opened:
        page = opened.page
        seen = "document.querySelector('#panel').hidden ? null : document.querySelector('#panel .quiet').textContent"
        page.wait_for_selector(".token.view")
        for key, n in (("ArrowRight", 4), ("ArrowRight", 5), ("ArrowLeft", 4)):
            page.keyboard.press(key)
            page.wait_for_function(f"{seen} === 'token {tokens[n]} of row 2, chosen'")
            assert page.url.endswith(f"#row-2-token-{tokens[n]}")
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"{seen} !== 'token {tokens[4]} of row 2, chosen'")
        page.keyboard.press("Escape")
        assert opened.evaluate(seen) is None and page.url.endswith("#row-2")
        opened.evaluate("location.hash = '#row-3-token-999'")
        page.wait_for_function("location.hash === '#row-3'")
        assert opened.evaluate("document.documentElement.scrollWidth") == NARROW["width"], "nothing is cut at 400 px"
        assert opened.errors == []


def test_two_hundred_responses_open_without_lag(browser, tmp_path):
    """Nodes do not grow with the texts of rows that are not open, a row opens within some frames, and a slider composes
    the teacher of the open pair only."""
    fake = make_cache(tmp_path / "cache", pairs=100, response_tokens=60, values="compact", top_k=20, rows_per_shard=200)
    file = written(fake.folder, tmp_path / "page.html", "--page_mb", "30")
    opening = """async () => {
      const frame = () => new Promise(requestAnimationFrame);
      const times = [[], []];
      for (let i = 0; i < 24; i++) {
        const begun = performance.now();
        if (i % 2) page.rows.open(10 * i);
        await frame();
        await frame();
        times[i % 2].push(performance.now() - begun);
      }
      return times.map((all) => all.toSorted((a, b) => a - b)[6]);
    }"""
    with Opened(browser, file) as opened:
        nodes = opened.evaluate("document.querySelectorAll('*').length")
        assert opened.evaluate("page.rows.all.length") == 200
        assert nodes < 200 * 7 + 2_500  # lists and charts of the whole cache have no more, however large it is
        empty, busy = opened.evaluate(opening)
        assert busy < 12 * empty, f"{busy:.0f} ms, and {empty:.0f} ms for two empty frames"
        composed = """() => {
          const { compose } = page.compose;
          let calls = 0;
          page.compose.compose = (...given) => (calls += 1, compose(...given));
          page.teacher.set({ gain: 3 });
          return calls;
        }"""
        assert opened.evaluate(composed) == 2
        assert opened.errors == []
