/* The text of a response, a span for every token: coloured by reward, underlined by strength or distance. */
"use strict";

page.text = (() => {
  const { el } = page;
  const DEEPEST = 62; // percent of the colour, so that the text stays readable on it
  const THICKEST = 4; // pixels
  const CONTROL = /[\p{Cc}\p{Cf}\u2028\u2029]/gu;
  const state = { line: "D_t" };

  /* A token for a table: spaces, line ends and what has no shape are made visible. */
  function visible(text) {
    if (text === "") return "(part of a character)";
    const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
    return shown.replace(CONTROL, (c) =>
      c === "\u200d" ? c : `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`,
    );
  }

  /* Text before the response: tokens that are not special are joined. */
  function plain(tokens) {
    const parts = [];
    for (const token of tokens) {
      if (token.special) parts.push(el("span", { class: "chip" }, token.text));
      else if (typeof parts.at(-1) === "string") parts.push(parts.pop() + token.text);
      else parts.push(token.text);
    }
    return parts;
  }

  function span(token, index) {
    const kinds = ["token", token.special && "chip", token.text === "" && "part", token.text.includes("\n") && "break"];
    if (token.n === null) return el("span", { class: token.special ? "chip" : "unmasked" }, token.text);
    const properties = { class: kinds.filter(Boolean).join(" "), tabIndex: -1, dataset: { token: index } };
    return el("span", properties, token.text);
  }

  /* The response of a loaded row. */
  function response(loaded) {
    const start = loaded.row.prompt_tokens;
    const spans = loaded.tokens.slice(start).map((token, i) => span(token, start + i));
    const label = `${loaded.row.chosen ? "chosen" : "rejected"} response of row ${loaded.row.id}`;
    const made = el("div", { class: "response", dir: "auto", role: "group", "aria-label": label, tabIndex: 0 }, spans);
    made.dataset.row = loaded.row.id;
    colour(made, loaded);
    return made;
  }

  const prompt = (loaded) =>
    el("div", { class: "prompt", dir: "auto", tabIndex: 0 }, plain(loaded.tokens.slice(0, loaded.row.prompt_tokens)));

  /* What the thickness of a line under a token stands for, from 0 to 1. */
  function thickness(loaded, teacher, n) {
    const negative = page.teacher.rewarding();
    const largest = page.data.scale.distance[negative];
    const distance = loaded.scores.l1_distance[negative][n] / largest;
    if (state.line === "none") return 0;
    if (state.line === "D_t") return distance;
    if (teacher === null) return 0;
    const highest = page.compose.nodes_at(page.data.nodes, largest).at(-1);
    return teacher.strength[n] / page.compose.strength(page.teacher.state.spec, largest, highest);
  }

  /* Give every token of a response its colour and its line. */
  function colour(response_element, loaded) {
    const { spec } = page.teacher.state;
    const deepest = spec.beta * page.data.scale.reward[page.teacher.rewarding()];
    const teacher = page.teacher.of(loaded.scores);
    for (const made of response_element.querySelectorAll(".token")) {
      const { n } = loaded.tokens[made.dataset.token];
      const reward = page.teacher.reward(loaded.scores, n);
      made.classList.toggle("down", reward < 0);
      made.style.setProperty("--share", (DEEPEST * Math.min(Math.abs(reward) / deepest, 1)).toFixed(1));
      const line = THICKEST * Math.min(thickness(loaded, teacher, n), 1);
      made.style.setProperty("--line", (Math.round(2 * line) / 2).toString());
    }
  }

  return { state, visible, response, prompt, colour };
})();
